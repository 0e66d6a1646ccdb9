"""The preprocessing of this installation, compared with formulas written anew. NumPy only.

Both sides of a comparison run through `nrd_trt.data.preprocessing`. A fault there would be in both, and their masks
would agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from nrd_trt.data.preprocessing import FittedImage, fit_image, normalise
from nrd_trt.specs import Fit, InputShape, ModelInfo, Resample

_LEVELS = 3
"""Grey levels that a scaled pixel may be off: each of two passes rounds its coefficients and its result."""
_LARGEST_HW = (160, 224)
"""What is looked at does not depend on the size, and large images take seconds."""


def preprocessing_faults(info: ModelInfo, shape: InputShape, fit: Fit, resample: Resample) -> Iterator[str]:
    """Yield what is wrong with how images are normalised and fitted and how masks are brought back.

    Args:
        info: Mean, standard deviation and channel order of the network.
        shape: Sizes that it accepts; a usual size above `_LARGEST_HW` is taken for that.
        fit: How images are brought to its size.
        resample: Whose bilinear arithmetic scales them.
    """
    rng = np.random.default_rng(0)
    height, width = np.minimum(shape.opt_hw, _LARGEST_HW).tolist()
    shape = InputShape.static((height, width))
    sizes = (
        [(height - 5, width - 7)] if fit == "pad" else [(height * 3 // 4 - 1, width - 7), (height + 9, width * 3 // 2)]
    )
    images = [rng.integers(0, 256, (*size_hw, 3), np.uint8) for size_hw in sizes]
    off = max(float(np.abs(normalise(image[None], info)[0] - _normalised(image, info)).max()) for image in images)
    if not off <= 1e-4:
        order = info.channel_order.upper()
        yield _line("normalises images", f"(x - mean) / std in the order {order}, values are off by up to {off:.3g}")
    for image in images:
        fitted = fit_image(image, shape, info, fit, resample=resample)
        levels = float(np.abs(fitted.image - _fitted(image, fitted, info, resample)).max())
        if not levels <= _LEVELS:
            what = "bilinear interpolation" + (" with antialiasing" if resample == "pillow" else "")
            yield _line("scales images", f"{what} by fit={fit!r}, pixels are off by up to {levels:.0f} grey levels")
        mask = rng.integers(0, len(info.class_names), fitted.engine_hw, np.uint8)
        wrong = _misplaced(fitted.restore(mask), mask, fitted)
        if wrong:
            yield _line("brings masks back", f"the nearest pixel of fit={fit!r}, {wrong:.1%} of the pixels are others")


def _line(does: str, expected: str) -> str:
    return f"this installation {does} wrongly, on PyTorch's side too: expected {expected}; install nrd_trt again"


def _normalised(image: np.ndarray, info: ModelInfo) -> np.ndarray:
    """Return ``(3, H, W) float64``, channel by channel."""
    channels = range(3) if info.channel_order == "rgb" else (2, 1, 0)
    planes = [image[..., channel].astype(np.float64) for channel in channels]
    return np.stack([(plane - info.mean[i]) / info.std[i] for i, plane in enumerate(planes)])


def _fitted(image: np.ndarray, fitted: FittedImage, info: ModelInfo, resample: Resample) -> np.ndarray:
    """Return ``(h, w, 3) float64``: the image scaled into the upper left of a canvas in the mean's colour."""
    mean = info.mean if info.channel_order == "rgb" else info.mean[::-1]
    canvas = np.tile(np.rint(np.asarray(mean, np.float64)), (*fitted.engine_hw, 1))
    rows, columns = (
        _triangles(old, new, widens=resample == "pillow")
        for old, new in zip(image.shape[:2], fitted.content_hw, strict=True)
    )
    canvas[: len(rows), : len(columns)] = np.einsum("yr,rcd,xc->yxd", rows, image, columns, optimize=True)
    return canvas


def _triangles(old: int, new: int, *, widens: bool) -> np.ndarray:
    """Return the share ``(new, old)`` of each old pixel in each new one; triangles widen where an image shrinks."""
    step = old / new
    reach = max(step, 1.0) if widens else 1.0
    centres = (np.arange(new) + 0.5) * step
    if not widens:
        centres = np.clip(centres, 0.5, old - 0.5)
    shares = np.maximum(0.0, 1.0 - np.abs(np.arange(old) + 0.5 - centres[:, None]) / reach)
    normalised: np.ndarray = shares / shares.sum(1, keepdims=True)
    return normalised


def _misplaced(restored: np.ndarray, mask: np.ndarray, fitted: FittedImage) -> float:
    """Return the share of the pixels that are not those of the mask's content in which their centres lie."""
    if restored.shape != fitted.original_hw:
        return 1.0
    right = np.zeros(restored.shape, bool)
    ties = (-1e-4, 1e-4)  # a centre between two pixels may go to either
    for rows, columns in itertools.product(
        *(
            [np.clip((np.arange(new) + 0.5) * old / new + tie, 0, old - 1).astype(np.int64) for tie in ties]
            for new, old in zip(fitted.original_hw, fitted.content_hw, strict=True)
        )
    ):
        right |= restored == mask[rows][:, columns]
    return float(1 - right.mean())
