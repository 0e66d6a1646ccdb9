"""Pictures for viewers: composed, shrunk, encoded. NumPy and Pillow only."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from nrd_trt.data.overlay import Palette, blend, index_image

View = Literal["overlay", "mask", "side", "image"]

_JPEG_QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a viewer wants to see.

    Attributes:
        view: ``"side"`` is the image with the overlay on its right.
        opacity: Opacity of the mask in overlays, 0-1.
        classes: Indices that are shown; None shows all.
    """

    view: View = "overlay"
    opacity: float = 0.6
    classes: frozenset[int] | None = None


def compose(rgb: np.ndarray, mask: np.ndarray, palette: Palette, look: Look) -> np.ndarray:
    """Lay the colours of a mask over its image.

    Args:
        rgb: ``(H, W, 3) uint8 RGB``.
        mask: ``(H, W) uint8``.
        palette: One RGB triple in 0-255 per class; indices beyond it are black.
        look: Classes that are not shown leave the image as it is, and are black in the view ``"mask"``.

    Returns:
        ``(H, W, 3) uint8 RGB``, for ``"side"`` twice as wide.
    """
    shown = None if look.classes is None else np.isin(np.arange(256), list(look.classes))
    if look.view == "image":
        return rgb
    if look.view == "mask":
        return blend(np.zeros_like(rgb), mask, palette, 1.0, shown=shown)
    if look.view == "overlay":
        return blend(rgb, mask, palette, look.opacity, shown=shown)
    width = rgb.shape[1]
    side = np.concatenate((rgb, rgb), axis=1)
    blend(rgb, mask, palette, look.opacity, shown=shown, out=side[:, width:])  # no third picture in between
    return side


def shrink(rgb: np.ndarray, mask: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Bring image and mask down to `longest` pixels on their longer side, the mask by its nearest pixels."""
    height, width = mask.shape
    if max(height, width) <= longest:
        return rgb, mask
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image), np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def jpeg(rgb: np.ndarray) -> bytes:
    """Encode as JPEG."""
    return _saved(Image.fromarray(rgb), format="JPEG", quality=_JPEG_QUALITY)


def png(rgb: np.ndarray) -> bytes:
    """Encode as PNG, quickly rather than small."""
    return _saved(Image.fromarray(rgb), format="PNG", compress_level=2)


def mask_png(mask: np.ndarray, palette: Palette) -> bytes:
    """Encode a mask ``(H, W) uint8`` as an index PNG with the palette."""
    return _saved(index_image(mask, palette), format="PNG", compress_level=2)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """An image and its mask for a viewer that composes them itself.

    Attributes:
        size_hw: Size of both.
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
    return Layers(size_hw=(mask.shape[0], mask.shape[1]), image=jpeg(rgb), mask=packed)


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


def _saved(image: Image.Image, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, **options)
    return target.getvalue()
