"""Mask metrics against hand-computed cases and a loop over the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from nrd_trt.validation.masks import confusion_matrix, iou_per_class, mean_iou, named_iou, pixel_agreement

REFERENCE = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], np.uint8)
MASK = np.array([[0, 0, 1, 1], [1, 0, 0, 1]], np.uint8)
# Counted pixels: 0→0 twice, 0→1 once, 1→1 twice, 1→0 once; class 2 is nowhere.
MATRIX = np.array([[2, 1, 0], [1, 2, 0], [0, 0, 0]])


def random_masks(seed: int, classes: int, *, present: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference, mask = rng.integers(0, present, (2, 9, 14)).astype(np.uint8)
    reference[rng.random(reference.shape) < 0.2] = 255
    assert present <= classes
    return reference, mask


def test_confusion_matrix_of_a_small_case() -> None:
    matrix = confusion_matrix(REFERENCE, MASK, 3)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, MATRIX)


@pytest.mark.parametrize(("classes", "present"), [(2, 2), (11, 11), (11, 4), (150, 150), (256, 255)])
def test_confusion_matrix_is_a_loop_over_the_pixels(classes: int, present: int) -> None:
    reference, mask = random_masks(classes, classes, present=present)
    expected = np.zeros((classes, classes), int)
    for want, got in zip(reference.ravel().tolist(), mask.ravel().tolist(), strict=True):
        if want != 255:
            expected[want, got] += 1
    np.testing.assert_array_equal(confusion_matrix(reference, mask, classes), expected)


def test_ignored_pixels_do_not_count_whatever_the_mask_says() -> None:
    changed = MASK.copy()
    changed[REFERENCE == 255] = 2
    np.testing.assert_array_equal(confusion_matrix(REFERENCE, changed, 3), MATRIX)


def test_iou_of_a_small_case() -> None:
    # Each present class: 2 hits in a union of 4.
    np.testing.assert_array_equal(iou_per_class(MATRIX), [0.5, 0.5, np.nan])
    assert mean_iou(MATRIX) == 0.5
    assert pixel_agreement(MATRIX) == pytest.approx(4 / 6)
    assert named_iou(MATRIX, ["sky", "road", "car"]) == {"sky": 0.5, "road": 0.5, "car": None}


def test_iou_is_a_loop_over_the_pixels() -> None:
    reference, mask = random_masks(3, 6, present=5)
    pairs = [pair for pair in zip(reference.ravel().tolist(), mask.ravel().tolist(), strict=True) if pair[0] != 255]
    expected = []
    for index in range(5):
        hits = sum(want == got == index for want, got in pairs)
        expected.append(hits / sum(index in pair for pair in pairs))
    matrix = confusion_matrix(reference, mask, 6)
    np.testing.assert_allclose(iou_per_class(matrix)[:5], expected, rtol=1e-12)
    assert mean_iou(matrix) == pytest.approx(sum(expected) / 5, rel=1e-12)
    agreed = sum(want == got for want, got in pairs) / len(pairs)
    assert pixel_agreement(matrix) == pytest.approx(agreed, rel=1e-12)


def test_class_in_one_side_only_counts_as_zero() -> None:
    only_predicted = confusion_matrix(np.zeros(4, np.uint8), np.array([0, 0, 0, 1], np.uint8), 3)
    assert named_iou(only_predicted, "abc") == {"a": 0.75, "b": 0.0, "c": None}
    assert mean_iou(only_predicted) == 0.375
    only_labelled = confusion_matrix(np.array([0, 0, 0, 1], np.uint8), np.zeros(4, np.uint8), 3)
    assert mean_iou(only_labelled) == 0.375


def test_nothing_counted_is_no_figure() -> None:
    matrix = confusion_matrix(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 2)
    assert (mean_iou(matrix), pixel_agreement(matrix)) == (None, None)
    assert named_iou(matrix, "ab") == {"a": None, "b": None}


def test_last_class_of_256_is_not_lost_in_uint8_arithmetic() -> None:
    matrix = confusion_matrix(np.array([254], np.uint8), np.array([254], np.uint8), 255)
    assert matrix[254, 254] == matrix.sum() == 1
