"""What can be said of calibration images before anything is measured on them: how many, how alike, whose, how bright.

NumPy and Pillow. The thresholds were measured on CamVid and drawn scenes; docs/precision.md has the figures.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
from PIL import Image

from nrd_trt.data.folders import list_images
from nrd_trt.data.images import read_image

FEW_IMAGES = 8
NEARLY_EQUAL = 0.95
"""Correlation of two pictures from which on they count as one view."""
MOST_REPEATS = 0.25
"""Share of images that may repeat a view."""
FACTORS = {"brightness": 2**0.75, "contrast": 2**0.4}
"""Factors of exposure, beyond twice the standard error, up to which two sets count as alike."""
VALIDATION_IMAGES = 100
"""Images of validation, spread over the set, whose exposure is measured."""

_GREY_HW, _VIEW_HW = (48, 64), (16, 16)
_FAINT = 1.0  # grey levels: fainter pictures show nothing that could be alike
_FRAME = re.compile(r"(f|frame)?\d+", re.IGNORECASE)
_RECORDING = re.compile(r"\d|^(drive|seq|clip|vid|movie|frame|route|ride|trip|rec)", re.IGNORECASE)
_SPLIT = re.compile(r"(train|val|valid|test|trainval)\d*", re.IGNORECASE)

FindingKind = Literal[
    "few images", "nearly equal", "one drive", "exposure", "labels", "zero", "never predicted", "never labelled"
]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a calibration that a user should know before the ranges are used.

    Attributes:
        kind: What it is about.
        text: The evidence, and what to do.
        figures: What was measured, by name.
        names: Images, drives, tensors or classes that it is about.
    """

    kind: FindingKind
    text: str
    figures: dict[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How bright the images of a set are.

    Attributes:
        images: Number of images.
        brightness: Mean grey level of an image, 0-255; geometric mean over the set.
        brightness_spread: Standard deviation of its binary logarithm over the set.
        contrast: Standard deviation of an image's grey levels, 0-128; geometric mean over the set.
        contrast_spread: Standard deviation of its binary logarithm over the set.
    """

    images: int
    brightness: float
    brightness_spread: float
    contrast: float
    contrast_spread: float


def grey_picture(rgb: np.ndarray) -> np.ndarray:
    """Return a small grey picture, ``(48, 64) float32`` in 0-255, each of its pixels a mean of the image's."""
    grey = Image.fromarray(rgb).convert("L")
    return np.asarray(grey.resize(_GREY_HW[::-1], Image.Resampling.BOX), np.float32)


def drive_of(name: str) -> str | None:
    """Return the drive that an image is of, by its name; None where that does not tell.

    A name that tells ends in the number of a frame, behind what has a number too or is called a drive:
    ``0016E5_07959.jpg``, ``hamburg_000000_042505_leftImg8bit.png``.
    """
    words = re.split(r"[-_. ]+", PurePath(name).stem)
    numbered = [index for index, word in enumerate(words) if _FRAME.fullmatch(word)]
    before = [word for word in words[: numbered[-1] if numbered else 0] if not _SPLIT.fullmatch(word)]
    return "_".join(before) if any(map(_RECORDING.search, before)) else None


def exposure_of(pictures: Iterable[np.ndarray]) -> Exposure:
    """Measure the exposure of the pictures of `grey_picture`."""
    levels = np.array([(picture.mean(), picture.std()) for picture in pictures])
    logarithms = np.log2(levels + 1.0)  # a black image counts as one of level 1
    (brightness, contrast), spread = 2.0 ** logarithms.mean(0) - 1.0, logarithms.std(0)
    return Exposure(
        images=len(levels),
        brightness=float(brightness),
        brightness_spread=float(spread[0]),
        contrast=float(contrast),
        contrast_spread=float(spread[1]),
    )


def exposure_of_folder(data: Path) -> Exposure:
    """Measure the exposure of up to `VALIDATION_IMAGES` images, spread over a folder.

    Raises:
        ConfigError: There are no images, or one cannot be read.
    """
    paths = list_images(data)
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), VALIDATION_IMAGES)).astype(int)
    return exposure_of(grey_picture(read_image(paths[index])) for index in chosen)


