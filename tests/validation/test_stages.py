"""Errors of stages and what they look like, on small arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nrd_trt.figures import StageFigures
from nrd_trt.validation.hints import describe_channels, describe_pixels, describe_tables, describe_weights
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
    assert "1 values are not finite" in str(describe_channels(TENSOR, wrong, 0.01, {}))


def test_the_first_stage_is_that_of_the_data_not_of_the_figures() -> None:
    def one(stage: str, error: float) -> StageFigures:
        return StageFigures(stage=stage, error=error, tolerance=0.1, within=error <= 0.1)

    found = {stage: one(stage, error) for stage, error in (("mask", 1.0), ("logits", 0.5), ("c1", 0.05), ("c4", 0.2))}
    assert first_beyond(found) == "c4"
    assert first_beyond({"mask": one("mask", 0.0)}) is None


PICTURE = RNG.standard_normal((3, 9, 9))


def test_inputs_that_differ_in_a_known_way_or_in_none() -> None:
    swapped, permuted, scaled, unknown = (
        str(describe_pixels(PICTURE, got))
        for got in (PICTURE[::-1] * 1.02 + 0.3, PICTURE[[1, 2, 0]], PICTURE * 2 + 1, PICTURE[:, ::-1])
    )
    assert swapped.startswith("red and blue are swapped (RGB and BGR)")
    assert permuted == "the channels are permuted: channels 0, 1, 2 of the file are 1, 2, 0 of PyTorch"
    assert "another mean or standard deviation: channels 0, 1, 2 of the file are 2.000·x +1.000" in scaled
    assert unknown == "None"


def test_channels_that_are_moved_or_scaled() -> None:
    rolled = TENSOR[[0, 2, 1, 3, 4, 5]]
    assert describe_channels(TENSOR, TENSOR, 0.01, {}) is None
    assert describe_channels(TENSOR, rolled, 0.01, {}) == "2 channels are permuted, from channel 1 on"
    known = {"so it is": np.array([0, 2, 1, 3, 4, 5])}
    assert describe_channels(TENSOR, rolled, 0.01, known) == "so it is"
    scaled = TENSOR.copy()
    scaled[3] = 2 * scaled[3] + 5
    assert describe_channels(TENSOR, scaled, 0.01, {}) == "channel 3 is scaled by 2.00, up to an offset"
    assert describe_channels(TENSOR, RNG.standard_normal(TENSOR.shape), 0.01, {}) is None


def test_coordinates_are_off_in_steps() -> None:
    x, y = np.arange(8) / 8 * 0.3 + 1, np.arange(8) / 8 * -2.0
    said = describe_tables((x, y), {"node N": (x, y), "function F": (x + 0.3 / 16, y)}, 1e-3)
    assert said == "the coordinates of function F are off by +0.50 of a step along x and +0.00 along y"
    assert describe_tables((x, y), {"node N": (x, y)}, 1e-3) is None


def test_weights_that_are_not_the_checkpoints() -> None:
    weights = {name: RNG.standard_normal((4, 3)) for name in ("a", "b", "c")}
    assert describe_weights(weights, {**weights, "unknown": np.ones(3)}, 1e-3) is None
    changed = {"a": weights["a"] * 2, "b": weights["b"].copy(), "c": weights["c"]}
    changed["b"][2] += 1
    said = describe_weights(weights, changed, 1e-3)
    assert said == "2 of 3 weights are not the checkpoint's: a (×2.00), b (row 2)"
    many = {"w": RNG.standard_normal((400, 5))}
    one = {"w": many["w"].copy()}
    one["w"][123] *= 2  # a twentieth of the whole weight's size
    assert describe_weights(many, one, 0.4) == "1 of 1 weights are not the checkpoint's: w (row 123)"
