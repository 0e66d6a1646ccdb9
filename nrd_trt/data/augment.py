"""Random changes of training images and their labels. NumPy and Pillow only."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from nrd_trt.data.folders import IGNORE
from nrd_trt.data.preprocessing import normalise
from nrd_trt.specs import ModelInfo

_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def random_sample(
    image: np.ndarray,
    label: np.ndarray,
    crop_hw: tuple[int, int],
    rng: np.random.Generator,
    *,
    info: ModelInfo,
    scale_range: tuple[float, float] = (0.5, 2.0),
    jitter: float = 0.3,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, crop, flip and recolour one pair at random, then normalise it.

    Args:
        image: ``(H, W, 3) uint8`` RGB.
        label: ``(H, W) uint8``, 255 is ignored.
        crop_hw: Size of the result; what the picture does not cover is the mean colour, with label 255.
        rng: Source of every choice.
        info: Mean, standard deviation and channel order.
        scale_range: Smallest and largest factor of the resize, drawn evenly on a logarithmic scale.
        jitter: Largest relative change of brightness, contrast and saturation, in 0-1.

    Returns:
        Image ``(3, *crop_hw) float32``, normalised, and label ``crop_hw uint8``.
    """
    scale = math.exp(rng.uniform(*np.log(scale_range)))
    image, label = _resized_window(image, label, crop_hw, scale, rng)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return _padded(normalise(_recoloured(image, jitter, rng)[None], info)[0], label, crop_hw, rng)


def _resized_window(
    image: np.ndarray, label: np.ndarray, crop_hw: tuple[int, int], scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the window that fills `crop_hw` after scaling (or all of a small picture) and resize only that."""
    height, width = (min(crop / scale, size) for crop, size in zip(crop_hw, label.shape, strict=True))
    top, left = rng.uniform(0, label.shape[0] - height), rng.uniform(0, label.shape[1] - width)
    box = (left, top, left + width, top + height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box)
    return np.asarray(resized), np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST, box))


def _recoloured(image: np.ndarray, jitter: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation; ``(H, W, 3) float32`` in 0-255."""
    brightness, contrast, saturation = rng.uniform(1 - jitter, 1 + jitter, 3).astype(np.float32)
    pixels = image.astype(np.float32)
    grey = (pixels @ _GREY)[..., None]
    pixels = grey + (pixels - grey) * saturation
    middle = grey.mean()
    pixels = (middle + (pixels - middle) * contrast) * brightness
    return np.asarray(pixels.clip(0, 255))


def _padded(
    image: np.ndarray, label: np.ndarray, crop_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    height, width = label.shape
    top, left = (int(rng.integers(crop - size + 1)) for crop, size in zip(crop_hw, label.shape, strict=True))
    full_image = np.zeros((3, *crop_hw), np.float32)  # zero is the mean colour
    full_label = np.full(crop_hw, IGNORE, np.uint8)
    full_image[:, top : top + height, left : left + width] = image
    full_label[top : top + height, left : left + width] = label
    return full_image, full_label
