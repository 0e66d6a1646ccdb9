"""Weights and biases of a file that are not the checkpoint's, and what became of them. onnx and NumPy only.

A weight differs where it is further off than its type stores it. What is said of it is said of the numbers alone: which
rows (output channels) are zero, scaled, in another order, or another layer's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx

from nrd_trt.graph.constants import Constant, Constants
from nrd_trt.graph.quantize import weight_scales
from nrd_trt.validation.stages import Finding

_FOLDING = 1e-5
"""Share of a row's size that batch norm folded in other steps may move."""
_QUIET = 0.1  # a row below this share of the whole weight is compared with that share
_SHOWN = 4
_NOT_INPUTS = (0, 2, 3)
_TIMES = 10  # from here on a share is told as a factor
_CONTROLLER = "decode_head.classifier.classifier.1"
_SAME_SCALE = 2e-3
"""Share by which a scale stored in fp16 may be off, twice."""

Orders = Iterable[tuple[str, np.ndarray]]


def find_in_weights(
    file: onnx.ModelProto,
    reference: Mapping[str, np.ndarray],
    stages: Mapping[str, str],
    theta_orders: Orders = (),
    theta_names: Callable[[int], str] | None = None,
) -> list[Finding]:
    """Return one line per stage whose convolutions have other weights or biases than the checkpoint.

    Args:
        file: The bundle's ONNX file.
        reference: Weights by name, batch norm folded, float32.
        stages: Stage by the name of a node.
        theta_orders: Orders of the channels of theta, each with what it means.
        theta_names: Tells what a channel of theta holds.
    """
    constants, compared = Constants(file), 0
    wrong: dict[str, list[str]] = defaultdict(list)
    for node in file.graph.node:
        layer = node.name.removesuffix("/Conv")
        if node.op_type != "Conv" or f"{layer}.weight" not in reference:
            continue
        is_controller = layer == _CONTROLLER
        orders, named = (theta_orders, theta_names) if is_controller else ((), None)
        stage = stages.get(node.name, "c4")
        for name, operand in zip((f"{layer}.weight", f"{layer}.bias"), (*node.input[1:], "")[:2], strict=False):
            want, got = reference.get(name), constants.read(operand) if operand else None
            if want is None or (operand and got is None) or (got is not None and got.values.shape != want.shape):
                continue
            compared += 1
            said = _lost(want) if got is None else describe_weight(name, want, got, reference, orders, named)
            if said:
                wrong[stage].append(f"{name} ({said})")
    return [
        Finding(
            stage=stage, text=f"{len(names)} of {compared} weights are not the checkpoint's: {', '.join(_first(names))}"
        )
        for stage, names in wrong.items()
    ]


def describe_weight(
    name: str,
    want: np.ndarray,
    got: Constant,
    others: Mapping[str, np.ndarray] | None = None,
    orders: Orders = (),
    row_names: Callable[[int], str] | None = None,
) -> str | None:
    """Tell what became of a weight, or None where it is what its type can hold of the checkpoint's.

    Args:
        name: Name of the weight.
        want: The checkpoint's; rows are output channels.
        got: The file's, of the same shape.
        others: Weights of the whole network by name, of which it may be another.
        orders: Orders of the rows, each with what it means.
        row_names: Tells what a row is for.
    """
    expected, found = (array.reshape(len(array), -1).astype(np.float64) for array in (want, got.values))
    loss = np.broadcast_to(got.loss, want.shape).reshape(expected.shape)
    rows = np.flatnonzero(_differs(expected, found, loss))
    if not rows.size:
        return None
    if not np.isfinite(found).all():
        return f"{int((~np.isfinite(found)).sum())} values are not finite"
    size = np.sqrt((expected**2).mean())
    if meaning := _moved(name, want, got, others or {}, orders):
        return meaning
    said = (
        _zeros(expected, found, rows, size)
        or _zero_inputs(want, got)
        or _scaled(expected, found, loss, rows, got.scales)
        or _off(expected, found, rows)
    )
    owners = list(dict.fromkeys(map(row_names, rows.tolist()))) if row_names and len(rows) < len(want) else []
    return ", ".join([said, *_first(owners)])


