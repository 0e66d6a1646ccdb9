"""A network as a list of operations: the form in which two descriptions of one network are held together. Leaf, NumPy.

`nrd_trt.model.program` makes it of a PyTorch network, `nrd_trt.graph.program` of an ONNX file. Names serve the
messages; what is compared is what is computed, so that a file may name its nodes and tensors as it likes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any, TypeGuard

import numpy as np

Operand = tuple[int, int] | str | np.ndarray | None
"""What an operation reads: ``(operation, output)``, an input of the program by name, a constant, or nothing."""

Describe = Callable[["Operation", str, np.ndarray, np.ndarray], str | None]
"""Says how a constant differs, or None: ``(expected operation, what the constant is, found, expected)``."""

_COMMUTATIVE = frozenset({"Add", "Mul"})


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of a program.

    Attributes:
        name: The layer that it belongs to, such as ``backbone.layer4.0.conv2``.
        kind: What it does, by ONNX's name.
        attributes: Its settings; lists are tuples.
        operands: What it reads.
        labels: What the operands are called in messages.
        place: Name of its own, by which what describes the network finds the operation's output again.
    """

    name: str
    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    operands: tuple[Operand, ...]
    labels: tuple[str, ...] = ()
    place: str = ""

    def label(self, index: int) -> str:
        """Return what an operand is called."""
        return self.labels[index] if index < len(self.labels) else f"input {index}"


@dataclass(frozen=True, kw_only=True)
class Program:
    """Operations, each after those that it reads, and what the program gives by name."""

    operations: tuple[Operation, ...]
    results: Mapping[str, Operand]


def compare_programs(found: Program, expected: Program, describe: Describe, *, commutes: bool = False) -> list[str]:
    """Return one line per difference, named after the expected operation; empty where both compute the same.

    Operations are paired from the results backwards, and by name and order; of two pairings the one that explains the
    found program with fewer differences is told.

    Args:
        found: What is judged.
        expected: What it should be.
        describe: Judges constants.
        commutes: Whether sums and products may have their operands in any order.
    """
    shortest: list[str] | None = None
    for pairing in (_paired_from_results, _paired_by_name):
        lines = list(dict.fromkeys(_Comparison(found, expected, pairing(found, expected), describe, commutes).lines()))
        if not lines:
            return []
        shortest = lines if shortest is None or len(lines) < len(shortest) else shortest
    return shortest or []


def paired_operations(found: Program, expected: Program) -> list[tuple[int, int]]:
    """Return ``(expected index, found index)`` of the operations that stand for each other."""
    return list(_paired_from_results(found, expected).items())


class _Comparison:
    """Two programs whose operations are paired: ``{expected index: found index}``."""

    def __init__(
        self, found: Program, expected: Program, pairs: Mapping[int, int], describe: Describe, commutes: bool
    ) -> None:
        self._found, self._expected, self._pairs = found.operations, expected.operations, pairs
        self._back = {mine: theirs for theirs, mine in pairs.items()}
        self._results = (found.results, expected.results)
        self._describe, self._commutes = describe, commutes

    def lines(self) -> Iterator[str]:
        for index, wanted in enumerate(self._expected):
            if index in self._pairs:
                yield from (f"`{wanted.name}`: {text}" for text in self._differences(index))
            else:
                yield f"`{wanted.name}`: {wanted.kind} is missing{self._after(wanted, self._expected)}"
        for index, extra in enumerate(self._found):
            if index not in self._back:
                settings = "".join(f", {name} {shown(value)}" for name, value in sorted(extra.attributes.items()))
                yield f"`{extra.name}`: {extra.kind} is extra{self._after(extra, self._found)}{settings}"
        found, expected = self._results
        for name in dict.fromkeys((*expected, *found)):
            if name not in found or name not in expected:
                yield f"output {name}: {'is missing' if name in expected else 'is extra'}"
            elif (text := self._moved("source", found[name], expected[name])) is not None:
                yield f"output {name}: {text}"

    def _differences(self, index: int) -> Iterator[str]:
        found, expected = self._found[self._pairs[index]], self._expected[index]
        if found.kind != expected.kind:
            yield f"{found.kind}, expected {expected.kind}"
            return
        for name in sorted({*found.attributes, *expected.attributes}):
            got, want = (side.attributes.get(name) for side in (found, expected))
            if not _equal(got, want):
                yield f"{name} {shown(got)}, expected {shown(want)}"
        if self._permuted(found.operands, expected):
            if not (self._commutes and expected.kind in _COMMUTATIVE):
                moved = [pair for pair in zip(found.operands, expected.operands, strict=True) if self._moved("", *pair)]
                sources = (
                    ", ".join(self._source(operand, operations) for operand in side)
                    for side, operations in zip(zip(*moved, strict=True), (self._found, self._expected), strict=True)
                )
                yield f"inputs in the order {', expected '.join(sources)}"
            return
        for place, (got, want) in enumerate(zip_longest(found.operands, expected.operands)):
            label = expected.label(place)
            if isinstance(got, np.ndarray) and isinstance(want, np.ndarray):
                text = self._describe(expected, label, got, want)
                if text is not None:
                    yield f"{label} {text}"
            elif label == "bias" and _is_zero(got) and _is_zero(want):
                continue
            elif (text := self._moved(label, got, want)) is not None:
                yield text

    def _permuted(self, operands: Sequence[Operand], expected: Operation) -> bool:
        """Whether an operation reads the right tensors in another order."""
        if any(operand is None or isinstance(operand, np.ndarray) for operand in (*operands, *expected.operands)):
            return False
        got = [self._origin(operand, found=True) for operand in operands]
        want = [self._origin(operand, found=False) for operand in expected.operands]
        return got != want and Counter(got) == Counter(want)

    def _moved(self, label: str, got: Operand, want: Operand) -> str | None:
        """Say that an operand comes from elsewhere, or None where it does not."""
        if isinstance(got, np.ndarray) or isinstance(want, np.ndarray) or got is None or want is None:
            same = got is None and want is None
        else:
            same = self._origin(got, found=True) == self._origin(want, found=False)
        if same:
            return None
        return f"{label} is {self._source(got, self._found)}, expected {self._source(want, self._expected)}"

    def _origin(self, operand: Operand, *, found: bool) -> object:
        """Return where an operand comes from in terms of the expected program, past what has no counterpart."""
        operations, known = (self._found, self._back) if found else (self._expected, self._pairs)
        while _produced(operand):
            index, output = operand
            if index in known:
                return (known[index] if found else index, output)
            operand = next((entry for entry in operations[index].operands if isinstance(entry, tuple | str)), None)
        return operand

    def _source(self, operand: Operand, operations: Sequence[Operation]) -> str:
        if operand is None:
            return "absent"
        if isinstance(operand, np.ndarray):
            return f"a constant {list(operand.shape)}"
        if isinstance(operand, str):
            return operand if " " in operand else f"the input {operand}"
        index, output = operand
        return f"`{operations[index].name}`" + (f" (output {output})" if output else "")

    def _after(self, operation: Operation, operations: Sequence[Operation]) -> str:
        """Say what an operation without a counterpart reads."""
        sources = [self._source(entry, operations) for entry in operation.operands if isinstance(entry, tuple | str)]
        return f" after {', '.join(sources[:2])}" if sources else ""


