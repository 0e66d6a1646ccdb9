"""What the network of an ONNX file computes, whatever its types and the names of its parts. onnx and NumPy only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from nrd_trt.graph.decode_nodes import decode_nodes
from nrd_trt.graph.formats import FP8, INT8, UINT8, UINT8_AROUND_128, NumberFormat
from nrd_trt.graph.metadata import TypeChoices, read_choices, read_facts
from nrd_trt.graph.program import graph_program
from nrd_trt.graph.tensors import copy_model, rename_tensors
from nrd_trt.graph.words import LAYOUT, computed, gelu_input, in_words_of_pytorch, without_shapes
from nrd_trt.program import Operand, Operation, Program, paired_operations, shown
from nrd_trt.specs import Target

_PASSED = frozenset({"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"})
_SIGN_KEEPING = frozenset({"MaxPool", "Expand", "Resize", "Concat"})


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """An activation between QuantizeLinear and DequantizeLinear.

    Attributes:
        operand: What is quantised, in the network's program; None where that is no part of it.
        name: The layer that gives it.
        scale: The file's scale; NaN where it is not one number.
        faults: What is wrong with the pair itself, in words.
        readers: ``(operation, operand)`` of the network's program that read it.
        numbers: What it is quantised to, or should be.
    """

    operand: Operand
    name: str
    scale: float
    faults: tuple[str, ...]
    readers: tuple[tuple[int, int], ...] = ()
    numbers: NumberFormat = INT8

    @property
    def range(self) -> float:
        """Largest magnitude that it represents."""
        return self.scale * self.numbers.largest


@dataclass(frozen=True, kw_only=True)
class FileNetwork:
    """The network of a file without types: from its pixels to theta and guidance, or to logits.

    Attributes:
        program: Its operations; weights that are stored in 8 bits are float64, times their scale.
        pixels: Tensor of the file that the network reads.
        results: Tensors of the file that the network gives.
        quantized: Its activations in 8 bits.
        numbers: What its weights in 8 bits are stored in, or should be.
    """

    program: Program
    pixels: str
    results: Mapping[str, str]
    quantized: tuple[QuantizedTensor, ...] = field(default=())
    numbers: NumberFormat = INT8


def file_network(model: onnx.ModelProto) -> FileNetwork | None:
    """Return the network of a file, or None where the file has no ending of this toolkit."""
    results = _ends(model)
    if results is None:
        return None
    stored = {tensor.name for tensor in model.graph.initializer}
    image = next((entry.name for entry in model.graph.input if entry.name not in stored), "")
    whole = graph_program(model, list(results.values()))
    target = (read_choices(model) or TypeChoices()).target
    numbers = FP8 if read_facts(model).precision == "fp8" else INT8
    return _Reduced(without_shapes(whole), results, image, target, numbers).network()


def named_as(model: onnx.ModelProto, other: onnx.ModelProto) -> onnx.ModelProto:
    """Return a file whose operations are called as those at the same places of another file of its network.

    What has a name of the other file keeps it, and where everything has, the file itself is returned.

    Args:
        model: In any precision.
        other: Gives the names of nodes and tensors.
    """
    network, known = file_network(model), file_network(other)
    if network is None or known is None:
        return model
    nodes = {node.output[0]: node.name for node in other.graph.node if node.output}
    taken = {node.name for node in model.graph.node}
    if taken.issuperset(nodes[entry.place] for entry in known.program.operations):
        return model
    pairs = paired_operations(network.program, known.program)
    places = [(network.program.operations[mine].place, known.program.operations[right].place) for right, mine in pairs]
    fixed = {entry.name for entry in (*model.graph.input, *model.graph.output)}
    made = {name for node in model.graph.node for name in node.output}
    names = {old: new for old, new in (*places, (network.pixels, known.pixels)) if old not in fixed and new not in made}
    result = copy_model(model)
    rename_tensors(result.graph.node, names)
    del result.graph.value_info[:]
    for node in result.graph.node:
        name = nodes.get(node.output[0]) if node.output else None
        node.name = node.name if name is None or name in taken else name
    return result


def _ends(model: onnx.ModelProto) -> dict[str, str] | None:
    """Return the tensors that end the network by name: what the decode reads, or a baseline's logits."""
    decodes = decode_nodes(model)
    if decodes:
        theta, guidance, *_ = [*map(str, decodes[0].input), "", ""]
        return {"theta": theta, "guidance": guidance}
    made_by = {name: node for node in model.graph.node for name in node.output}
    output = next((entry.name for entry in model.graph.output if entry.name == "logits"), None)
    if output is None:
        node = made_by.get("mask")
        while node is not None and node.op_type != "Resize":
            node = made_by.get(node.input[0]) if node.input else None
        output = node.input[0] if node is not None else None
    return None if output is None else {"logits": output}


