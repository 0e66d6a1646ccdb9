"""Masks as pictures: index images and overlays. NumPy and Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nrd_trt.files import atomic_file

Palette = Sequence[tuple[int, int, int]]
_ROWS = 1024
_UNSURE_TO_SURE = ((252, 255, 164), (249, 142, 9), (188, 55, 84), (87, 16, 110), (0, 0, 4))
CONFIDENCE_PALETTE: Palette = tuple(
    (int(red), int(green), int(blue))
    for red, green, blue in zip(
        *(np.interp(np.arange(256), np.linspace(0, 255, 5), channel) for channel in zip(*_UNSURE_TO_SURE, strict=True)),
        strict=True,
    )
)
"""Colours of the confidences 0-255: bright where the network is unsure."""


def colour(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Return ``(H, W, 3) uint8 RGB`` of a mask ``(H, W) uint8``; indices beyond the palette are black."""
    return np.array(index_image(mask, palette).convert("RGB"))


def blend(
    rgb: np.ndarray,
    mask: np.ndarray,
    palette: Palette,
    opacity: float,
    *,
    shown: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Lay the mask's colours over an image.

    Args:
        rgb: ``(H, W, 3) uint8 RGB``.
        mask: ``(H, W) uint8``.
        palette: One RGB triple in 0-255 per class.
        opacity: Opacity of the mask, 0-1.
        shown: ``(256,) bool``, the class indices that are laid over; elsewhere the image stays. None shows all.
        out: Where the result is written, of the image's shape and type; None allocates it.

    Returns:
        ``(H, W, 3) uint8 RGB``, `out` where it is given, within one grey level of the exact blend.
    """
    blended = np.empty_like(rgb) if out is None else out
    for first in range(0, len(rgb), _ROWS):  # Pillow keeps four bytes of each pixel in each of its pictures
        rows = slice(first, first + _ROWS)
        image, coloured = Image.fromarray(rgb[rows]), index_image(mask[rows], palette).convert("RGB")
        if shown is not None:
            coloured.paste(image, mask=Image.fromarray(mask[rows]).point((~shown * 255).tolist(), "1"))
        blended[rows] = np.asarray(Image.blend(image, coloured, opacity))
    return blended


def write_mask(path: Path, mask: np.ndarray, palette: Palette) -> None:
    """Write a mask ``(H, W) uint8`` as an index PNG with the palette, atomically."""
    _write(path, index_image(mask, palette))


def write_rgb(path: Path, rgb: np.ndarray) -> None:
    """Write an image ``(H, W, 3) uint8 RGB``, or ``(H, W) uint8`` grey, as PNG, atomically."""
    _write(path, Image.fromarray(rgb))


def index_image(mask: np.ndarray, palette: Palette) -> Image.Image:
    """Return a mask ``(H, W) uint8`` as an index image; indices beyond the palette are black."""
    table = np.zeros((256, 3), np.uint8)  # a shorter one would make Pillow save fewer than 8 bits per pixel
    table[: len(palette)] = palette
    image = Image.fromarray(mask)
    image.putpalette(table.tobytes())
    return image


def _write(path: Path, image: Image.Image) -> None:
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
