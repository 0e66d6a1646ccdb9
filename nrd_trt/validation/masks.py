"""Mask metrics from one confusion matrix. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

IGNORE = 255


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
    iou = iou_per_class(matrix)
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else None


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
