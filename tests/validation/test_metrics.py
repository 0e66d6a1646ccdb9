"""Mask metrics against hand-computed cases and loops over the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nrd_trt.validation.metrics import (
    BorderAgreement,
    BoundaryScore,
    chance_miou,
    confusion_matrix,
    iou_per_class,
    mean_iou,
    named_iou,
    pixel_agreement,
)

REFERENCE = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], np.uint8)
MASK = np.array([[0, 0, 1, 1], [1, 0, 0, 1]], np.uint8)
# Counted pixels: 0→0 twice, 0→1 once, 1→1 twice, 1→0 once; class 2 is nowhere.
MATRIX = np.array([[2, 1, 0], [1, 2, 0], [0, 0, 0]])


# --- confusion matrix and IoU ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "present"), [(2, 2), (11, 4), (150, 150), (256, 255)])
def test_figures_are_those_of_a_loop_over_the_pixels(classes: int, present: int) -> None:
    rng = np.random.default_rng(classes)
    reference, mask = rng.integers(0, present, (2, 9, 14)).astype(np.uint8)
    reference[rng.random(reference.shape) < 0.2] = 255
    pairs = [pair for pair in zip(reference.ravel().tolist(), mask.ravel().tolist(), strict=True) if pair[0] != 255]
    expected = np.zeros((classes, classes), int)
    for want, got in pairs:
        expected[want, got] += 1
    matrix = confusion_matrix(reference, mask, classes)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, expected)
    unions = [sum(index in pair for pair in pairs) for index in range(classes)]
    hits = [sum(want == got == index for want, got in pairs) for index in range(classes)]
    iou = [hit / union if union else np.nan for hit, union in zip(hits, unions, strict=True)]
    np.testing.assert_allclose(iou_per_class(matrix), iou, rtol=1e-12)
    assert 0.0 in iou or classes < 150, "a class on one side only"
    assert mean_iou(matrix) == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert pixel_agreement(matrix) == pytest.approx(sum(hits) / len(pairs), rel=1e-12)


def test_small_case_by_hand() -> None:
    np.testing.assert_array_equal(confusion_matrix(REFERENCE, MASK, 3), MATRIX)
    changed = np.where(REFERENCE == 255, 2, MASK).astype(np.uint8)  # ignored pixels, whatever the mask says
    np.testing.assert_array_equal(confusion_matrix(REFERENCE, changed, 3), MATRIX)
    # Each present class: 2 hits in a union of 4.
    assert named_iou(MATRIX, ["sky", "road", "car"]) == {"sky": 0.5, "road": 0.5, "car": None}
    assert (mean_iou(MATRIX), pixel_agreement(MATRIX)) == (0.5, pytest.approx(4 / 6))
    nothing = confusion_matrix(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 2)
    assert (mean_iou(nothing), pixel_agreement(nothing)) == (None, None)
    assert named_iou(nothing, "ab") == {"a": None, "b": None}


# --- boundary --------------------------------------------------------------------------------------------------------


def score(reference: np.ndarray, mask: np.ndarray, classes: int, *tolerance: int) -> BoundaryScore:
    found = BoundaryScore(classes, *tolerance)
    found.add(reference, mask)
    return found


def halves(column: int) -> np.ndarray:
    """Class 0 left of a column, class 1 from it on."""
    mask = np.zeros((8, 20), np.uint8)
    mask[:, column:] = 1
    return mask


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (2, 1.0), (3, 0.0), (-2, 1.0), (-3, 0.0)])
def test_a_shifted_outline_counts_up_to_the_tolerance(shift: int, expected: float) -> None:
    assert score(halves(10), halves(10 + shift), 2).per_class().tolist() == [expected, expected]


def test_a_class_on_one_side_only_scores_0_and_one_on_none_is_left_out() -> None:
    found = score(halves(10), np.zeros((8, 20), np.uint8), 3)
    assert found.per_class()[:2].tolist() == [0.0, 0.0]
    assert np.isnan(found.per_class()[2])
    assert found.mean() == 0.0
    assert score(halves(20), halves(20), 3).mean() is None
    whole = score(halves(10), halves(10), 2)  # counts are of the whole set
    whole.add(halves(10), halves(15))
    assert whole.per_class().tolist() == [0.5, 0.5]


def test_ignored_pixels_make_no_outline() -> None:
    label, wrong = halves(10), halves(10)
    label[:, 8:13] = 255
    # What the mask draws inside is not counted, and the rim of the hole is no outline of the label.
    assert score(label, halves(10), 2).mean() is None
    wrong[4:6, 2:4] = 1
    assert score(label, wrong, 2).mean() == 0.0


@pytest.mark.parametrize(("classes", "tolerance"), [(3, 0), (5, 1), (70, 2), (256, 3)])
def test_against_a_loop_over_the_pixels(classes: int, tolerance: int) -> None:
    rng = np.random.default_rng(classes)
    small = rng.integers(0, classes - (classes == 256), (2, 6, 7)).astype(np.uint8)
    reference, mask = small.repeat(2, 1).repeat(2, 2)
    mask[:, 1:] = np.where(rng.random(mask[:, 1:].shape) < 0.5, mask[:, 1:], reference[:, 1:])
    reference[rng.random(reference.shape) < 0.1] = 255
    got = score(reference, mask, classes, tolerance).per_class()
    np.testing.assert_allclose(got, by_loop(reference, mask, classes, tolerance), rtol=0, atol=1e-12)


def by_loop(reference: np.ndarray, mask: np.ndarray, classes: int, tolerance: int) -> np.ndarray:
    counted = reference != 255
    height, width = mask.shape

    def outline(values: np.ndarray, cls: int) -> list[tuple[int, int]]:
        return [
            (y, x)
            for y in range(height)
            for x in range(width)
            if counted[y, x]
            and values[y, x] == cls
            and any(
                0 <= v < height and 0 <= u < width and counted[v, u] and values[v, u] != cls
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            )
        ]

    def share(of: list[tuple[int, int]], near: list[tuple[int, int]]) -> float:
        hits = [any((y - v) ** 2 + (x - u) ** 2 <= tolerance**2 for v, u in near) for y, x in of]
        return float(np.mean(hits)) if hits else 0.0

    result = np.full(classes, np.nan)
    for cls in range(classes):
        want, got = outline(reference, cls), outline(mask, cls)
        if want or got:
            precision, recall = share(got, want), share(want, got)
            result[cls] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return result


@pytest.mark.parametrize("reach", [0, 1, 2, 3])
def test_agreement_near_borders_against_a_loop(reach: int) -> None:
    rng = np.random.default_rng(reach)
    reference = rng.integers(0, 3, (2, 5, 6)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    mask = np.where(rng.random(reference.shape) < 0.2, 1, reference).astype(np.uint8)
    reference[rng.random(reference.shape) < 0.05] = 255
    found, near, equal = BorderAgreement(reach), 0, 0
    for want, got in zip(reference, mask, strict=True):
        found.add(want, got)
        height, width = want.shape
        places = [(y, x) for y in range(height) for x in range(width) if want[y, x] != 255]
        pairs = [(y, x, y + dy, x + dx) for y, x in places for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        outline = {
            (y, x)
            for y, x, v, u in pairs
            if 0 <= v < height and 0 <= u < width and want[v, u] != 255 and want[v, u] != want[y, x]
        }
        for y, x in places:
            if any((y - v) ** 2 + (x - u) ** 2 <= reach**2 for v, u in outline):
                near, equal = near + 1, equal + int(want[y, x] == got[y, x])
    assert (found.pixels, found.share()) == (near, pytest.approx(equal / near, abs=1e-12))
    assert 0 < near < (reference != 255).sum()


def test_without_borders_there_is_no_agreement_near_them() -> None:
    found = BorderAgreement()
    found.add(np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8))
    assert (found.share(), found.pixels) == (None, 0)


def test_the_miou_of_chance_is_that_of_shuffled_masks() -> None:
    rng = np.random.default_rng(1)
    label = rng.choice(4, 200_000, p=[0.6, 0.3, 0.1, 0.0]).astype(np.uint8)
    mask = rng.choice(4, label.size, p=[0.2, 0.2, 0.5, 0.1]).astype(np.uint8)
    matrix = confusion_matrix(label, mask, 4)
    assert chance_miou(matrix) == pytest.approx(mean_iou(matrix), abs=2e-3)
    perfect = confusion_matrix(label, label, 4)
    shuffled = mean_iou(confusion_matrix(label, rng.permutation(label), 4))
    assert chance_miou(perfect) == pytest.approx(shuffled, abs=2e-3)
    assert chance_miou(np.zeros((4, 4), np.int64)) is None


def test_iou_is_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional", reason="no torchmetrics: pip install torchmetrics")
    generator = np.random.default_rng(0)
    label, mask = generator.integers(0, 6, (2, 40, 50))
    label[generator.random(label.shape) < 0.1] = 255
    common = {"task": "multiclass", "num_classes": 6, "ignore_index": 255}
    planes = torch.from_numpy(mask), torch.from_numpy(label)
    matrix = confusion_matrix(label, mask, 6)
    np.testing.assert_allclose(functional.jaccard_index(*planes, average="none", **common), iou_per_class(matrix), 1e-6)
    assert mean_iou(matrix) == pytest.approx(functional.jaccard_index(*planes, **common).item(), rel=1e-6)
    accuracy = functional.accuracy(*planes, average="micro", **common).item()
    assert pixel_agreement(matrix) == pytest.approx(accuracy, rel=1e-6)
