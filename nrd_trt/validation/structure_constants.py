"""Whether a stored constant is the one that it should be, and if not, what it looks like. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nrd_trt.graph.quantize import LARGEST
from nrd_trt.program import Operation, Program

_HALF_STEP = {"float32": 2.0**-22, "float16": 2.0**-11 * 1.01, "bfloat16": 2.0**-8 * 1.01}
"""Largest relative error of a stored weight: half a step of the type; of float32 two, as float64 was rounded before."""
_SUBNORMAL = {"float32": 1e-40, "float16": 2.0**-25 * 1.01, "bfloat16": 1e-40}
_INT8_SHARE = 0.57
"""Largest error of an int8 weight in its channel's steps: half a one, and what rounding the scale adds at 127."""
_SMALLEST_STEP = float(np.finfo(np.float16).tiny)
_SAME_FACTOR = 1e-3

Elsewhere = Callable[[np.ndarray], str | None]
"""Names another layer whose constant an array is; None where it is no other's."""


def rounding_of(expected: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return how far a stored weight may be from its float64 value, element by element.

    Args:
        expected: The right weight, float64.
        dtype: Type in the file; float64 stands for int8 times a scale per output channel.
    """
    size = np.abs(expected)
    if dtype == np.float64:
        step = np.maximum(size.reshape(len(size), -1).max(axis=1) / LARGEST, _SMALLEST_STEP)
        return np.broadcast_to(_INT8_SHARE * step.reshape(-1, *[1] * (size.ndim - 1)), size.shape)
    name = dtype.name
    return np.asarray(size * _HALF_STEP.get(name, 0.0) + _SUBNORMAL.get(name, 0.0))


def describe_constant(
    found: np.ndarray, expected: np.ndarray, allowed: np.ndarray | float, elsewhere: Elsewhere = lambda array: None
) -> str | None:
    """Say how a constant differs from the right one, or None where it does not.

    Args:
        found: In the file.
        expected: The right one, of the same meaning.
        allowed: Largest difference, for all or for each value.
        elsewhere: Looks for the constant in other layers.
    """
    if found.shape != expected.shape:
        return f"has the shape {list(found.shape)}, expected {list(expected.shape)}"
    if np.array_equal(found, expected):
        return None
    if not (np.issubdtype(expected.dtype, np.number) or expected.dtype.kind in "Vfb"):
        return f"is {found.tolist()}, expected {expected.tolist()}"
    got, want = (np.atleast_1d(side.astype(np.float64)) for side in (found, expected))
    limit = np.broadcast_to(np.asarray(allowed, np.float64), got.shape)
    right = (np.abs(got - want) <= limit) | (got == want)
    if right.all():
        return None
    if got.size <= 8:
        return f"is {_numbers(got)}, expected {_numbers(want)}"
    if not got.any():
        return "is zero"
    if (factor := _factor(got, want, limit)) is not None:
        return f"is ×{factor:.4g} of the expected"
    if (place := elsewhere(found)) is not None:
        return f"is that of `{place}`"
    return _rows(got, want, right, limit)


def find_elsewhere(program: Program) -> Callable[[Operation, str], Elsewhere]:
    """Return what looks in a program for another layer with a given constant."""
    places: dict[tuple[int, ...], list[tuple[str, str, np.ndarray]]] = {}
    for operation in program.operations:
        for index, operand in enumerate(operation.operands):
            if isinstance(operand, np.ndarray) and operand.size > 8:
                places.setdefault(operand.shape, []).append((operation.name, operation.label(index), operand))

    def of(operation: Operation, label: str) -> Elsewhere:
        def search(array: np.ndarray) -> str | None:
            for name, what, constant in places.get(array.shape, ()):
                if (name, what) != (operation.name, label) and _alike(array, constant):
                    return name
            return None

        return search

    return of


def _alike(found: np.ndarray, constant: np.ndarray) -> bool:
    want = constant.astype(np.float64)
    allowed = rounding_of(want, found.dtype) if constant.dtype == np.float64 else 0.0
    return bool((np.abs(found.astype(np.float64) - want) <= allowed).all())


def _factor(got: np.ndarray, want: np.ndarray, limit: np.ndarray) -> float | None:
    """Return the factor between two arrays where one explains all."""
    factor = float((want * got).sum() / ((want**2).sum() or 1.0))
    if not np.isfinite(factor) or factor == 0 or abs(factor - 1) < _SAME_FACTOR:
        return None
    slack = limit * max(1.0, abs(factor)) + np.abs(want) * abs(factor) * _SAME_FACTOR
    return factor if (np.abs(got - factor * want) <= slack).all() else None


def _rows(got: np.ndarray, want: np.ndarray, right: np.ndarray, limit: np.ndarray) -> str:
    rows = np.flatnonzero(~right.reshape(len(right), -1).all(axis=1))
    difference = float(np.nanmax(np.abs(got - want))) if np.isfinite(got - want).any() else np.inf
    if len(got) == 1 or len(rows) == 0:
        return f"differs in {int((~right).sum())} of {right.size} values, by up to {difference:.3g}"
    text = f"differs in {_ranges(rows)} of {len(got)}"
    if not got[rows].any():
        return f"{text}: zero there"
    if (factor := _factor(got[rows], want[rows], limit[rows])) is not None:
        return f"{text}: ×{factor:.4g} there"
    if len(rows) > 1 and _permuted(got[rows], want[rows], limit[rows]):
        return f"{text}: in another order"
    whole = (
        f"{int((~right).sum())} of {right.size} values" if len(rows) == len(got) else text.removeprefix("differs in ")
    )
    return f"differs in {whole}, by up to {difference:.3g} (values reach {float(np.abs(want).max()):.3g})"


def _permuted(got: np.ndarray, want: np.ndarray, limit: np.ndarray) -> bool:
    """Whether every row is another row of the expected; both sides are matched by their sums."""
    flat = [side.reshape(len(side), -1) for side in (got, want)]
    orders = [np.lexsort((side[:, -1], side[:, 0], side.sum(axis=1).round(6))) for side in flat]
    slack = float(limit.max()) * 2 + 1e-6 * float(np.abs(want).max())
    if np.abs(got - want).max() <= 20 * slack:  # values so near to the right ones are no others
        return False
    return bool((np.abs(flat[0][orders[0]] - flat[1][orders[1]]) <= slack).all())


def _ranges(rows: Sequence[int] | np.ndarray) -> str:
    """Return ``"row 7"``, ``"rows 3–9"``, or the first of many."""
    runs: list[list[int]] = []
    for row in map(int, rows):
        if runs and row == runs[-1][-1] + 1:
            runs[-1][1:] = [row]
        else:
            runs.append([row])
    shown = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs[:4])
    more = f" and {len(rows) - sum(_length(run) for run in runs[:4])} more" if len(runs) > 4 else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"


def _length(run: Sequence[int]) -> int:
    return run[-1] - run[0] + 1


def _numbers(values: Iterable[float] | np.ndarray) -> str:
    listed = [f"{float(value):.6g}" for value in np.asarray(values).ravel()]
    return listed[0] if len(listed) == 1 else f"[{', '.join(listed)}]"
