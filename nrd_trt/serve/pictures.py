"""Pictures for viewers: composed, shrunk, encoded. NumPy and Pillow only."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

View = Literal["overlay", "mask", "side", "image"]
Palette = Sequence[tuple[int, int, int]]

_JPEG_QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a viewer wants to see.

    Attributes:
        view: ``"side"`` is the image with the overlay on its right.
        opacity: Of the mask in overlays, 0-1.
        classes: Indices that are shown; None shows all.
    """

    view: View = "overlay"
    opacity: float = 0.6
    classes: frozenset[int] | None = None


def compose(rgb: np.ndarray, mask: np.ndarray, palette: Palette, look: Look) -> Image.Image:
    """Lay the colours of a mask over its image.

    Args:
        rgb: ``(H, W, 3) uint8 RGB``.
        mask: ``(H, W) uint8``.
        palette: One RGB triple in 0-255 per class; indices beyond it are black.
        look: Classes that are not shown leave the image as it is, and are black in the view ``"mask"``.
    """
    image = Image.fromarray(rgb)
    if look.view == "image":
        return image
    if look.view == "mask":
        return _laid_over(Image.new("RGB", image.size), mask, palette, 1.0, look.classes)
    overlay = _laid_over(image, mask, palette, look.opacity, look.classes)
    return overlay if look.view == "overlay" else _beside(image, overlay)


def indexed(mask: np.ndarray, palette: Palette) -> Image.Image:
    """Return a mask ``(H, W) uint8`` as an index image with the palette."""
    image = Image.fromarray(mask)
    # A short palette would make Pillow write fewer than 8 bits per pixel and cut larger indices.
    flat = [level for colour in palette for level in colour]
    image.putpalette(flat + [0] * (768 - len(flat)))
    return image


def shrink(rgb: np.ndarray, mask: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Bring image and mask down to `longest` pixels on their longer side, the mask by its nearest pixels."""
    height, width = mask.shape
    if max(height, width) <= longest:
        return rgb, mask
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image), np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def jpeg(image: Image.Image) -> bytes:
    """Encode as JPEG."""
    return _saved(image, format="JPEG", quality=_JPEG_QUALITY)


def png(image: Image.Image) -> bytes:
    """Encode as PNG, quickly rather than small."""
    return _saved(image, format="PNG", compress_level=2)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """An image and its mask for a viewer that composes them itself.

    Attributes:
        size_hw: Of both.
        image: JPEG.
        mask: Class indices row by row, zlib-compressed: as small as a PNG and read without one's colour management.
    """

    size_hw: tuple[int, int]
    image: bytes
    mask: bytes


def encode_layers(rgb: np.ndarray, mask: np.ndarray, longest: int) -> Layers:
    """Shrink and encode an image and its mask."""
    rgb, mask = shrink(rgb, mask, longest)
    packed = zlib.compress(mask.tobytes(), 1)
    return Layers(size_hw=(mask.shape[0], mask.shape[1]), image=jpeg(Image.fromarray(rgb)), mask=packed)


def pack(header: Mapping[str, Any], layers: Layers | None) -> bytes:
    """Return one record: length of the header (4 bytes, big-endian), header in JSON, JPEG, mask.

    The header's key ``layers`` gives the size and the two lengths, or null where nothing follows.
    """
    described = None
    if layers is not None:
        described = {"size_hw": layers.size_hw, "image": len(layers.image), "mask": len(layers.mask)}
    text = json.dumps({**header, "layers": described}, ensure_ascii=False).encode()
    parts = (layers.image, layers.mask) if layers is not None else ()
    return b"".join((struct.pack(">I", len(text)), text, *parts))


def _laid_over(
    image: Image.Image, mask: np.ndarray, palette: Palette, opacity: float, classes: frozenset[int] | None
) -> Image.Image:
    shown = round(255 * opacity)
    alpha = [shown if classes is None or index in classes else 0 for index in range(256)]
    colours = indexed(mask, palette).convert("RGB")
    return Image.composite(colours, image, Image.fromarray(mask).point(alpha))


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def _saved(image: Image.Image, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, **options)
    return target.getvalue()
