"""Histograms against NumPy's, estimators against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nrd_trt.calibration.histograms import LEVELS, Histogram, TensorFigures, describe, estimate
from nrd_trt.calibration.recipes import RECIPES

BINS = 2048


def histogram_of(*batches: np.ndarray, bins: int = BINS) -> Histogram:
    histogram = Histogram(bins)
    for batch in batches:
        histogram.add(batch, float(np.abs(batch).max()))
    return histogram


def heavy_tailed(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=count).astype(np.float32)


def error_of(values: np.ndarray, amax: float) -> float:
    """Mean squared error of symmetric int8, value by value."""
    step = amax / LEVELS
    rounded = np.clip(np.rint(values.astype(np.float64) / step), -LEVELS, LEVELS) * step
    return float(((values - rounded) ** 2).mean())


def test_counts_are_those_of_numpy() -> None:
    values = heavy_tailed(100_000)
    histogram = histogram_of(values)
    edges = np.arange(BINS + 1) * histogram.width
    assert (histogram.counts == np.histogram(np.abs(values), edges)[0]).all()
    assert histogram.largest == np.abs(values).max()
    assert histogram.width * BINS / 2 <= histogram.largest < histogram.width * BINS


def test_range_doubles_without_losing_a_count() -> None:
    batches = [heavy_tailed(3000, seed) * scale for seed, scale in enumerate((0.01, 1, 0.1, 300))]
    grown, shrunk = histogram_of(*batches), histogram_of(*reversed(batches))
    assert grown.counts.sum() == 12_000
    assert (grown.counts == shrunk.counts).all() and grown.width == shrunk.width
    assert (grown.counts == histogram_of(np.concatenate(batches)).counts).all()


@pytest.mark.parametrize("largest", [1.0, 2.0, 2.0**-120, 3e38, float(np.nextafter(np.float32(4), np.float32(0)))])
def test_extreme_values_are_counted(largest: float) -> None:
    histogram = histogram_of(np.array([0, -largest, largest], np.float32))
    assert histogram.counts.sum() == 3
    assert histogram.largest == np.float32(largest)


def test_values_left_out_count_for_the_largest() -> None:
    histogram = Histogram(BINS)
    histogram.add(None, 1.7)
    assert estimate(histogram, RECIPES["mse"]) == 1.7
    assert describe(histogram, 1.7) == TensorFigures(largest=1.7, clipped=None, error=None)
    histogram.add(heavy_tailed(1000), 100.0)
    histogram.add(None, 50.0)
    assert histogram.largest == 100.0
    assert estimate(histogram, RECIPES["minmax"]) == 100.0
    assert histogram.counts.sum() == 1000


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentile_is_that_of_numpy(percentile: float) -> None:
    values = heavy_tailed(200_000)
    histogram = histogram_of(values)
    found = estimate(histogram, replace(RECIPES["percentile"], percentile=percentile))
    assert found == pytest.approx(np.percentile(np.abs(values), percentile), abs=2 * histogram.width)
    assert describe(histogram, found).clipped == pytest.approx(1 - percentile / 100, abs=2e-3)
    assert (found == histogram.largest) == (percentile == 100)


@pytest.mark.parametrize("seed", range(3))
def test_mse_is_the_best_of_a_brute_force_search(seed: int) -> None:
    values = heavy_tailed(50_000, seed)
    histogram = histogram_of(values, bins=8192)
    found = estimate(histogram, RECIPES["mse"])
    candidates = np.linspace(0.05, 1, 400) * np.abs(values).max()
    best = min(error_of(values, amax) for amax in candidates)
    assert error_of(values, found) <= 1.01 * best
    assert found < np.abs(values).max()  # a tail this long is worth clipping
    for amax in (found, histogram.largest):
        figures = describe(histogram, amax)
        assert figures.error == pytest.approx(np.sqrt(error_of(values, amax) / (values**2).mean()), rel=0.02)
        assert figures.largest == histogram.largest
        assert figures.clipped == pytest.approx((np.abs(values) > amax).mean(), abs=1e-3)
    assert figures.clipped == 0


def reference_entropy(counts: np.ndarray, width: float, ends: np.ndarray) -> float:
    """The published algorithm of TensorRT's calibrator, bin by bin in plain Python."""
    counts = counts.astype(float)
    counts[0] = counts[1]
    divergences = []
    for end in ends:
        reference = counts[:end].copy()
        reference[-1] += counts[end:].sum()
        quantised = np.zeros(end)
        for level in range(128):
            members = [i for i in range(end) if i * 128 // end == level and counts[i] > 0]
            for i in members:
                quantised[i] = sum(counts[j] for j in members) / len(members)
        p, q = reference / reference.sum(), quantised / quantised.sum()
        terms = [0.0 if a == 0 else (np.inf if b == 0 else a * np.log(a / b)) for a, b in zip(p, q, strict=True)]
        divergences.append(sum(terms))
    return float(ends[len(ends) - 1 - int(np.argmin(divergences[::-1]))] * width)


def test_entropy_is_that_of_the_published_algorithm() -> None:
    values = np.concatenate([heavy_tailed(30_000), np.array([14.0, 15.5], np.float32)])
    histogram = histogram_of(values, bins=512)
    end = int(np.flatnonzero(histogram.counts)[-1]) + 1
    ends = np.unique(np.linspace(128, end, min(256, end - 127)).astype(int))
    expected = min(reference_entropy(histogram.counts, histogram.width, ends), histogram.largest)
    found = estimate(histogram, RECIPES["entropy"])
    assert found == expected
    assert found < 0.9 * histogram.largest


@pytest.mark.parametrize("name", RECIPES)
def test_ranges_of_unusual_values(name: str) -> None:
    """None exceeds the largest value, and many zeros, half of what a ReLU puts out, shrink none."""
    for values in (np.full(5000, 0.75, np.float32), np.array([1e-3], np.float32), heavy_tailed(10), heavy_tailed(5000)):
        assert 0 < estimate(histogram_of(values, bins=4096), RECIPES[name]) <= np.abs(values).max()
    values = np.abs(np.random.default_rng(0).standard_normal(100_000)).astype(np.float32)
    padded = np.concatenate([values, np.zeros(300_000, np.float32)])
    plain, with_zeros = (estimate(histogram_of(v, bins=4096), RECIPES[name]) for v in (values, padded))
    assert with_zeros > 0.7 * plain
