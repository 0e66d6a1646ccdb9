"""Histograms of magnitudes and the estimators that turn them into ranges. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nrd_trt.calibration.recipes import Recipe
from nrd_trt.specs import Estimator

LEVELS = 127
"""Positive levels of symmetric int8; -128 is not used."""

_SMALLEST_EXPONENT = -100  # below 2**-100 everything is zero: the bins' scale would leave float32
_CHUNK = 1 << 18  # values binned at once, so that temporaries stay in the cache
_FIRST_CANDIDATE = 128  # of the entropy search, in bins: one bin per level
_CANDIDATES = 256


class Histogram:
    """Counts of magnitudes in equal bins over ``[0, range)``.

    The range is a power of two. When a larger value comes it doubles and pairs of bins merge, which loses no count and
    makes the result independent of the order of the values.

    Args:
        bins: A power of two.

    Attributes:
        counts: ``(bins,) int64``.
        largest: Largest magnitude of all values, also of those that are not counted.
    """

    def __init__(self, bins: int) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.largest = 0.0
        self._exponent = _SMALLEST_EXPONENT

    @property
    def width(self) -> float:
        """Width of one bin."""
        return math.ldexp(1.0, self._exponent) / len(self.counts)

    def add(self, values: np.ndarray | None, largest: float) -> None:
        """Count values.

        Args:
            values: Float32 of any shape and sign; finite. None where only the largest is of interest.
            largest: Magnitude that none of them exceeds, finite; it may be that of a value left out.
        """
        self.largest = max(self.largest, largest)
        exponent = max(math.frexp(largest)[1], _SMALLEST_EXPONENT)
        half = len(self.counts) // 2
        while self._exponent < exponent:
            self.counts[:half] = self.counts[0::2] + self.counts[1::2]
            self.counts[half:] = 0
            self._exponent += 1
        if values is None:
            return
        scale = np.float32(1 / self.width)
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            # Scaling by a power of two is exact, so a value is never counted one bin too high.
            indices = (np.abs(flat[start : start + _CHUNK]) * scale).astype(np.int32)
            self.counts += np.bincount(indices, minlength=len(self.counts))


@dataclass(frozen=True, kw_only=True)
class TensorFigures:
    """What a range does to the values of one tensor.

    Attributes:
        largest: Largest magnitude of all values.
        clipped: Share of the counted values above the range, 0-1; None where no values were counted.
        error: Root of the mean squared error of rounding and clipping, over the root mean square of the values; None
            likewise.
    """

    largest: float
    clipped: float | None
    error: float | None


def estimate(histogram: Histogram, recipe: Recipe) -> float:
    """Return the range of a tensor that is not zero everywhere: the largest magnitude that 8 bits shall represent.

    Args:
        histogram: With ``largest > 0``. Without any count the range is `largest`.
        recipe: Names the estimator.
    """
    amax = histogram.largest
    if recipe.estimator != "minmax" and histogram.counts.any():
        amax = min(_ESTIMATORS[recipe.estimator](histogram, recipe), histogram.largest)
    return amax


def describe(histogram: Histogram, amax: float) -> TensorFigures:
    """Return what a range does to the counted values."""
    counts, centres = histogram.counts, _centres(histogram)
    total = counts.sum()
    if total == 0:
        return TensorFigures(largest=histogram.largest, clipped=None, error=None)
    power = float((counts * centres**2).sum())
    error = float(_squared_errors(counts, centres, np.array([amax]))[0])
    return TensorFigures(
        largest=histogram.largest,
        clipped=float(counts[np.arange(len(counts)) * histogram.width > amax].sum() / total),
        error=math.sqrt(error / power) if power else 0.0,
    )


def _percentile(histogram: Histogram, recipe: Recipe) -> float:
    """The value below which `percentile` of the values lie, interpolated within its bin."""
    if recipe.percentile == 100:
        return histogram.largest
    below = np.cumsum(histogram.counts)
    wanted = recipe.percentile / 100 * below[-1]
    index = int(np.searchsorted(below, wanted))
    inside = (wanted - (below[index] - histogram.counts[index])) / histogram.counts[index]
    return float((index + inside) * histogram.width)


def _mse(histogram: Histogram, recipe: Recipe) -> float:
    """The range with the least squared error; a coarse search, then a fine one around its best."""
    counts, centres = histogram.counts, _centres(histogram)
    candidates = histogram.largest * np.geomspace(1 / 64, 1, 64)
    for _ in range(3):
        best = float(candidates[np.argmin(_squared_errors(counts, centres, candidates))])
        spread = float(candidates[1] / candidates[0])
        candidates = np.minimum(best * np.geomspace(1 / spread, spread, 17), histogram.largest)
    return best


def _squared_errors(counts: np.ndarray, centres: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Sum of the squared errors of int8 per candidate range, ``(candidates,) float64``."""
    used = np.flatnonzero(counts)
    weights, values = counts[used], centres[used]
    steps = candidates[:, None] / LEVELS
    rounded = np.minimum(np.rint(values / steps), LEVELS) * steps
    sums: np.ndarray = (weights * (values - rounded) ** 2).sum(axis=1)
    return sums


def _entropy(histogram: Histogram, recipe: Recipe) -> float:
    """The range whose 128 levels lose the least information: TensorRT's second entropy calibrator.

    Zeros and what is nearest to them are not counted (the first bin is given the count of the second). Of equal
    divergences the widest range is taken.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    end = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if end <= _FIRST_CANDIDATE:
        return histogram.largest
    ends = np.unique(np.linspace(_FIRST_CANDIDATE, end, min(_CANDIDATES, end - _FIRST_CANDIDATE + 1)).astype(int))
    divergences = np.array([_divergence(counts, int(stop)) for stop in ends])
    best = len(ends) - 1 - int(np.argmin(divergences[::-1]))
    return float(ends[best] * histogram.width)


def _divergence(counts: np.ndarray, stop: int) -> float:
    """Kullback-Leibler divergence of the first `stop` bins, the rest clipped into the last, from their 128 levels."""
    kept = counts[:stop]
    reference = kept.copy()
    reference[-1] += counts[stop:].sum()
    level = np.arange(stop) * (LEVELS + 1) // stop
    used = kept > 0
    occupied = np.bincount(level[used], minlength=LEVELS + 1)
    mean = np.bincount(level, weights=kept, minlength=LEVELS + 1) / np.maximum(occupied, 1)
    quantised = np.where(used, mean[level], 0)
    p, q = reference / reference.sum(), quantised / max(quantised.sum(), 1e-300)
    known = p > 0
    if (q[known] == 0).any():  # the clipped values fell into an empty bin: infinitely far
        return math.inf
    return float((p[known] * np.log(p[known] / q[known])).sum())


def _centres(histogram: Histogram) -> np.ndarray:
    """Middle of each bin, below the largest value; that of the first is zero, where the many zeros of a ReLU are."""
    middles = (np.arange(len(histogram.counts)) + 0.5) * histogram.width
    centres: np.ndarray = np.minimum(middles, histogram.largest)
    centres[0] = 0
    return centres


_ESTIMATORS: Mapping[Estimator, Callable[[Histogram, Recipe], float]] = {
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
