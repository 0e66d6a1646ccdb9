"""Random changes of training images and their labels. NumPy and Pillow only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from nrd_trt.data.folders import IGNORE
from nrd_trt.data.preprocessing import normalise
from nrd_trt.errors import ConfigError
from nrd_trt.specs import ModelInfo

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_CROP_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training samples are changed at random.

    Attributes:
        crop_hw: Size of the result; what the picture does not cover is the mean colour, with label 255.
        base_wh: Largest long and short side in pixels that a picture is brought to, its aspect ratio kept, before the
            random scale (mmseg's ``img_scale``); None takes pictures as they are.
        scale_range: Smallest and largest factor of the random resize, drawn evenly.
        max_class_share: A crop of whose counted pixels one class holds at least this share is drawn again, up to ten
            times (mmseg's ``cat_max_ratio``); 1 takes every crop.
        colour: ``"jitter"`` changes brightness, contrast and saturation by up to 30 %; ``"photometric"`` is mmseg's
            PhotoMetricDistortion, with hue; ``"camera"`` changes what cameras and weather do: exposure by up to 0.8 of
            a doubling, the tone curve, white balance, contrast and saturation; ``"none"``.
        blur: Largest standard deviation, in pixels, of the Gaussian blur that half of the samples get.
    """

    crop_hw: tuple[int, int]
    base_wh: tuple[int, int] | None = None
    scale_range: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 1.0
    colour: Literal["jitter", "photometric", "camera", "none"] = "jitter"
    blur: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high or not 0 < self.max_class_share <= 1 or self.blur < 0:
            raise ConfigError(
                f"augmentation: expected 0 < smallest <= largest scale, max_class_share in 0-1 and blur >= 0, got "
                f"{self.scale_range}, {self.max_class_share} and {self.blur}."
            )


def random_sample(
    image: np.ndarray, label: np.ndarray, how: Augmentation, rng: np.random.Generator, *, info: ModelInfo
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, crop, flip and recolour one pair at random, then normalise it.

    Args:
        image: ``(H, W, 3) uint8`` RGB.
        label: ``(H, W) uint8``, 255 is ignored.
        how: Sizes and ranges.
        rng: Source of every choice.
        info: Mean, standard deviation and channel order.

    Returns:
        Image ``(3, *crop_hw) float32``, normalised, and label ``crop_hw uint8``.
    """
    scale = rng.uniform(*how.scale_range)
    if how.base_wh is not None:  # brings the picture just inside the two sides, in either orientation
        scale *= min(max(how.base_wh) / max(label.shape), min(how.base_wh) / min(label.shape))
    image, label = _resized_window(image, label, how, scale, rng)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    if how.blur and rng.random() < 0.5:
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(0, how.blur))))
    if how.colour != "none":
        image = _RECOLOUR[how.colour](image, rng)
    return _padded(normalise(image[None], info)[0], label, how.crop_hw, rng)


def _resized_window(
    image: np.ndarray, label: np.ndarray, how: Augmentation, scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the window that fills the crop after scaling (or all of a small picture) and resize only that."""
    height, width = (min(crop / scale, size) for crop, size in zip(how.crop_hw, label.shape, strict=True))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    for _ in range(_CROP_TRIES):
        top, left = rng.uniform(0, label.shape[0] - height), rng.uniform(0, label.shape[1] - width)
        box = (left, top, left + width, top + height)
        window = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST, box))
        if how.max_class_share == 1 or _largest_share(window) < how.max_class_share:
            break
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box)), window


def _largest_share(label: np.ndarray) -> float:
    """Return the share of counted pixels that the most frequent class holds; 1 where only one class is there."""
    counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return float(counts.max() / max(counts.sum(), 1)) if (counts > 0).sum() > 1 else 1.0


def _jittered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation by up to 30 %; ``(H, W, 3) float32`` in 0-255."""
    brightness, contrast, saturation = rng.uniform(0.7, 1.3, 3).astype(np.float32)
    pixels = image.astype(np.float32)
    grey = (pixels @ _GREY)[..., None]
    pixels = grey + (pixels - grey) * saturation
    middle = grey.mean()
    pixels = (middle + (pixels - middle) * contrast) * brightness
    return np.asarray(pixels.clip(0, 255))


def _photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each half of the time; ``(H, W, 3) uint8``.

    Contrast comes before or after the two changes in HSV, by chance, as in mmseg's PhotoMetricDistortion.
    """

    def maybe(low: float, high: float, neutral: float) -> float:
        return float(rng.uniform(low, high)) if rng.random() < 0.5 else neutral

    brightness = maybe(-32, 32, 0)
    contrast_first, contrast = rng.random() < 0.5, maybe(0.5, 1.5, 1)
    saturation, hue = maybe(0.5, 1.5, 1), maybe(-18, 18, 0)
    image = _scaled(image, contrast if contrast_first else 1, brightness)
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).astype(np.float32)
    hsv[..., 1] = (hsv[..., 1] * saturation).clip(0, 255)
    hsv[..., 0] = (hsv[..., 0] + hue * 256 / 180) % 256  # mmseg counts hue in 180 steps, Pillow in 256
    channels = [Image.fromarray(channel) for channel in hsv.astype(np.uint8).transpose(2, 0, 1)]
    image = np.asarray(Image.merge("HSV", channels).convert("RGB"))
    return image if contrast_first else _scaled(image, contrast, 0)


def _scaled(image: np.ndarray, factor: float, offset: float) -> np.ndarray:
    return np.asarray((image.astype(np.float32) * factor + offset).clip(0, 255).astype(np.uint8))


def _as_another_camera(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change exposure, tone curve, white balance, contrast and saturation; ``(H, W, 3) float32`` in 0-255."""
    gamma, exposure = np.exp2(rng.uniform((-0.6, -0.8), (0.6, 0.8)))
    balance = rng.uniform(0.85, 1.15, 3)
    contrast, saturation = rng.uniform(0.6, 1.4, 2)
    levels = np.arange(256)[:, None] / 255
    curves = (levels**gamma * exposure * balance).clip(0, 1) * 255  # one table for each channel
    pixels = np.stack([curves[image[..., channel], channel] for channel in range(3)], -1).astype(np.float32)
    grey = (pixels @ _GREY)[..., None]
    middle = grey.mean()
    pixels = middle + (grey + (pixels - grey) * np.float32(saturation) - middle) * np.float32(contrast)
    return np.asarray(pixels.clip(0, 255))


_RECOLOUR = {"jitter": _jittered, "photometric": _photometric, "camera": _as_another_camera}


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
