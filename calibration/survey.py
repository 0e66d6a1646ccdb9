"""What can be said of calibration images before anything is measured on them: how many, how alike, whose.

NumPy only. The thresholds were measured on CamVid and drawn scenes; docs/precision.md has the figures.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import PurePath

import numpy as np

from nrd_trt.data.exposure import GREY_HW

FEW_IMAGES = 8
NEARLY_EQUAL = 0.95
"""Correlation of two pictures from which on they count as one view."""
MOST_REPEATS = 0.25
"""Share of images that may repeat a view."""

_VIEW_HW = (16, 16)
_FAINT = 1.0  # grey levels: fainter pictures show nothing that could be alike
_FRAME = re.compile(r"(f|frame)?\d+", re.IGNORECASE)
_RECORDING = re.compile(r"\d|^(drive|seq|clip|vid|movie|frame|route|ride|trip|rec)", re.IGNORECASE)
_SPLIT = re.compile(r"(train|val|valid|test|trainval)\d*", re.IGNORECASE)


def drive_of(name: str) -> str | None:
    """Return the drive that an image is of, by its name; None where that does not tell.

    A name that tells ends in the number of a frame, behind what has a number too or is called a drive:
    ``0016E5_07959.jpg``, ``hamburg_000000_042505_leftImg8bit.png``.
    """
    words = re.split(r"[-_. ]+", PurePath(name).stem)
    numbered = [index for index, word in enumerate(words) if _FRAME.fullmatch(word)]
    before = [word for word in words[: numbered[-1] if numbered else 0] if not _SPLIT.fullmatch(word)]
    return "_".join(before) if any(map(_RECORDING.search, before)) else None


def look_at(names: Sequence[str], drives: Sequence[str | None], pictures: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Say what speaks against a set as one to calibrate on.

    Args:
        names: One per image.
        drives: What each image is of, where that is known.
        pictures: What `nrd_trt.data.exposure.grey_picture` makes of each image.
    """
    found = (_few(names), _nearly_equal(names, pictures), _one_drive(drives))
    return tuple(text for text in found if text is not None)


def warn_of(texts: Iterable[str]) -> None:
    """Warn with each text."""
    for text in texts:
        warnings.warn(text, stacklevel=2)


def _few(names: Sequence[str]) -> str | None:
    count = len(names)
    if count >= FEW_IMAGES:
        return None
    return (
        f"calibration set: {count} images, fewer than {FEW_IMAGES}; ranges of so few do not hold for others. Give a "
        "hundred or more of the scenes that the engine will see."
    )


def _nearly_equal(names: Sequence[str], pictures: Sequence[np.ndarray]) -> str | None:
    """Count the views: an image that is nearly equal to an earlier one that counted shows none of its own."""
    alike = _correlations(pictures)
    views: list[int] = []
    pair, closest, repeats = (0, 0), -1.0, 0
    for index in range(len(names)):
        likest = max(views, key=lambda view: alike[index, view], default=None)
        if likest is None or alike[index, likest] < NEARLY_EQUAL:
            views.append(index)
            continue
        repeats += 1
        if alike[index, likest] > closest:
            pair, closest = (likest, index), float(alike[index, likest])
    if repeats < MOST_REPEATS * len(names):
        return None
    one, other = (names[index] for index in pair)
    return (
        f"calibration set: {len(names)} images, only {len(views)} of them different: {repeats} nearly equal an earlier "
        f"one, such as {one} and {other} (correlation {closest:.3f} as small grey pictures, {NEARLY_EQUAL} "
        "is nearly equal); they say nothing new. Give images of more places, fewer of each."
    )


def _one_drive(drives: Sequence[str | None]) -> str | None:
    (drive, *others) = set(drives)
    if others or drive is None or len(drives) < 2:
        return None
    return (
        f"calibration set: all {len(drives)} images are of one drive or video, {drive}; the ranges know its streets, "
        "light and weather alone. Add images of other drives."
    )


def _correlations(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return the correlation of every two pictures, as means over blocks, whatever their brightness and contrast."""
    (height, width), (rows, columns) = GREY_HW, _VIEW_HW
    blocks = np.reshape(pictures, (-1, rows, height // rows, columns, width // columns)).mean((2, 4))
    views = blocks.reshape(len(blocks), -1)
    views = views - views.mean(1, keepdims=True)
    views /= np.maximum(np.linalg.norm(views, axis=1, keepdims=True), _FAINT * np.sqrt(rows * columns))
    correlations: np.ndarray = views @ views.T
    return correlations
