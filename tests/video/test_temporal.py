"""Stillness, flicker and the smoothers, on sequences worked out by hand and on random ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from nrd_trt.errors import ConfigError
from nrd_trt.video.temporal import (
    FlickerMeter,
    Hysteresis,
    LogitsEma,
    Smoother,
    Stillness,
    parse_smoothing,
)

SCALE = 4
SMOOTHERS = ("none", "hysteresis:3", "ema:0.3")


def made(text: str, *, has_logits: bool = True) -> Smoother:
    return parse_smoothing(text, has_logits=has_logits, upsample=SCALE)


def logits_of(mask: np.ndarray) -> np.ndarray:
    """Logits ``(1, 6, h/4, w/4)`` that speak for the class in the upper left corner of each block."""
    return (np.arange(6)[:, None, None] == mask[::SCALE, ::SCALE])[None].astype(np.float32)


def run(smoother: Smoother, masks: Sequence[np.ndarray], stills: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [smoother(mask, {"logits": logits_of(mask)}, still) for mask, still in zip(masks, stills, strict=True)]


def blocks(values: np.ndarray) -> np.ndarray:
    """Enlarge ``(h, w)`` so that each value fills a block of the logits."""
    return values.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def test_a_pixel_is_still_while_no_channel_changes_by_more_than_the_threshold_nor_the_size() -> None:
    stillness = Stillness()
    first = np.full((2, 3, 3), 100, np.uint8)
    second = first.copy()
    second[0] = [[108, 92, 100], [109, 100, 100], [100, 91, 100]]
    second[1] = [[100, 100, 109], [100, 100, 91], [100, 100, 100]]
    assert not stillness(first).any()
    assert stillness(second).tolist() == [[True, False, False], [False, False, True]]
    assert stillness(second).all()
    stillness(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))  # extreme values do not wrap around
    assert not stillness(np.array([[[255, 255, 255], [0, 0, 0]]], np.uint8)).any()
    small, large = np.zeros((4, 4, 3), np.uint8), np.zeros((8, 4, 3), np.uint8)
    assert [bool(stillness(image).all()) for image in (small, small, large, large)] == [False, True, False, True]
    assert stillness(small).shape == (4, 4)


def test_flicker_is_the_share_of_still_pixels_that_changed_over_all_pairs() -> None:
    meter, nothing, everything = FlickerMeter(), np.zeros((2, 2), np.bool_), np.ones((2, 2), np.bool_)
    meter.update(np.array([[0, 1], [2, 3]], np.uint8), everything)  # the first has no pair
    assert meter.flicker is None
    meter.update(np.array([[5, 1], [2, 3]], np.uint8), nothing)
    assert meter.flicker is None
    meter.update(np.array([[0, 1], [2, 4]], np.uint8), np.array([[0, 1], [0, 1]], np.bool_))  # 1 of 2
    meter.update(np.array([[0, 2], [2, 4]], np.uint8), everything)  # 1 of 4
    assert meter.flicker == 2 / 6
    for mask in (np.zeros((1, 2)), np.ones((1, 2)), np.zeros((2, 2)), np.zeros((2, 2))):  # a new size, a new pair
        meter.update(mask.astype(np.uint8), np.ones(mask.shape, np.bool_))
    assert meter.flicker == 4 / 12


def test_what_is_given_may_be_overwritten_after_the_call() -> None:
    stillness, image = Stillness(), np.zeros((4, 4, 3), np.uint8)
    stillness(image)
    image[:] = 50
    assert not stillness(image).any()
    meter, mask, still = FlickerMeter(), np.zeros((2, 2), np.uint8), np.ones((2, 2), np.bool_)
    meter.update(mask, still)
    mask[:] = 5
    meter.update(mask, still)
    assert meter.flicker == 1


@pytest.mark.parametrize("name", SMOOTHERS)
def test_masks_belong_to_the_caller_arguments_are_neither_written_nor_kept_and_a_new_size_starts_over(
    name: str,
) -> None:
    rng = np.random.default_rng(0)
    frames = [(blocks(rng.integers(0, 6, (2, 2), dtype=np.uint8)), rng.random((8, 8)) < 0.7) for _ in range(8)]
    expected = run(made(name), [mask for mask, _ in frames], [still for _, still in frames])
    smoother, got = made(name), []
    for mask, still in frames:
        arguments = mask.copy(), logits_of(mask), still.copy()
        shown = smoother(arguments[0], {"logits": arguments[1]}, arguments[2])
        assert not any(np.shares_memory(shown, array) for array in arguments)
        np.testing.assert_array_equal(arguments[0], mask)
        np.testing.assert_array_equal(arguments[1], logits_of(mask))
        got.append(shown.copy())
        for array in (shown, *arguments):
            array[:] = 0
    np.testing.assert_array_equal(got, expected)
    new = np.full((12, 12), 3, np.uint8)
    np.testing.assert_array_equal(run(smoother, [new], [np.ones((12, 12), np.bool_)])[0], new)


@pytest.mark.parametrize(
    ("frames", "seen", "moves", "shown"),
    [
        (1, "0120", "0000", "0120"),
        (2, "01011220", "00000000", "00001122"),
        (3, "011011122", "000000000", "000000111"),
        (3, "0112221", "0000000", "0002222"),  # 0 is gone for three frames, whatever came instead
        (3, "01212121", "00000000", "00011111"),
        (3, "0121", "0010", "0022"),  # where the image changed, at once
        (3, "01111", "01000", "01111"),
        (3, "01000", "01000", "01110"),  # back again takes as long
        (2, "0110110", "0000000", "0011111"),
    ],
)
def test_hysteresis_on_each_pixel(frames: int, seen: str, moves: str, shown: str) -> None:
    smoother = Hysteresis(frames)
    for number, move, expected in zip(seen, moves, shown, strict=True):  # the second pixel never changes
        mask, still = np.array([[int(number), 7]], np.uint8), np.array([[move == "0", True]])
        assert smoother(mask, {}, still).tolist() == [[int(expected), 7]]


def ema_of_one_block(weight: float, values: Sequence[float], stills: Sequence[np.ndarray]) -> list[int]:
    """Run on one logit of two classes: 0 and a value; returns the class of the block."""
    smoother, mask = LogitsEma(weight, upsample=SCALE), np.zeros((SCALE, SCALE), np.uint8)
    logits = [np.array([0, value], np.float32).reshape(1, 2, 1, 1) for value in values]
    shown = [smoother(mask, {"logits": one}, still) for one, still in zip(logits, stills, strict=True)]
    assert all((one == one[0, 0]).all() for one in shown)
    return [int(one[0, 0]) for one in shown]


STILL, MOVED = np.ones((SCALE, SCALE), np.bool_), np.zeros((SCALE, SCALE), np.bool_)


def test_ema_is_the_weighted_mean_of_the_logits() -> None:
    # Means at weight 1/2: -4, -1, 0.5, -0.75, 0.125
    assert ema_of_one_block(0.5, [-4, 2, 2, -2, 1], [STILL] * 5) == [0, 0, 1, 0, 1]
    assert ema_of_one_block(1, [-4, 2, 2, -2, 1], [STILL] * 5) == [0, 1, 1, 0, 1]
    # At weight 1/4: -4, -2.5, -1.375, -0.53, 0.102
    assert ema_of_one_block(0.25, [-4, 2, 2, 2, 2], [STILL] * 5) == [0, 0, 0, 0, 1]


def test_ema_forgets_what_was_where_the_image_changed() -> None:
    assert ema_of_one_block(0.25, [-9, 1, 1], [STILL, MOVED, STILL]) == [0, 1, 1]
    half = STILL.copy()
    half[:2] = False  # the frame's weight is 1/4 + 3/4 * 1/2 = 5/8
    assert ema_of_one_block(0.25, [-5, 2.9], [STILL, half]) == [0, 0]  # -1.875 + 1.8125
    assert ema_of_one_block(0.25, [-5, 3.1], [STILL, half]) == [0, 1]  # -1.875 + 1.9375


def test_ema_changes_only_the_blocks_that_changed() -> None:
    smoother, before = LogitsEma(0.1, upsample=SCALE), np.zeros((8, 8), np.uint8)
    after, still = np.ones((8, 8), np.uint8), blocks(np.array([[1, 1], [0, 1]], np.bool_))
    shown = run(smoother, [before, after], [still, still])[1]
    assert shown[::4, ::4].tolist() == [[0, 0], [1, 0]]


def test_ema_without_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"smooth='ema': expected an engine that gives logits.*mask and logits"):
        made("ema", has_logits=False)
    assert made("hysteresis", has_logits=False).name == "hysteresis:2"


@pytest.mark.parametrize(
    ("text", "name", "lag_frames"),
    [
        ("none", "none", 0),
        ("hysteresis", "hysteresis:2", 1),
        ("hysteresis:5", "hysteresis:5", 4),
        ("ema", "ema:0.3", 0.7 / 0.3),
        ("ema:.5", "ema:0.5", 1),
        ("ema:1", "ema:1", 0),
    ],
)
def test_the_option_names_a_smoother(text: str, name: str, lag_frames: float) -> None:
    smoother = made(text)
    assert smoother.name == name
    assert smoother.lag_frames == pytest.approx(lag_frames)
    assert made(name).name == name


def test_other_options_and_numbers_out_of_range_are_refused() -> None:
    for text in ("", "None", "none:1", "hysteresis:", "hysteresis:2.5", "ema:", "ema:x", "ema:1.2.3"):
        with pytest.raises(ConfigError, match=f"smooth={text!r}: expected none, hysteresis, hysteresis:FRAMES, ema or"):
            made(text)
    for frames in (0, -1, 256):
        with pytest.raises(ConfigError, match=f"expected 1 to 255 frames, got {frames}"):
            Hysteresis(frames)
    for weight in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(ConfigError, match=f"expected a weight above 0 and up to 1, got {weight}"):
            LogitsEma(weight, upsample=SCALE)