class _Reduced:
    """Leaves casts and quantisation out of a program."""

    def __init__(
        self, whole: Program, results: Mapping[str, str], image: str, target: Target, numbers: NumberFormat
    ) -> None:
        self._whole, self._results, self._image = whole, results, image
        self._target, self._numbers = target, numbers
        self._operations: list[Operation] = []
        self._done: dict[int, Operand] = {}
        self._readers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._after_conv = self._conv_dependent()
        self._uses = Counter(
            entry[0] for step in whole.operations for entry in step.operands if isinstance(entry, tuple)
        )
        self._has_tokens = any(entry.kind == "LayerNormalization" for entry in whole.operations)
        self._pixels = self._entry()

    def network(self) -> FileNetwork:
        for index in self._reachable():
            self._done[index] = self._reduce(index)
        results = {name: self._known(self._whole.results[tensor]) for name, tensor in self._results.items()}
        operations = self._whole.operations
        quantized = tuple(self._quantized())
        pixels = operations[self._pixels[0]].place if isinstance(self._pixels, tuple) else self._image
        return FileNetwork(
            program=Program(operations=tuple(self._operations), results=results),
            pixels=pixels,
            results=self._results,
            quantized=quantized,
            numbers=self._numbers,
        )

    def _conv_dependent(self) -> list[bool]:
        dependent: list[bool] = []
        for operation in self._whole.operations:
            reads = [dependent[entry[0]] for entry in operation.operands if isinstance(entry, tuple)]
            dependent.append(operation.kind == "Conv" or any(reads))
        return dependent

    def _entry(self) -> Operand:
        """Return what the first convolution reads, before casts and quantisation: the normalised image."""
        first = next((entry for entry in self._whole.operations if entry.kind == "Conv"), None)
        return None if first is None or not first.operands else self._stripped(first.operands[0])

    def _stripped(self, operand: Operand) -> Operand:
        while isinstance(operand, tuple) and self._passes(operation := self._whole.operations[operand[0]]):
            if operation.kind == "Cast" and not self._is_float_cast(operation):
                break
            operand = operation.operands[0]
        return operand

    def _passes(self, operation: Operation) -> bool:
        passed = operation.kind in _PASSED or (self._has_tokens and operation.kind in LAYOUT)
        return passed and bool(operation.operands)

    def _is_float_cast(self, operation: Operation) -> bool:
        """Whether a cast reads what was computed; the image itself is cast by the preprocessing."""
        return not (isinstance(operation.operands[0], str))

    def _reachable(self) -> list[int]:
        needed: set[int] = set()
        waiting = [entry for entry in self._whole.results.values() if isinstance(entry, tuple)]
        while waiting:
            index, _ = waiting.pop()
            if index not in needed:
                needed.add(index)
                waiting += [entry for entry in self._whole.operations[index].operands if isinstance(entry, tuple)]
        return sorted(needed)

    def _known(self, operand: Operand) -> Operand:
        if operand is self._pixels or (isinstance(operand, tuple) and operand == self._pixels):
            return "pixels"
        if isinstance(operand, str):
            return "pixels" if operand == self._pixels else operand
        if not isinstance(operand, tuple):
            return operand
        done = self._done.get(operand[0])
        return (done[0], operand[1]) if isinstance(done, tuple) else done

    def _reduce(self, index: int) -> Operand:
        """Return what stands for an operation in the reduced program."""
        operation = self._whole.operations[index]
        if not self._after_conv[index] and operation.kind not in _PASSED:
            if isinstance(self._pixels, tuple) and index <= self._pixels[0]:
                return f"preprocessing {operation.name}"
        if self._passes(operation):
            data = self._known(operation.operands[0])
            if operation.kind == "DequantizeLinear" and isinstance(data, np.ndarray):
                return _dequantized(self._with_known(operation), data)
            return data
        known = self._with_known(operation)
        if operation.kind == "Squeeze" and (start := self._part(operation)) is not None:
            known = replace(known, kind="Slice", operands=known.operands[:1], attributes={"part": start})
        if self._has_tokens and (joined := self._joined(operation, known)) is not None:
            return joined
        for place, operand in enumerate(operation.operands):
            if (dequantized := self._dequantized(operand)) is not None:
                self._readers[dequantized].append((len(self._operations), place))
        self._operations.append(in_words_of_pytorch(known))
        return (len(self._operations) - 1, 0)

    def _joined(self, operation: Operation, known: Operation) -> Operand:
        """Return what stands for a constant, the bias of a linear layer or the end of a GELU; None for others."""
        if (constant := computed(known)) is not None:
            return constant
        if (data := gelu_input(known, self._operations)) is not None and self._read_once(operation, known, 4):
            del self._operations[-4:]
            self._operations.append(replace(known, kind="Gelu", operands=(data,), labels=(), attributes={}))
            return (len(self._operations) - 1, 0)
        for entry, bias in zip(known.operands, known.operands[::-1], strict=True) if known.kind == "Add" else ():
            layer = self._operations[entry[0]] if isinstance(entry, tuple) else None
            if not isinstance(entry, tuple) or layer is None or not isinstance(bias, np.ndarray):
                continue
            if layer.kind == "Gemm" and len(layer.operands) == 2 and self._read_once(operation, known, 1):
                self._operations[entry[0]] = replace(layer, operands=(*layer.operands, bias))
                return entry
        return None

    def _part(self, operation: Operation) -> int | None:
        """Return where along an axis a Squeeze takes what a Slice cut out of it; None where it does not."""
        source = operation.operands[0] if operation.operands else None
        cut = self._whole.operations[source[0]] if isinstance(source, tuple) else None
        start = cut.operands[1] if cut and cut.kind == "Slice" and len(cut.operands) > 1 else None
        return int(start.item()) if isinstance(start, np.ndarray) and start.size == 1 else None

    def _read_once(self, operation: Operation, known: Operation, steps: int) -> bool:
        """Whether so many steps before an operation, from its latest input on, have one reader each."""
        tensors = [entry for entry in known.operands if isinstance(entry, tuple)]
        latest = max(tensors)
        operand = operation.operands[[entry is latest for entry in known.operands].index(True)]
        while steps and isinstance(operand, tuple) and self._uses[operand[0]] == 1:
            step = self._whole.operations[operand[0]]
            steps -= not self._passes(step)
            operand = next((entry for entry in step.operands if isinstance(entry, tuple)), None)
        return steps == 0

    def _dequantized(self, operand: Operand) -> int | None:
        """Return the DequantizeLinear that an operand comes from, past casts."""
        while isinstance(operand, tuple) and self._passes(operation := self._whole.operations[operand[0]]):
            if operation.kind == "DequantizeLinear":
                return operand[0]
            operand = operation.operands[0]
        return None

    def _with_known(self, operation: Operation) -> Operation:
        return replace(operation, operands=tuple(map(self._known, operation.operands)))

    def _quantized(self) -> Iterable[QuantizedTensor]:
        operations = self._whole.operations
        seen: set[int] = set()
        for index in self._reachable():
            operation = operations[index]
            if operation.kind != "DequantizeLinear" or isinstance(self._known(operation.operands[0]), np.ndarray):
                continue
            source = operation.operands[0]
            pair = operations[source[0]] if isinstance(source, tuple) else None
            if not isinstance(source, tuple) or pair is None or pair.kind != "QuantizeLinear":
                yield QuantizedTensor(operand=None, name=operation.name, scale=np.nan, faults=("no QuantizeLinear",))
                continue
            seen.add(source[0])
            yield replace(self._pair(pair, operation), readers=tuple(self._readers[index]))
        for index in self._reachable():
            if operations[index].kind == "QuantizeLinear" and index not in seen:
                pair = operations[index]
                yield QuantizedTensor(operand=None, name=pair.name, scale=np.nan, faults=("no DequantizeLinear",))

    def _pair(self, quantize: Operation, dequantize: Operation) -> QuantizedTensor:
        faults = []
        sides = (self._with_known(quantize), self._with_known(dequantize))
        scales, zeros = ([_at(side, place) for side in sides] for place in (1, 2))
        if any(scale.size != 1 for scale in scales) or scales[0].ravel()[0] != scales[1].ravel()[0]:
            faults.append(f"quantised with scale {shown(scales[0])}, read with {shown(scales[1])}")
        operand = self._known(quantize.operands[0])
        formats = self._formats(operand)
        kind = formats[0].dtype
        if any(zero.size and not np.isin(zero.astype(float), [one.zero for one in formats]).all() for zero in zeros):
            expected = " or ".join(str(one.zero) for one in formats)
            faults.append(f"zero point {shown(zeros[0])} and {shown(zeros[1])}, expected {expected}")
        if any(zero.dtype != kind for zero in zeros):
            faults.append(f"quantised to {zeros[0].dtype} and read from {zeros[1].dtype}, expected {kind}")
        name = self._operations[operand[0]].name if isinstance(operand, tuple) else str(operand)
        scale = scales[0].item() if scales[0].size == 1 else np.nan
        numbers = formats[0] if not zeros[0].any() else formats[-1]
        return QuantizedTensor(operand=operand, name=name, scale=scale, faults=tuple(faults), numbers=numbers)

    def _formats(self, operand: Operand) -> tuple[NumberFormat, ...]:
        """Return what an activation may be quantised to, of one type."""
        if self._target == "gpu":
            return (self._numbers,)
        return (UINT8, UINT8_AROUND_128) if self._never_negative(operand) else (UINT8_AROUND_128,)

    def _never_negative(self, operand: Operand) -> bool:
        if not isinstance(operand, tuple):
            return False
        operation = self._operations[operand[0]]
        if operation.kind == "Clip":
            return bool(np.all(np.asarray(_at(operation, 1)) >= 0))
        passes = operation.kind in _SIGN_KEEPING and all(map(self._never_negative, operation.operands))
        return operation.kind == "Relu" or passes


def _at(operation: Operation, place: int) -> np.ndarray:
    operand = operation.operands[place] if len(operation.operands) > place else None
    return np.asarray(operand) if isinstance(operand, np.ndarray) else np.zeros(0, np.uint8)


def _dequantized(operation: Operation, stored: np.ndarray) -> np.ndarray | str:
    """Return stored numbers times their scale, float64, or say why that cannot be done."""
    scale, zero = (np.asarray(_at(operation, place), np.float64) for place in (1, 2))
    if not scale.size:
        return "a weight in 8 bits whose scale is no constant"
    axis = int(operation.attributes.get("axis", 1))
    axis += stored.ndim if axis < 0 else 0
    channels = stored.shape[axis] if 0 <= axis < stored.ndim else 0
    for what, values in (("scales", scale), ("zero points", zero)):
        if values.size not in (0, 1, channels):
            return f"a weight in 8 bits with {values.size} {what} along axis {axis} of {list(stored.shape)}"
    shape = [-1 if place == axis else 1 for place in range(stored.ndim)]
    centred = stored.astype(np.float64) - (_along(zero, shape) if zero.size else 0.0)
    return np.asarray(centred * _along(scale, shape))


def _along(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return values.reshape(shape) if values.size > 1 else values.reshape(())
