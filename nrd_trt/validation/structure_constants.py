"""Whether a stored constant is the one that it should be, and if not, what it looks like. NumPy only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from nrd_trt.graph.formats import FP8, INT8, NumberFormat
from nrd_trt.program import Operation, Program, shown
from nrd_trt.specs import DecodeSpec

_HALF_STEP = {"float32": 2.0**-22, "float16": 2.0**-11 * 1.01, "bfloat16": 2.0**-8 * 1.01}
"""Largest relative error of a stored weight: half a step of the type; of float32 two, as float64 was rounded before."""
_SUBNORMAL = {"float32": 1e-40, "float16": 2.0**-25 * 1.01, "bfloat16": 1e-40}
_INT8_SHARE = 0.57
"""Largest error of an int8 weight in its channel's steps: half a one, and what rounding the scale adds at 127."""
_FP8_SHARE, _FP8_SUBNORMAL = 2.0**-4 * 1.01, 2.0**-10 * 1.01
"""Largest error of an fp8 weight, relative, and below its normal numbers in its channel's steps."""
_SMALLEST_STEP = float(np.finfo(np.float16).tiny)
_SAME_FACTOR = 1e-3

_CONTROLLER = "decode_head.classifier.classifier.1"

Orders = tuple[tuple[str, np.ndarray], ...]


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What a constant may be instead of the right one.

    Attributes:
        elsewhere: Names another layer whose constant an array is; None where it is no other's.
        orders: Wrong orders of its rows, each with what it means.
        row_name: What a row is for; None where rows have no names.
    """

    elsewhere: Callable[[np.ndarray], str | None] = lambda array: None
    orders: Orders = ()
    row_name: Callable[[int], str] | None = None


def rounding_of(expected: np.ndarray, dtype: np.dtype, numbers: NumberFormat = INT8) -> np.ndarray:
    """Return how far a stored weight may be from its float64 value, element by element.

    Args:
        expected: The right weight, float64.
        dtype: Type in the file; float64 stands for 8-bit numbers times a scale per output channel.
        numbers: Which 8-bit numbers.
    """
    size = np.abs(expected)
    if dtype == np.float64:
        steps = np.maximum(size.reshape(len(size), -1).max(axis=1) / numbers.largest, _SMALLEST_STEP)
        step = steps.reshape(-1, *[1] * (size.ndim - 1))
        if numbers is FP8:
            return np.asarray(_FP8_SHARE * size + _FP8_SUBNORMAL * step)
        return np.broadcast_to(_INT8_SHARE * step, size.shape)
    name = dtype.name
    return np.asarray(size * _HALF_STEP.get(name, 0.0) + _SUBNORMAL.get(name, 0.0))


def describe_constant(
    found: np.ndarray, expected: np.ndarray, allowed: np.ndarray | float, readings: Readings | None = None
) -> str | None:
    """Say how a constant differs from the right one, or None where it does not.

    Args:
        found: In the file.
        expected: The right one, of the same meaning.
        allowed: Largest difference, for all or for each value.
        readings: What else it may be.
    """
    if found.shape != expected.shape:
        return f"has the shape {list(found.shape)}, expected {list(expected.shape)}"
    if np.array_equal(found, expected):
        return None
    if not (np.issubdtype(expected.dtype, np.number) or expected.dtype.kind in "Vfb"):
        return f"is {found.tolist()}, expected {expected.tolist()}"
    got, want = (np.atleast_1d(side.astype(np.float64)) for side in (found, expected))
    limit = np.broadcast_to(np.asarray(allowed, np.float64), got.shape)
    right = _near(got, want, limit)
    if right.all():
        return None
    if got.size <= 8:
        return f"is {shown(got)}, expected {shown(want)}"
    if not np.isfinite(got).all():
        return f"has {int((~np.isfinite(got)).sum())} values that are not finite"
    if not got.any():
        return "is zero"
    if (factor := _factor(got, want, limit)) is not None:
        return f"is ×{factor:.4g} of the expected"
    readings = readings or Readings()
    if moved := _moved(got, want, limit, readings.orders):
        return moved
    if (place := readings.elsewhere(found)) is not None:
        return f"is that of `{place}`"
    return _rows(got, want, right, limit, readings.row_name)


def readings_of(
    program: Program, spec: DecodeSpec | None, numbers: NumberFormat = INT8
) -> Callable[[Operation, str], Readings]:
    """Return what tells of the constants of a program what else they may be.

    Args:
        program: The right one.
        spec: Constants of the network's decode, where it has one.
        numbers: See `rounding_of`.
    """
    from nrd_trt.decode.misread import describe_channel, misread_orders

    places: dict[tuple[int, ...], list[tuple[str, str, np.ndarray]]] = defaultdict(list)
    for operation in program.operations:
        for index, operand in enumerate(operation.operands):
            if isinstance(operand, np.ndarray) and operand.size > 8:
                places[operand.shape].append((operation.name, operation.label(index), operand))

    def of(operation: Operation, label: str) -> Readings:
        def elsewhere(array: np.ndarray) -> str | None:
            others = (entry for entry in places[array.shape] if entry[:2] != (operation.name, label))
            owners = [name for name, _, constant in others if _alike(array, constant, numbers)]
            return owners[0] if len(owners) == 1 else None

        if spec is None or operation.name != _CONTROLLER:
            return Readings(elsewhere=elsewhere)
        orders = tuple(misread_orders(spec))
        return Readings(elsewhere=elsewhere, orders=orders, row_name=partial(describe_channel, spec=spec))

    return of


def _near(got: np.ndarray, want: np.ndarray, limit: np.ndarray) -> np.ndarray:
    near: np.ndarray = (np.abs(got - want) <= limit) | (got == want)
    return near


def _alike(found: np.ndarray, constant: np.ndarray, numbers: NumberFormat) -> bool:
    want = constant.astype(np.float64)
    allowed = rounding_of(want, found.dtype, numbers) if constant.dtype == np.float64 else 0.0
    return bool((np.abs(found.astype(np.float64) - want) <= allowed).all())


def _factor(got: np.ndarray, want: np.ndarray, limit: np.ndarray) -> float | None:
    """Return the factor between two arrays where one explains all."""
    factor = float((want * got).sum() / ((want**2).sum() or 1.0))
    if not np.isfinite(factor) or factor == 0 or abs(factor - 1) < _SAME_FACTOR:
        return None
    slack = limit * max(1.0, abs(factor)) + np.abs(want) * abs(factor) * _SAME_FACTOR
    return factor if (np.abs(got - factor * want) <= slack).all() else None


def _moved(got: np.ndarray, want: np.ndarray, limit: np.ndarray, orders: Orders) -> str | None:
    """Say in which other layout the values are, or that nothing but input channels is lost."""
    for meaning, order in orders:
        if len(order) == len(got) and _near(got, want[order], limit[order]).all():
            return f"stands as if {meaning}"
    if got.ndim == 4 and got.shape[2] > 1:
        turned: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "transposed": lambda array: array.swapaxes(2, 3),
            "mirrored": lambda array: array[..., ::-1, ::-1],
        }
        for what, turn in turned.items():
            if got.shape == turn(want).shape and _near(got, turn(want), turn(limit)).all():
                return f"has its kernels {what}"
    if got.ndim == 4:
        others = (0, 2, 3)
        lost = np.flatnonzero(want.any(axis=others) & ~got.any(axis=others))
        if lost.size and _near(*(np.delete(side, lost, axis=1) for side in (got, want, limit))).all():
            return f"is zero in {_ranges(lost, 'input channel')} of {got.shape[1]}"
    return None


def _rows(
    got: np.ndarray,
    want: np.ndarray,
    right: np.ndarray,
    limit: np.ndarray,
    row_name: Callable[[int], str] | None,
) -> str:
    rows = np.flatnonzero(~right.reshape(len(right), -1).all(axis=1))
    if len(got) == 1 or len(rows) == 0:
        difference = float(np.abs(got - want).max())
        return f"differs in {int((~right).sum())} of {right.size} values, by up to {difference:.3g}"
    text = f"differs in {_ranges(rows)} of {len(got)}"
    if row_name is not None and len(rows) < len(got):
        owners = list(dict.fromkeys(map(row_name, rows.tolist())))
        text += f" ({', '.join(owners[:4])}{f' and {len(owners) - 4} more' if len(owners) > 4 else ''})"
    chosen = got[rows], want[rows], limit[rows]
    if not got[rows].any():
        return f"{text}: zero there"
    if got.ndim == 1 and len(rows) <= 4:
        return f"{text}: {shown(got[rows])} there, expected {shown(want[rows])}"
    if (factor := _factor(*chosen)) is not None:
        return f"{text}: ×{factor:.4g} there"
    if len(rows) > 1 and _permuted(*chosen):
        return f"{text}: in another order"
    factors = [_factor(*row) for row in zip(*chosen, strict=True)] if got[0].size > 1 else [None]
    if None not in factors:
        return f"{text}: ×{min(factors):.4g} to ×{max(factors):.4g} there"  # type: ignore[type-var]
    share = np.sqrt(((got[rows] - want[rows]) ** 2).sum() / ((want[rows] ** 2).sum() or np.nan))
    difference = float(np.abs(got - want).max())
    off = f", off by {share:.1%} of their size" if share < 10 else ""
    return f"{text}, by up to {difference:.3g} (values reach {float(np.abs(want).max()):.3g}{off})"


def _permuted(got: np.ndarray, want: np.ndarray, limit: np.ndarray) -> bool:
    """Whether every row is another row of the expected; both sides are matched by their sums."""
    flat = [side.reshape(len(side), -1) for side in (got, want)]
    orders = [np.lexsort((side[:, -1], side[:, 0], side.sum(axis=1).round(6))) for side in flat]
    slack = float(limit.max()) * 2 + 1e-6 * float(np.abs(want).max())
    if np.abs(got - want).max() <= 20 * slack:  # values so near to the right ones are no others
        return False
    return bool((np.abs(flat[0][orders[0]] - flat[1][orders[1]]) <= slack).all())


def _ranges(rows: Sequence[int] | np.ndarray, what: str = "row") -> str:
    """Return ``"row 7"``, ``"rows 3–9"``, or the first of many."""
    runs: list[list[int]] = []
    for row in map(int, rows):
        if runs and row == runs[-1][-1] + 1:
            runs[-1][1:] = [row]
        else:
            runs.append([row])
    listed = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs[:4])
    more = f" and {len(rows) - sum(_length(run) for run in runs[:4])} more" if len(runs) > 4 else ""
    return f"{what}{'' if len(rows) == 1 else 's'} {listed}{more}"


def _length(run: Sequence[int]) -> int:
    return run[-1] - run[0] + 1
