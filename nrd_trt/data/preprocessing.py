"""From an image of any size to the network's input and back: the one piece of code that every verb uses. NumPy, Pillow.

The exported graph's own preprocessing repeats `normalise` operation by operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from PIL import Image

from nrd_trt.data.bilinear import resize_as_cv2
from nrd_trt.errors import ShapeError
from nrd_trt.specs import STRIDE, Fit, InputShape, ModelInfo, Resample, Size, format_size

FITS: tuple[Fit, ...] = get_args(Fit)


def normalise(images: np.ndarray, info: ModelInfo) -> np.ndarray:
    """Turn images into what the network reads.

    Args:
        images: ``(B, H, W, 3)`` RGB in 0-255, uint8 or float.
        info: Mean, standard deviation and channel order.

    Returns:
        ``(B, 3, H, W) float32``, contiguous, in the network's channel order.
    """
    planes = images.astype(np.float32).transpose(0, 3, 1, 2)
    if info.channel_order == "bgr":
        planes = planes[:, ::-1]
    mean, std = (np.asarray(values, np.float32).reshape(1, 3, 1, 1) for values in (info.mean, info.std))
    return np.ascontiguousarray((planes - mean) / std)


def planar(images: np.ndarray) -> np.ndarray:
    """Turn images ``(B, H, W, 3) uint8`` RGB into ``(B, 3, H, W) float32`` RGB in 0-255, contiguous."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How images of one size go into the engine, and how masks go back.

    Attributes:
        engine_hw: Size at which the engine runs.
        content_hw: The upper left part of it that shows the image; the rest is padding.
        original_hw: Size of the image.
    """

    engine_hw: Size
    content_hw: Size
    original_hw: Size

    def restore(self, mask: np.ndarray) -> np.ndarray:
        """Bring a mask ``(h, w) uint8`` of the engine's size to the image's (nearest), writeable, without padding."""
        content = mask[: self.content_hw[0], : self.content_hw[1]]
        if content.shape == self.original_hw:
            return np.ascontiguousarray(content)
        return np.array(Image.fromarray(content).resize(self.original_hw[::-1], Image.Resampling.NEAREST))


@dataclass(frozen=True, kw_only=True)
class FittedImage(Fitting):
    """An image ``(h, w, 3) uint8 RGB`` at the engine's size, and how to bring a mask of it back."""

    image: np.ndarray


def fitting_of(image_hw: Size, shape: InputShape, fit: Fit) -> Fitting:
    """Tell how images of a size go into an engine; see `fit_image`."""
    engine_hw = _engine_size(image_hw, shape, fit)
    return Fitting(engine_hw=engine_hw, content_hw=_content_size(image_hw, engine_hw, fit), original_hw=image_hw)


def padding_colour(info: ModelInfo) -> np.ndarray:
    """Return the colour of padding, ``(3,) uint8 RGB``."""
    return np.rint(info.mean if info.channel_order == "rgb" else info.mean[::-1]).astype(np.uint8)


def fit_image(
    rgb: np.ndarray,
    shape: InputShape,
    info: ModelInfo,
    fit: Fit = "resize",
    *,
    resample: Resample = "pillow",
    original_hw: Size | None = None,
) -> FittedImage:
    """Bring an image to a size that the engine accepts.

    Args:
        rgb: ``(H, W, 3) uint8 RGB`` of any size.
        shape: Sizes that the engine accepts; the nearest one to the image's is taken.
        info: Its mean is the colour of padding, which is zero after normalisation (up to rounding to uint8).
        fit: ``"resize"`` to the engine's size, ``"pad"`` on the right and below without scaling, or ``"letterbox"``:
            scale with the aspect ratio kept, then pad.
        resample: Whose bilinear arithmetic scales: ``"pillow"`` averages all pixels of an image that shrinks, ``"cv2"``
            reads the four around each place, as OpenCV's INTER_LINEAR.
        original_hw: Size of the image that `rgb` was scaled from: it is fitted as that would be, and masks go back to
            it. None is for an image that was not scaled.

    Raises:
        ShapeError: `rgb` is no such array, or is larger than the engine with ``"pad"``.
    """
    check_image(rgb)
    height, width = rgb.shape[:2]
    fitting = fitting_of(original_hw or (height, width), shape, fit)
    engine_hw, content_hw, content = fitting.engine_hw, fitting.content_hw, rgb
    if content_hw != (height, width):
        content = scale_image(rgb, content_hw, resample)
    return FittedImage(**vars(fitting), image=pad_image(content, engine_hw, info))


def check_image(rgb: np.ndarray) -> None:
    """Raise `ShapeError` unless an array is an image."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ShapeError(f"image: expected (H, W, 3) uint8 RGB, got {rgb.dtype} {rgb.shape}.")


def pad_image(content: np.ndarray, size_hw: Size, info: ModelInfo) -> np.ndarray:
    """Return an image ``(h, w, 3) uint8 RGB`` with padding on the right and below, contiguous."""
    if content.shape[:2] == size_hw:
        return np.ascontiguousarray(content)
    canvas = np.empty((*size_hw, 3), np.uint8)
    canvas[:] = padding_colour(info)
    canvas[: content.shape[0], : content.shape[1]] = content
    return canvas


def scale_image(rgb: np.ndarray, size_hw: Size, resample: Resample) -> np.ndarray:
    """Scale an image ``(H, W, 3) uint8 RGB`` to a size; see `fit_image`."""
    if rgb.shape[:2] == size_hw:
        return rgb
    if resample == "cv2":
        return resize_as_cv2(rgb, size_hw)
    return np.asarray(Image.fromarray(rgb).resize(size_hw[::-1], Image.Resampling.BILINEAR))


def _engine_size(image_hw: tuple[int, int], shape: InputShape, fit: Fit) -> tuple[int, int]:
    """The size to run at: the only one, or the nearest multiple of 32 in range (never below the image for pad)."""
    sides = []
    for side, extent in zip(image_hw, (shape.height, shape.width), strict=True):
        steps = -(-side // STRIDE) if fit == "pad" else round(side / STRIDE)
        sides.append(min(max(steps * STRIDE, extent.min), extent.max))
    return sides[0], sides[1]


def _content_size(image_hw: tuple[int, int], engine_hw: tuple[int, int], fit: Fit) -> tuple[int, int]:
    if fit == "resize":
        return engine_hw
    if fit == "pad":
        if image_hw[0] > engine_hw[0] or image_hw[1] > engine_hw[1]:
            raise ShapeError(
                f"image {format_size(image_hw)} is larger than the engine's {format_size(engine_hw)}; "
                "use fit='letterbox' or fit='resize', or build a larger engine."
            )
        return image_hw
    scale = min(engine_hw[0] / image_hw[0], engine_hw[1] / image_hw[1])
    height, width = (max(1, min(limit, round(side * scale))) for side, limit in zip(image_hw, engine_hw, strict=True))
    return height, width