def _paired_from_results(found: Program, expected: Program) -> dict[int, int]:
    """Walk both programs from their results at once; where one has an operation more, step over it."""
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    open_pairs = [(found.results[name], expected.results[name]) for name in expected.results if name in found.results]
    while open_pairs:
        got, want = open_pairs.pop()
        if not (_produced(got) and _produced(want)):
            continue
        mine, theirs = got[0], want[0]
        if theirs in pairs or mine in taken:
            continue
        left, right = found.operations[mine], expected.operations[theirs]
        if left.kind != right.kind:
            over_left = [entry for entry in left.operands if _kind(found, entry) == right.kind]
            over_right = [entry for entry in right.operands if _kind(expected, entry) == left.kind]
            if over_left or over_right:
                open_pairs.append((over_left[0], want) if over_left else (got, over_right[0]))
                continue
        pairs[theirs] = mine
        taken.add(mine)
        open_pairs += reversed(list(zip(left.operands, right.operands, strict=False)))
    return pairs


def _paired_by_name(found: Program, expected: Program) -> dict[int, int]:
    """Pair operations of one name and kind, the first with the first, and the rest in order by what they do."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, operation in enumerate(found.operations):
        places[operation.name, operation.kind].append(index)
    pairs = {}
    for index, operation in enumerate(expected.operations):
        if same := places[operation.name, operation.kind]:
            pairs[index] = same.pop(0)
    rest = [index for index in range(len(expected.operations)) if index not in pairs]
    left = sorted(set(range(len(found.operations))) - set(pairs.values()))
    wanted = [_signature(expected.operations[index]) for index in rest]
    given = [_signature(found.operations[index]) for index in left]
    for tag, low, high, start, stop in SequenceMatcher(None, wanted, given, autojunk=False).get_opcodes():
        if tag == "equal" or (tag == "replace" and high - low == stop - start):
            pairs |= dict(zip(rest[low:high], left[start:stop], strict=True))
    return pairs


def _signature(operation: Operation) -> str:
    return repr((operation.kind, sorted(operation.attributes.items(), key=lambda item: item[0])))


def _produced(operand: Operand) -> TypeGuard[tuple[int, int]]:
    return isinstance(operand, tuple)


def _is_zero(bias: Operand) -> bool:
    """Whether a bias adds nothing; exporters leave such a one out."""
    return bias is None or (isinstance(bias, np.ndarray) and not bias.any())


def _kind(program: Program, operand: Operand) -> str | None:
    return program.operations[operand[0]].kind if _produced(operand) else None


def _equal(got: object, want: object) -> bool:
    if isinstance(got, np.ndarray) or isinstance(want, np.ndarray):
        return np.array_equal(np.asarray(got), np.asarray(want))
    return got == want


def shown(value: object) -> str:
    """Return a setting or a constant as messages show it."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else tuple(value.ravel().tolist())
    if value is None:
        return "absent"
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, tuple):
        more = f" … ({len(value)})" if len(value) > 8 else ""
        return f"[{', '.join(shown(entry) for entry in value[:8])}{more}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
