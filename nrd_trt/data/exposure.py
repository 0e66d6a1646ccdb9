"""How bright the images of a set are, and whether those of two sets were exposed alike. NumPy and Pillow.

The thresholds were measured on CamVid; docs/precision.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nrd_trt.data.folders import list_images
from nrd_trt.data.images import read_image

GREY_HW = (48, 64)
"""Size of the pictures that are compared."""
FACTORS = {"brightness": 2**0.75, "contrast": 2**0.4}
"""Factors of exposure, beyond twice the standard error, up to which two sets count as alike."""
VALIDATION_IMAGES = 100
"""Images of validation, spread over the set, whose exposure is measured."""


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
    return np.asarray(grey.resize(GREY_HW[::-1], Image.Resampling.BOX), np.float32)


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


def compare_exposure(calibration: Exposure, validation: Exposure) -> str | None:
    """Say where validation images are exposed clearly otherwise than those that were calibrated on."""
    if min(calibration.images, validation.images) < 2:  # one says nothing of a spread
        return None
    if not any(_factor(calibration, validation, name) > most for name, most in FACTORS.items()):
        return None
    if calibration.brightness < validation.brightness:
        harm = "ranges of darker images cut brighter ones off"
    else:
        harm = "ranges of brighter images leave darker ones few of the levels of int8"
    return (
        f"calibration set: exposed otherwise than the images of data=: brightness {calibration.brightness:.0f} against "
        f"{validation.brightness:.0f}, contrast {calibration.contrast:.0f} against {validation.contrast:.0f} of 255 "
        f"(means of {calibration.images} and {validation.images} images); {harm}. Calibrate on images taken in the "
        "light that the engine will see."
    )


def exposure_warnings(calibration: Exposure | None, data: Path | None) -> tuple[str, ...]:
    """Say where the images of a folder are exposed otherwise than those that were calibrated on; nothing without one.

    Raises:
        ConfigError: There are no images, or one cannot be read.
    """
    if calibration is None or data is None:
        return ()
    found = compare_exposure(calibration, exposure_of_folder(data))
    return () if found is None else (found,)


def _factor(one: Exposure, other: Exposure, name: str) -> float:
    """Return by how much the means of two sets differ at least, beyond twice the standard error."""
    spreads = [getattr(entry, f"{name}_spread") / np.sqrt(entry.images - 1) for entry in (one, other)]
    apart = abs(np.log2((getattr(one, name) + 1.0) / (getattr(other, name) + 1.0)))
    return float(2.0 ** (apart - 2.0 * np.hypot(*spreads)))