def look_at(names: Sequence[str], drives: Sequence[str | None], pictures: Sequence[np.ndarray]) -> tuple[Finding, ...]:
    """Say what speaks against a set as one to calibrate on.

    Args:
        names: One per image.
        drives: What each image is of, where that is known.
        pictures: What `grey_picture` makes of each image.
    """
    found = (_few(names), _nearly_equal(names, pictures), _one_drive(drives))
    return tuple(finding for finding in found if finding is not None)


def compare_exposure(calibration: Exposure, validation: Exposure) -> Finding | None:
    """Say where validation images are exposed clearly otherwise than those that were calibrated on."""
    if min(calibration.images, validation.images) < 2:  # one says nothing of a spread
        return None
    if not any(_factor(calibration, validation, name) > most for name, most in FACTORS.items()):
        return None
    if calibration.brightness < validation.brightness:
        harm = "ranges of darker images cut brighter ones off"
    else:
        harm = "ranges of brighter images leave darker ones few of the levels of int8"
    text = (
        f"calibration set: exposed otherwise than the images of data=: brightness {calibration.brightness:.0f} against "
        f"{validation.brightness:.0f}, contrast {calibration.contrast:.0f} against {validation.contrast:.0f} of 255 "
        f"(means of {calibration.images} and {validation.images} images); {harm}. Calibrate on images taken in the "
        "light that the engine will see."
    )
    both = {"calibration": calibration, "validation": validation}
    figures = {f"{name}_{where}": getattr(entry, name) for name in FACTORS for where, entry in both.items()}
    return Finding(kind="exposure", text=text, figures=figures)


def _factor(one: Exposure, other: Exposure, name: str) -> float:
    """Return by how much the means of two sets differ at least, beyond twice the standard error."""
    spreads = [getattr(entry, f"{name}_spread") / np.sqrt(entry.images - 1) for entry in (one, other)]
    apart = abs(np.log2((getattr(one, name) + 1.0) / (getattr(other, name) + 1.0)))
    return float(2.0 ** (apart - 2.0 * np.hypot(*spreads)))


def warn_of(findings: Iterable[Finding]) -> None:
    """Warn of every finding."""
    for finding in findings:
        warnings.warn(finding.text, stacklevel=2)


def _few(names: Sequence[str]) -> Finding | None:
    count = len(names)
    if count >= FEW_IMAGES:
        return None
    text = (
        f"calibration set: {count} images, fewer than {FEW_IMAGES}; ranges of so few do not hold for others. Give a "
        "hundred or more of the scenes that the engine will see."
    )
    return Finding(kind="few images", text=text, figures={"images": count})


def _nearly_equal(names: Sequence[str], pictures: Sequence[np.ndarray]) -> Finding | None:
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
    text = (
        f"calibration set: {len(names)} images, only {len(views)} of them different: {repeats} nearly equal an earlier "
        f"one, such as {one} and {other} (correlation {closest:.3f} as small grey pictures, {NEARLY_EQUAL} "
        "is nearly equal); they say nothing new. Give images of more places, fewer of each."
    )
    figures = {"images": len(names), "different": len(views), "correlation": closest}
    return Finding(kind="nearly equal", text=text, figures=figures, names=(one, other))


def _one_drive(drives: Sequence[str | None]) -> Finding | None:
    (drive, *others) = set(drives)
    if others or drive is None or len(drives) < 2:
        return None
    text = (
        f"calibration set: all {len(drives)} images are of one drive or video, {drive}; the ranges know its streets, "
        "light and weather alone. Add images of other drives."
    )
    return Finding(kind="one drive", text=text, figures={"images": len(drives)}, names=(drive,))


def _correlations(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return the correlation of every two pictures, as means over blocks, whatever their brightness and contrast."""
    (height, width), (rows, columns) = _GREY_HW, _VIEW_HW
    blocks = np.reshape(pictures, (-1, rows, height // rows, columns, width // columns)).mean((2, 4))
    views = blocks.reshape(len(blocks), -1)
    views = views - views.mean(1, keepdims=True)
    views /= np.maximum(np.linalg.norm(views, axis=1, keepdims=True), _FAINT * np.sqrt(rows * columns))
    correlations: np.ndarray = views @ views.T
    return correlations
