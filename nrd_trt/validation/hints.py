"""What a difference between two tensors looks like: constant channels, another order, a factor. NumPy only.

Every description has to hold the numbers: it leaves no more than rounding, and clearly less than the right reading and
than every other description. Otherwise nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

import numpy as np

from nrd_trt.validation.stages import CLEARLY

_SAME_PICTURE = 0.01
"""Share of a plane's spread that may be left of it; neighbouring colours of an image leave more."""
_CONSTANT = 1e-6
_QUIET = 0.1  # channels below this share of the whole are compared with that share
_SHOWN = 4
_TABLE_STEPS = 1e-3
"""Coordinates are stored in fp32: what is off by more than this share of a step is another value."""

_ORDERS = tuple(permutations(range(3)))

Orders = Iterable[tuple[str, np.ndarray]]


def describe_pixels(reference: np.ndarray, got: np.ndarray) -> str | None:
    """Tell how normalised inputs ``(3, h, w)`` differ, or None where it is no known way."""
    want, found = (array.reshape(3, -1).astype(np.float64) for array in (reference, got))
    if still := _constant(want, found):
        return _channels(still, "constant", found[still].mean(1))
    fits = {order: [_line(want[source], found[channel]) for channel, source in enumerate(order)] for order in _ORDERS}
    left = {order: max(rest for *_, rest in lines) for order, lines in fits.items()}
    best, second = sorted(left, key=lambda order: left[order])[:2]
    error = float((_distance(found, want) / want.std(1)).max())
    limit = min(_SAME_PICTURE, error / CLEARLY)
    if left[best] > limit or left[second] <= max(CLEARLY * left[best], limit):
        return None
    if best != _ORDERS[0]:
        swapped = "red and blue are swapped (RGB and BGR)" if best == (2, 1, 0) else "the channels are permuted"
        return f"{swapped}: channels 0, 1, 2 of the file are {', '.join(map(str, best))} of PyTorch"
    listed = ", ".join(f"{slope:.3f}·x {offset:+.3f}" for slope, offset, _ in fits[best])
    return f"another mean or standard deviation: channels 0, 1, 2 of the file are {listed} of PyTorch's x"


def describe_channels(
    reference: np.ndarray,
    got: np.ndarray,
    tolerance: float,
    *,
    rounding: float | None = None,
    known_orders: Orders = (),
    names: Sequence[str] = (),
) -> list[str]:
    """Tell how the channels of a stage differ; nothing where it is no known way.

    Args:
        reference: ``(C, h, w)``, what the stage should be of the inputs that it has.
        got: The same shape.
        tolerance: Share of a channel's spread from which a channel is wrong.
        rounding: Share of it that a description may leave; None takes the tolerance.
        known_orders: ``(C,)`` channels of the reference that would be read for each channel, each with what that means.
        names: What the channels are.
    """
    want, found = (array.reshape(len(array), -1).astype(np.float64) for array in (reference, got))
    if lost := int((~np.isfinite(found)).sum()):
        return [f"{lost} values are not finite"]
    spread = np.maximum(want.std(1), max(_QUIET * want.std(), np.finfo(np.float32).tiny))
    error = _distance(found, want) / spread
    wrong = np.flatnonzero(error > tolerance)
    limit = np.minimum(tolerance if rounding is None else rounding, error / CLEARLY)
    if not wrong.size:
        return []
    if meaning := _known_order(want, found, spread, float(limit[wrong].max()), known_orders):
        return [meaning]
    still = [channel for channel in _constant(want, found) if channel in wrong]
    said = [_channels(still, "constant", found[still].mean(1), names)] if still else []
    rest = np.setdiff1d(wrong, still)
    if rest.size and _is_permuted(want, found, spread, rest, limit):
        said.append(f"{len(rest)} channels are permuted, from channel {rest[0]} on")
    elif rest.size:
        said += _scaled(want, found, spread, rest, limit, names)
    return said


