"""Masks as pictures: palette PNGs and overlays. NumPy and Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nrd_trt.files import atomic_file

Palette = Sequence[tuple[int, int, int]]


def colour(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Return ``(H, W, 3) uint8 RGB`` of a mask ``(H, W) uint8``; indices beyond the palette are black."""
    coloured: np.ndarray = _table(palette)[mask]
    return coloured


def blend(rgb: np.ndarray, mask: np.ndarray, palette: Palette, opacity: float) -> np.ndarray:
    """Lay the mask's colours over an image.

    Args:
        rgb: ``(H, W, 3) uint8 RGB``.
        mask: ``(H, W) uint8``.
        palette: One RGB triple in 0-255 per class.
        opacity: Of the mask, 0-1.

    Returns:
        ``(H, W, 3) uint8 RGB``.
    """
    mixed = rgb * (1 - opacity) + colour(mask, palette) * opacity
    return np.rint(mixed).astype(np.uint8)


def write_mask(path: Path, mask: np.ndarray, palette: Palette) -> None:
    """Write a mask ``(H, W) uint8`` as an index PNG with the palette, atomically."""
    image = Image.fromarray(mask)
    # A short palette would make Pillow write fewer than 8 bits per pixel and cut larger indices.
    image.putpalette(_table(palette).ravel().tolist())
    _write(path, image)


def write_rgb(path: Path, rgb: np.ndarray) -> None:
    """Write an image ``(H, W, 3) uint8 RGB`` as PNG, atomically."""
    _write(path, Image.fromarray(rgb))


def _table(palette: Palette) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table


def _write(path: Path, image: Image.Image) -> None:
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
