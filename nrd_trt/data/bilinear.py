"""OpenCV's bilinear scaling of uint8 pictures in NumPy, bit for bit, so that no device needs OpenCV for it.

It reads the two by two pixels around every place, however far a picture shrinks. Weights are multiples of 1/2048; the
sum of a row loses four bits and each of its products with the weight of the row sixteen, before they are added. The
arithmetic is that of OpenCV's wheels for x86-64; libraries with another one for their processor may round otherwise.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nrd_trt.specs import Size

_ROWS = 16
"""Rows that are made at a time, so that what lies between the steps stays in the cache of the processor."""

_Taps = tuple[np.ndarray, np.ndarray]
"""Places that are read, and their weights in 1/2048."""


def resize_as_cv2(rgb: np.ndarray, size_hw: Size) -> np.ndarray:
    """Scale a picture as ``cv2.resize(rgb, size_hw[::-1], interpolation=cv2.INTER_LINEAR)`` does.

    Args:
        rgb: ``(H, W, C) uint8``.
        size_hw: Height and width to scale to.

    Returns:
        ``(*size_hw, C) uint8``, a fresh array.
    """
    height, width, channels = rgb.shape
    lines = rgb.reshape(height, width * channels)
    columns = _columns(width, size_hw[1], channels)
    (above, above_weights), (below, below_weights) = _rows(height, size_hw[0])
    scaled = np.empty((size_hw[0], size_hw[1] * channels), np.uint8)
    for first in range(0, size_hw[0], _ROWS):
        rows = slice(first, first + _ROWS)
        total = _weighed(_across(lines[above[rows]], columns), above_weights[rows])
        total += _weighed(_across(lines[below[rows]], columns), below_weights[rows])
        total += 2  # which rounds
        total >>= 2
        scaled[rows] = total
    return scaled.reshape(*size_hw, channels)


def _across(lines: np.ndarray, columns: tuple[_Taps, _Taps]) -> np.ndarray:
    """Scale rows across, to int32 values of 7 bits below the point."""
    (left, left_weights), (right, right_weights) = columns
    values: np.ndarray = lines.take(left, axis=1, mode="clip") * left_weights
    values += lines.take(right, axis=1, mode="clip") * right_weights
    values >>= 4
    return values


def _weighed(lines: np.ndarray, weights: np.ndarray) -> np.ndarray:
    lines *= weights
    lines >>= 16
    return lines


@lru_cache(maxsize=16)
def _columns(width: int, count: int, channels: int) -> tuple[_Taps, _Taps]:
    """Return the values that are left and right of every new one in a row; beyond an edge the edge alone counts."""
    left, shares = _places(width, count)
    shares = np.where((left < 0) | (left >= width - 1), np.float32(0), shares)
    left = left.clip(0, width - 1)
    both = left, np.minimum(left + 1, width - 1)
    values = ((places[:, None] * channels + np.arange(channels)).reshape(-1) for places in both)
    weights = (np.repeat(weight, channels) for weight in _weights(shares))
    first, second = zip(values, weights, strict=True)
    return first, second


@lru_cache(maxsize=16)
def _rows(height: int, count: int) -> tuple[_Taps, _Taps]:
    """Return the rows above and below every new one; beyond an edge both are the edge."""
    above, shares = _places(height, count)
    first, second = zip((above.clip(0, height - 1), (above + 1).clip(0, height - 1)), _weights(shares), strict=True)
    return (first[0], first[1][:, None]), (second[0], second[1][:, None])


def _places(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the old place at or before every new one, and how far behind it that lies, float32 in 0-1."""
    step = 1 / (count / length)
    places = ((np.arange(count) + 0.5) * step - 0.5).astype(np.float32)
    before = np.floor(places)
    return before.astype(np.int64), places - before


def _weights(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one = np.float32(2048)
    return np.rint((1 - shares) * one).astype(np.int32), np.rint(shares * one).astype(np.int32)