def describe_tables(reference: Sequence[np.ndarray], found: Mapping[str, Sequence[np.ndarray]]) -> list[str]:
    """Tell how the coordinates of a file are off, one line for each place that has other ones.

    Args:
        reference: The columns' and the rows' table ``(f,)``.
        found: The same, by the place in the file.
    """
    steps = [float(np.abs(np.diff(table)).mean()) or 1.0 for table in reference]

    def off(tables: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [(np.asarray(got) - want) / step for got, want, step in zip(tables, wanted, steps, strict=True)]

    said = []
    for place, tables in found.items():
        shifts = off(tables, reference)
        if max(np.abs(shift).max() for shift in shifts) <= _TABLE_STEPS:
            continue
        if max(np.abs(shift).max() for shift in off(tables, reference[::-1])) <= _TABLE_STEPS:
            said.append(f"the coordinates of {place} have x and y swapped")
        elif max(np.ptp(shift) for shift in shifts) <= _TABLE_STEPS:
            columns, rows = (f"{shift.mean():+.2f}" for shift in shifts)
            said.append(f"the coordinates of {place} are off by {columns} of a step along x and {rows} along y")
        else:
            columns, rows = (f"{np.abs(shift).max():.2f}" for shift in shifts)
            said.append(
                f"the coordinates of {place} are others, by up to {columns} of a step along x and {rows} along y"
            )
    return said


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the root mean square difference per channel."""
    distance: np.ndarray = np.sqrt(((first - second) ** 2).mean(1))
    return distance


def _constant(want: np.ndarray, found: np.ndarray) -> list[int]:
    """Return the channels that have one value in the file only."""
    flat = found.std(1) <= _CONSTANT * np.maximum(np.abs(found).max(1), want.std(1))
    moving = want.std(1) > _CONSTANT * np.maximum(np.abs(want).max(1), np.finfo(np.float32).tiny)
    return np.flatnonzero(flat & moving).tolist()


def _line(want: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """Fit a straight line; return its slope, its offset, and the share of the file's spread that it leaves."""
    centred, spread = want - want.mean(), found.std()
    slope = float((centred * found).sum() / max((centred**2).sum(), np.finfo(np.float64).tiny))
    offset = float(found.mean() - slope * want.mean())
    rest = float((found - slope * want - offset).std() / max(spread, np.finfo(np.float64).tiny))
    return slope, offset, rest


def _known_order(want: np.ndarray, found: np.ndarray, spread: np.ndarray, limit: float, orders: Orders) -> str | None:
    """Return what the one order means in which the file has the channels; None where none or several fit."""
    fitting = {meaning for meaning, order in orders if (_distance(found, want[order]) <= limit * spread[order]).all()}
    return fitting.pop() if len(fitting) == 1 else None


def _is_permuted(want: np.ndarray, found: np.ndarray, spread: np.ndarray, wrong: np.ndarray, limit: np.ndarray) -> bool:
    """Whether the wrong channels are each other's, one to one, and none could be taken for a further one."""
    sources = []
    for channel in wrong:
        distance = _distance(np.broadcast_to(found[channel], want.shape), want) / spread
        nearest, second = np.argsort(distance)[:2]
        unmistakable = distance[second] > max(CLEARLY * distance[nearest], limit[channel])
        if distance[nearest] > limit[channel] or not unmistakable:
            return False
        sources.append(int(nearest))
    return bool(np.array_equal(np.sort(sources), wrong))


def _scaled(
    want: np.ndarray,
    found: np.ndarray,
    spread: np.ndarray,
    wrong: np.ndarray,
    limit: np.ndarray,
    names: Sequence[str],
) -> list[str]:
    """Tell factors or offsets where a straight line explains every wrong channel."""
    lines = [_line(want[channel], found[channel]) for channel in wrong]
    for channel, (slope, offset, _) in zip(wrong, lines, strict=True):
        rest = found[channel] - slope * want[channel] - offset
        if np.sqrt((rest**2).mean()) > min(abs(slope), 1.0) * limit[channel] * spread[channel]:
            return []
    slopes, offsets = (np.array([line[index] for line in lines]) for index in (0, 1))
    which = wrong.tolist()
    if np.abs(slopes - 1).max() <= limit[wrong].max():
        return [_channels(which, "raised by", offsets, names)]
    low, high = slopes.min(), slopes.max()
    factor = f"{low:.2f}" if high - low < 0.01 else f"{low:.2f} to {high:.2f}"
    subject = f"{_name(which[0], names)} is" if len(which) == 1 else f"{len(which)} channels, from {which[0]} on, are"
    return [f"{subject} scaled by {factor}, up to an offset"]


def _channels(channels: Sequence[int], what: str, values: np.ndarray, names: Sequence[str] = ()) -> str:
    """Name channels with a value each, e.g. ``"channel 7 is constant (0)"``."""
    if len(channels) == 1:
        text = f"{_name(channels[0], names)} is {what}"
        return f"{text} {values[0]:.3g}" if what.endswith("by") else f"{text} ({values[0]:.3g})"
    listed = ", ".join(_name(channel, names).removeprefix("channel ") for channel in channels[:_SHOWN])
    more = f" and {len(channels) - _SHOWN} more" if len(channels) > _SHOWN else ""
    low, high = values.min(), values.max()
    span = f"{low:.3g}" if high - low <= _CONSTANT * max(abs(high), 1) else f"{low:.3g} to {high:.3g}"
    value = f" {span}" if what.endswith("by") else f" ({span})"
    return f"channels {listed}{more} are {what}{value}"


def _name(channel: int, names: Sequence[str]) -> str:
    return f"channel {channel} ({names[channel]})" if names else f"channel {channel}"
