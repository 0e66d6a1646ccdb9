"""What a difference between two tensors looks like: channels in another order, scaled or shifted. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_SAME = 1 - 1e-4  # correlation from which two planes are the same picture; neighbouring colours stay below it
_SHOWN = 4
_QUIET = 0.1  # channels and rows below this share of the whole are compared with that share


def describe_pixels(reference: np.ndarray, got: np.ndarray) -> str | None:
    """Tell how normalised inputs ``(3, h, w)`` differ, or None where it is no known way."""
    want, found = (array.reshape(3, -1).astype(np.float64) for array in (reference, got))
    likeness = np.nan_to_num(np.corrcoef(found, want)[:3, 3:])
    order = likeness.argmax(1).tolist()
    if likeness.max(1).min() < _SAME:
        return None
    if sorted(order) == [0, 1, 2] and order != [0, 1, 2] and np.diag(likeness).min() < _SAME:
        swapped = "red and blue are swapped (RGB and BGR)" if order == [2, 1, 0] else "the channels are permuted"
        return f"{swapped}: channels 0, 1, 2 of the file are {', '.join(map(str, order))} of PyTorch"
    fits = [np.polyfit(want[channel], found[channel], 1) for channel in range(3)]
    listed = ", ".join(f"{slope:.3f}·x {offset:+.3f}" for slope, offset in fits)
    return f"another mean or standard deviation: channels 0, 1, 2 of the file are {listed} of PyTorch's x"


def describe_channels(
    reference: np.ndarray, got: np.ndarray, tolerance: float, known_orders: Mapping[str, np.ndarray]
) -> str | None:
    """Tell how the channels of a stage differ, or None where it is no known way.

    Args:
        reference: ``(C, h, w)``.
        got: The same shape.
        tolerance: Share of a channel's spread within which two channels are the same.
        known_orders: ``(C,)`` channels of the reference that would be read for each channel, by what that means.
    """
    want, found = (array.reshape(len(array), -1).astype(np.float64) for array in (reference, got))
    if not np.isfinite(found).all():
        return f"{int((~np.isfinite(found)).sum())} values are not finite: the range of the type is exceeded"
    limit = tolerance * np.maximum(want.std(1), _QUIET * want.std())
    wrong = np.flatnonzero(_distance(found, want) > limit)
    if not wrong.size:
        return None
    for meaning, order in known_orders.items():
        if (_distance(found, want[order]) <= limit).all():
            return meaning
    moved = [int(channel) for channel in wrong if _elsewhere(found[channel], want, int(channel), limit)]
    if len(moved) == len(wrong):
        return f"{len(moved)} channels are permuted, from channel {moved[0]} on"
    return _scaled(want, found, wrong, limit)


def describe_tables(
    reference: Sequence[np.ndarray], found: Mapping[str, Sequence[np.ndarray]], tolerance: float
) -> str | None:
    """Tell by how much of a step the coordinates of a file are off, or None where they are right.

    Args:
        reference: The columns' and the rows' table ``(f,)``.
        found: The same, by the place in the file.
        tolerance: In steps.
    """
    for place, tables in found.items():
        shifts = []
        for want, got in zip(reference, tables, strict=True):
            step = float(np.abs(np.diff(want)).mean()) or 1.0
            off = (np.asarray(got) - want) / step
            shifts.append(off if np.abs(off).max() > tolerance else np.zeros(1))
        if any(np.any(shift) for shift in shifts):
            columns, rows = (f"{shift.mean():+.2f}" for shift in shifts)
            return f"the coordinates of {place} are off by {columns} of a step along x and {rows} along y"
    return None


def describe_weights(
    reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float
) -> str | None:
    """Tell which weights of a file are not the checkpoint's, or None where all are.

    Args:
        reference: Weights by name.
        found: Those of the file under the same names; names on one side only are not compared.
        tolerance: Largest root mean square of the difference over that of the reference, of any row of a weight.
    """
    compared = [name for name in found if name in reference and reference[name].shape == found[name].shape]
    wrong = []
    for name in compared:
        want, got = (np.atleast_1d(side[name]).astype(np.float64) for side in (reference, found))
        rows = _wrong_rows(want, got, tolerance)
        if rows.size:
            wrong.append(_weight(name, want, got, rows, tolerance))
    if not wrong:
        return None
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return f"{len(wrong)} of {len(compared)} weights are not the checkpoint's: {', '.join(wrong[:_SHOWN])}{more}"


def _wrong_rows(want: np.ndarray, got: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the rows of a weight that differ; a quiet one is compared with a share of the whole weight."""
    rows = want.reshape(len(want), -1)
    size = np.sqrt((rows**2).mean(1))
    limit = tolerance * np.maximum(size, max(_QUIET * np.sqrt((want**2).mean()), np.finfo(np.float32).tiny))
    wrong: np.ndarray = np.flatnonzero(~(_distance(got.reshape(rows.shape), rows) <= limit))
    return wrong


def _weight(name: str, want: np.ndarray, got: np.ndarray, rows: np.ndarray, tolerance: float) -> str:
    """Return a weight's name, with its factor where all of it is scaled, else with the rows that differ."""
    factor = float((want * got).sum() / ((want**2).sum() or 1.0))
    if not _wrong_rows(factor * want, got, tolerance).size:
        return f"{name} (×{factor:.2f})"
    return f"{name} ({f'rows {rows[0]}–{rows[-1]}' if len(rows) > 1 else f'row {rows[0]}'})"


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the root mean square difference per channel."""
    distance: np.ndarray = np.sqrt(((first - second) ** 2).mean(1))
    return distance


def _elsewhere(channel: np.ndarray, want: np.ndarray, own: int, limit: np.ndarray) -> bool:
    """Whether a channel is another one of the reference."""
    distances = _distance(np.broadcast_to(channel, want.shape), want)
    distances[own] = np.inf
    nearest = int(distances.argmin())
    return bool(distances[nearest] <= limit[nearest])


def _scaled(want: np.ndarray, found: np.ndarray, wrong: np.ndarray, limit: np.ndarray) -> str | None:
    """Tell the factor and offset of the wrong channels where a straight line explains them all."""
    slopes = []
    for channel in wrong:
        centred = want[channel] - want[channel].mean()
        slope = float((centred * found[channel]).sum() / ((centred**2).sum() or 1.0))
        rest = found[channel] - found[channel].mean() - slope * centred
        if np.sqrt((rest**2).mean()) > 2 * max(abs(slope), 1.0) * limit[channel]:
            return None
        slopes.append(slope)
    low, high = min(slopes), max(slopes)
    factor = f"{low:.2f}" if high - low < 0.01 else f"{low:.2f} to {high:.2f}"
    which = f"channel {wrong[0]} is" if len(wrong) == 1 else f"{len(wrong)} channels, from {wrong[0]} on, are"
    return f"{which} scaled by {factor}, up to an offset"