def _differs(want: np.ndarray, found: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return which rows are further off than their storage and the folding explain; NaN is."""
    size = np.sqrt((want**2).mean(1))
    allowed = np.sqrt((loss**2).mean(1)) + _FOLDING * np.maximum(size, _QUIET * np.sqrt((want**2).mean()))
    with np.errstate(invalid="ignore"):
        error = np.sqrt(((found - want) ** 2).mean(1))
    differs: np.ndarray = ~(error <= np.maximum(allowed, np.finfo(np.float32).tiny))
    return differs


def _lost(want: np.ndarray) -> str | None:
    largest = float(np.abs(want).max())
    return f"the file has none; the checkpoint's, of its batch norm, reach {largest:.3g}" if largest else None


def _zeros(want: np.ndarray, found: np.ndarray, rows: np.ndarray, size: float) -> str | None:
    """Tell which rows are zero where that is all that differs."""
    if not found.any():
        return f"all zero; the checkpoint's root mean square is {size:.3g}"
    if not found[rows].any():
        return f"{_numbers(rows)} zero"
    return None


def _zero_inputs(want: np.ndarray, got: Constant) -> str | None:
    """Tell which input channels are zero where that is all that differs."""
    if want.ndim != len(_NOT_INPUTS) + 1:
        return None
    columns = np.flatnonzero(want.any(axis=_NOT_INPUTS) & ~got.values.any(axis=_NOT_INPUTS))
    if not columns.size:
        return None
    rest = [np.delete(np.broadcast_to(array, want.shape), columns, axis=1) for array in (want, got.values, got.loss)]
    flat = [array.reshape(len(array), -1).astype(np.float64) for array in rest]
    if flat[0].size and _differs(*flat).any():
        return None
    return f"{_numbers(columns).replace('row', 'input channel')} zero"


def _moved(name: str, want: np.ndarray, got: Constant, others: Mapping[str, np.ndarray], orders: Orders) -> str | None:
    """Tell of which other order, or which other layer, the values are."""
    found, loss = got.values.astype(np.float64), np.broadcast_to(got.loss, want.shape)

    def is_same(other: np.ndarray) -> bool:
        flat = [array.reshape(len(array), -1) for array in (other.astype(np.float64), found, loss)]
        return not _differs(*flat).any()

    for meaning, order in orders:
        if is_same(want[order]):
            return f"its rows stand as if {meaning}"
    if want.ndim == 4 and want.shape[2] > 1:
        for what, other in (("transposed", want.swapaxes(2, 3)), ("mirrored", want[..., ::-1, ::-1])):
            if is_same(other):
                return f"its kernels are {what}"
    sources = _row_order(want, found, loss)
    if sources is not None:
        moved = np.flatnonzero(sources != np.arange(len(sources)))
        return f"{len(moved)} rows in another order, from row {moved[0]} on"
    kind = name.rpartition(".")[2]
    owners = [
        other
        for other, values in others.items()
        if other != name and other.endswith(kind) and values.shape == want.shape and is_same(values)
    ]
    return f"those of {owners[0]}" if len(owners) == 1 else None


def _row_order(want: np.ndarray, found: np.ndarray, loss: np.ndarray) -> np.ndarray | None:
    """Return which row of the checkpoint each row of the file is, where that is one to one and not to be mistaken."""
    expected, got = (array.reshape(len(array), -1).astype(np.float64) for array in (want, found))
    products = (expected**2).sum(1) + (got**2).sum(1)[:, None] - 2 * got @ expected.T
    nearest = products.argmin(1)
    if len(set(nearest.tolist())) < len(nearest):
        return None
    return None if _differs(expected[nearest], got, loss.reshape(expected.shape)).any() else nearest


def _scaled(
    want: np.ndarray, found: np.ndarray, loss: np.ndarray, rows: np.ndarray, scales: np.ndarray | None
) -> str | None:
    """Tell the factor where every row that differs is the checkpoint's times one."""
    factors = (want * found).sum(1) / np.maximum((want**2).sum(1), np.finfo(np.float64).tiny)
    slack = np.maximum(np.abs(factors), 1)[:, None]
    if (want.shape[1] == 1 and len(want) > 1) or _differs(factors[:, None] * want, found, 2 * slack * loss).any():
        return _scaled_whole(want, found, loss)
    if scales is not None and scales.size == len(want):
        due = weight_scales(want.astype(np.float32), 0)
        if _same_scales(np.sort(scales), np.sort(due)) and not _same_scales(scales, due):
            rolls = [step for step in range(1, len(due)) if _same_scales(scales, np.roll(due, step))]
            return f"its int8 scales are those of other rows{f', rolled by {rolls[0]}' if rolls else ''}"
    low, high = float(factors[rows].min()), float(factors[rows].max())
    if high - low <= 0.01 * abs(high):
        return (
            f"×{factors[rows].mean():.2f}"
            if len(rows) == len(want)
            else f"{_numbers(rows)} ×{factors[rows].mean():.2f}"
        )
    return f"{_numbers(rows)} ×{low:.2f} to ×{high:.2f}"


def _scaled_whole(want: np.ndarray, found: np.ndarray, loss: np.ndarray) -> str | None:
    """Tell the factor of a bias where it is one number."""
    factor = float((want * found).sum() / max((want**2).sum(), np.finfo(np.float64).tiny))
    if _differs(factor * want, found, 2 * max(abs(factor), 1) * loss).any():
        return None
    return f"×{factor:.2f}"


def _same_scales(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.allclose(first, second, rtol=_SAME_SCALE))


def _off(want: np.ndarray, found: np.ndarray, rows: np.ndarray) -> str:
    """Tell by how much the rows are off, in their own size, or the one value of a bias that is."""
    if len(rows) == 1 and want.shape[1] == 1:
        return f"row {rows[0]} is {found[rows[0], 0]:.4g}, expected {want[rows[0], 0]:.4g}"
    if not want[rows].any():
        return f"{_numbers(rows)} up to {np.abs(found[rows]).max():.3g}, expected 0"
    share = np.sqrt(((found[rows] - want[rows]) ** 2).sum() / max((want[rows] ** 2).sum(), np.finfo(np.float64).tiny))
    return f"{_numbers(rows)} off by {f'{share:.1%} of' if share < _TIMES else f'{share:.3g} times'} their size"


def _numbers(rows: np.ndarray) -> str:
    """Return ``"row 7"``, ``"rows 0–15"`` or ``"17 rows from row 3 on"``."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    whole = rows[-1] - rows[0] + 1 == len(rows)
    return f"rows {rows[0]}–{rows[-1]}" if whole else f"{len(rows)} rows from row {rows[0]} on"


def _first(names: list[str]) -> list[str]:
    """Return the names that are shown, and how many more there are."""
    return [*names[:_SHOWN], *([f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])]
