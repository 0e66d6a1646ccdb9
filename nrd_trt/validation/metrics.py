"""Mask metrics from one confusion matrix, and those of borders over a data set. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

IGNORE = 255

BOUNDARY_TOLERANCE_PX = 2
"""How far apart, in pixels of the image, two outlines may be and still be the same one. Logits have stride 4: within
half of their cell a displacement comes from the enlargement, beyond it from the network."""

_WORD = 64


def confusion_matrix(reference: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels by (reference class, mask class).

    Args:
        reference: Integer class indices of any shape; 255 is not counted.
        mask: Integer class indices, same shape.
        num_classes: K.

    Returns:
        ``(K, K) int64``; rows are the reference.
    """
    counted = reference != IGNORE
    pairs = reference[counted].astype(np.int64) * num_classes + mask[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou_per_class(matrix: np.ndarray) -> np.ndarray:
    """Return intersection over union per class, ``(K,) float64`` in 0-1; NaN for classes in neither side."""
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hits
    iou: np.ndarray = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    return iou


def mean_iou(matrix: np.ndarray) -> float | None:
    """Return the mean over the classes present, in 0-1; None where no pixel was counted."""
    return _mean_present(iou_per_class(matrix))


def chance_miou(matrix: np.ndarray) -> float | None:
    """Return the mIoU of masks with the same share of each class, drawn at random; None where no pixel was counted."""
    total = matrix.sum()
    return mean_iou(np.outer(matrix.sum(1), matrix.sum(0)) / total) if total else None


def pixel_agreement(matrix: np.ndarray) -> float | None:
    """Return the share of counted pixels on the diagonal, in 0-1; None where no pixel was counted."""
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else None


def named_iou(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, float | None]:
    """Return ``{class name: IoU or None}``; None for classes present in neither side."""
    return named_values(iou_per_class(matrix), class_names)


def named_values(values: np.ndarray, class_names: Sequence[str]) -> dict[str, float | None]:
    """Return ``{class name: value or None}`` of figures ``(K,)`` in which NaN stands for none."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(class_names, values, strict=True)}


def _mean_present(values: np.ndarray) -> float | None:
    """Return the mean of the figures that are not NaN."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else None


class BoundaryScore:
    """Accumulates hits and totals of outline pixels; one F per class over the whole data set.

    A pixel is on the outline of its class where one of its four neighbours is of another class; the border of the image
    and ignored pixels make no outline. Precision is the share of the mask's outline that lies within the tolerance
    (Euclidean) of the reference's outline of the same class, recall the reverse.

    Args:
        num_classes: K, at most 256.
        tolerance_px: See `BOUNDARY_TOLERANCE_PX`.
    """

    def __init__(self, num_classes: int, tolerance_px: int = BOUNDARY_TOLERANCE_PX) -> None:
        self.tolerance_px = tolerance_px
        self._reference_hits, self._reference_all = (np.zeros(num_classes, np.int64) for _ in range(2))
        self._mask_hits, self._mask_all = (np.zeros(num_classes, np.int64) for _ in range(2))

    def add(self, reference: np.ndarray, mask: np.ndarray) -> None:
        """Add one image.

        Args:
            reference: ``(H, W)`` class indices; 255 is not counted.
            mask: ``(H, W)`` class indices.
        """
        counted = reference != IGNORE
        expected, got = _outline(reference, counted), _outline(mask, counted)
        classes = len(self._mask_all)
        for first in range(0, classes, _WORD):
            expected_bits, got_bits = _bits(reference, expected, first), _bits(mask, got, first)
            expected_near, got_near = (_dilate(bits, self.tolerance_px) for bits in (expected_bits, got_bits))
            self._mask_hits += np.bincount(mask[(got_bits & expected_near) != 0], minlength=classes)
            self._reference_hits += np.bincount(reference[(expected_bits & got_near) != 0], minlength=classes)
        self._mask_all += np.bincount(mask[got], minlength=classes)
        self._reference_all += np.bincount(reference[expected], minlength=classes)

    def per_class(self) -> np.ndarray:
        """Return F per class, ``(K,) float64`` in 0-1; NaN for classes with an outline on neither side."""
        precision = self._mask_hits / np.maximum(self._mask_all, 1)
        recall = self._reference_hits / np.maximum(self._reference_all, 1)
        both = precision + recall
        present = self._mask_all + self._reference_all > 0
        score: np.ndarray = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
        score[~present] = np.nan
        return score

    def mean(self) -> float | None:
        """Return the mean over the classes present; None where there is no outline at all."""
        return _mean_present(self.per_class())


class BorderAgreement:
    """Accumulates the pixels near the reference's borders, and those of them that have the same class.

    A pixel is near a border where one of the reference's outlines (see `BoundaryScore`) is at most `reach_px` away.

    Args:
        reach_px: Euclidean distance.
    """

    def __init__(self, reach_px: int = BOUNDARY_TOLERANCE_PX) -> None:
        self.reach_px = reach_px
        self.pixels = self._equal = 0

    def add(self, reference: np.ndarray, mask: np.ndarray) -> None:
        """Add one image; arguments as for `BoundaryScore.add`."""
        counted = reference != IGNORE
        near = _dilate(_outline(reference, counted).astype(np.uint64), self.reach_px) != 0
        near &= counted
        self.pixels += int(near.sum())
        self._equal += int((near & (reference == mask)).sum())

    def share(self) -> float | None:
        """Return the share of equal pixels near borders, 0-1; None where there are no borders."""
        return self._equal / self.pixels if self.pixels else None


def _outline(mask: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return ``(H, W) bool``: pixels with a counted neighbour of another class."""
    edge = np.zeros(mask.shape, bool)
    for low, high in ((np.s_[:-1, :], np.s_[1:, :]), (np.s_[:, :-1], np.s_[:, 1:])):
        differs = (mask[low] != mask[high]) & counted[low] & counted[high]
        edge[low] |= differs
        edge[high] |= differs
    return edge


def _bits(mask: np.ndarray, outline: np.ndarray, first: int) -> np.ndarray:
    """Return one bit per class of ``first … first + 63``, so that all classes are dilated at once."""
    place = mask.astype(np.int16) - first
    inside = outline & (place >= 0) & (place < _WORD)
    return np.where(inside, np.uint64(1) << np.where(inside, place, 0).astype(np.uint64), np.uint64(0))


def _dilate(bits: np.ndarray, radius: int) -> np.ndarray:
    """Return each pixel's union of bits over a disc, row by row of the disc."""
    wide = bits.copy()  # union over the columns -reach … reach
    reached, result = 0, np.zeros_like(bits)
    for rows in range(radius, -1, -1):  # the disc is narrowest at its top
        reach = math.isqrt(radius * radius - rows * rows)
        for step in range(reached + 1, reach + 1):
            wide[:, step:] |= bits[:, :-step]
            wide[:, :-step] |= bits[:, step:]
        reached = reach
        if rows:
            result[rows:] |= wide[:-rows]
            result[:-rows] |= wide[rows:]
        else:
            result |= wide
    return result
