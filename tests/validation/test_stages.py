"""Errors of stages, on small arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nrd_trt.figures import StageFigures
from nrd_trt.validation.stages import StageMeter, StageTolerance, first_beyond

RNG = np.random.default_rng(5)
TENSOR = RNG.standard_normal((6, 5, 7)) * np.array([1, 2, 3, 4, 5, 0.001])[:, None, None]


def figures(want: np.ndarray, got: np.ndarray, tolerance: float = 0.01) -> StageFigures:
    meter = StageMeter(len(want))
    meter.add(want, got)
    return meter.figures("theta", StageTolerance(tensor=tolerance, channel=tolerance))


def test_the_error_is_a_share_of_the_spread() -> None:
    got = figures(TENSOR + 7, TENSOR + 7 + 0.1 * TENSOR.std())
    assert got.error == pytest.approx(0.1)
    assert got.max_abs == pytest.approx(0.1 * TENSOR.std())
    assert not got.within
    wrong = TENSOR.copy()
    wrong[5] += 0.001  # a nearly constant channel: as much as its own spread, and nothing beside the others
    assert figures(TENSOR, wrong).within
    zeros = np.zeros((2, 3, 3))
    assert figures(zeros, zeros).error == 0.0
    assert not figures(zeros, zeros + 1e-3).within
    meter = StageMeter(6)  # images are accumulated
    meter.add(TENSOR, TENSOR)
    meter.add(TENSOR, TENSOR + 0.1 * TENSOR.std())
    assert meter.figures("c1", StageTolerance(tensor=1, channel=1)).error == pytest.approx(0.1 / math.sqrt(2))


def test_one_wrong_channel_is_seen_among_many_right_ones() -> None:
    many = RNG.standard_normal((500, 4, 4))
    wrong = many.copy()
    wrong[321] *= 1.5
    got = figures(many, wrong, tolerance=0.1)
    assert got.error is not None and got.error < 0.1
    assert (got.worst_channel, got.within) == (321, False)
    assert got.worst_channel_error == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_beyond_every_tolerance(value: float) -> None:
    wrong = TENSOR.copy()
    wrong[2, 0, 0] = value
    got = figures(TENSOR, wrong, tolerance=1e9)
    assert (got.error, got.not_finite, got.within) == (None, 1, False)


def test_the_first_stage_is_that_of_the_data_not_of_the_figures() -> None:
    def one(stage: str, error: float) -> StageFigures:
        return StageFigures(stage=stage, error=error, tolerance=0.1, within=error <= 0.1)

    found = {stage: one(stage, error) for stage, error in (("mask", 1.0), ("logits", 0.5), ("c1", 0.05), ("c4", 0.2))}
    assert first_beyond(found) == "c4"
    assert first_beyond({"mask": one("mask", 0.0)}) is None
