"""Labels that belong to neighbouring frames are told from those that do not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from nrd_trt.data.synthetic import street_clip
from nrd_trt.video.sinks.labels import FrameShift, ShiftMeter

CLASSES = 11


@cache
def truth() -> list[np.ndarray]:
    """Labels of a drawn street that moves."""
    return [scene.label for scene in street_clip(5, (96, 160), frames=16)]


def drawn(seed: int = 0) -> list[np.ndarray]:
    """Masks of the street by a network that errs at one pixel of ten."""
    rng = np.random.default_rng(seed)
    return [
        np.where(rng.random(label.shape) < 0.1, rng.integers(0, CLASSES, label.shape), label) % CLASSES
        for label in truth()
    ]


def measured(masks: list[np.ndarray], labels: list[np.ndarray], step: int = 1) -> FrameShift | None:
    meter = ShiftMeter(CLASSES)
    for index, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        meter.add(index * step, label, mask)
    return meter.result()


@pytest.mark.parametrize("shift", [-3, -1, 1, 2])
def test_labels_of_neighbouring_frames_are_named_with_both_figures(shift: int) -> None:
    """The label of frame i + shift is that of frame i."""
    found = measured(drawn(), list(np.roll(truth(), shift, axis=0)))
    assert found is not None
    assert found.shift == shift
    assert found.miou_shifted > found.miou_as_paired + 0.02
    assert str(found).startswith(f"labels look shifted by {shift:+d} frame")
    assert f"mIoU {found.miou_as_paired:.2f} as paired, {found.miou_shifted:.2f} shifted" in str(found)


def test_a_sound_pairing_is_left_alone() -> None:
    assert measured(drawn(), truth()) is None
    still = [truth()[0]] * 16  # nothing moves: every frame fits as well
    assert measured([mask for mask in drawn()[:1]] * 16, still) is None
    noise = [np.random.default_rng(index).integers(0, CLASSES, label.shape) for index, label in enumerate(truth())]
    assert measured(noise, truth()) is None


def test_few_frames_and_labels_that_are_far_apart_tell_nothing() -> None:
    shifted = list(np.roll(truth(), 1, axis=0))
    assert measured(drawn()[:9], shifted[:9]) is None
    assert measured(drawn(), shifted, step=4) is None
    assert measured(drawn(), shifted, step=2) is not None  # +2 frames, of which every second has a label


def test_no_more_than_three_frames_are_held() -> None:
    meter = ShiftMeter(CLASSES)
    for index, (mask, label) in enumerate(zip(drawn(), truth(), strict=True)):
        meter.add(index, label, mask)
    assert [kept.index for kept in meter._recent] == [13, 14, 15]
    assert {kept.mask.shape for kept in meter._recent} == {(24, 40)}
    assert all(kept.mask.base is None for kept in meter._recent)  # not a view of the whole mask
