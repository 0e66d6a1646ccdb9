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

from nrd_trt.data.overlay import CONFIDENCE_PALETTE, Palette, blend, index_image
from nrd_trt.runtime.graph_io import Segmentation

View = Literal["overlay", "mask", "side", "image", "confidence"]

_JPEG_QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a viewer wants to see.

    Attributes:
        view: ``"side"`` is the image with the overlay on its right, ``"confidence"`` the image with that over it.
        opacity: Opacity of the mask in overlays, 0-1.
        classes: Indices that are shown; None shows all.
    """

    view: View = "overlay"
    opacity: float = 0.6
    classes: frozenset[int] | None = None


def compose(rgb: np.ndarray, drawn: Segmentation, palette: Palette, look: Look) -> np.ndarray:
    """Lay the colours of a mask, or of its confidence, over its image.

    Args:
        rgb: ``(H, W, 3) uint8 RGB``.
        drawn: Mask and confidence of the image's size; without a confidence the view ``"confidence"`` is the image.
        palette: One RGB triple in 0-255 per class; indices beyond it are black.
        look: Classes that are not shown leave the image as it is, and are black in the view ``"mask"``.

    Returns:
        ``(H, W, 3) uint8 RGB``, for ``"side"`` twice as wide.
    """
    shown = None if look.classes is None else np.isin(np.arange(256), list(look.classes))
    if look.view == "confidence" and drawn.confidence is not None:
        return blend(rgb, drawn.confidence, CONFIDENCE_PALETTE, look.opacity)
    if look.view in ("image", "confidence"):
        return rgb
    if look.view == "mask":
        return blend(np.zeros_like(rgb), drawn.mask, palette, 1.0, shown=shown)
    if look.view == "overlay":
        return blend(rgb, drawn.mask, palette, look.opacity, shown=shown)
    width = rgb.shape[1]
    side = np.concatenate((rgb, rgb), axis=1)
    blend(rgb, drawn.mask, palette, look.opacity, shown=shown, out=side[:, width:])  # no third picture in between
    return side


def shrink(rgb: np.ndarray, drawn: Segmentation, longest: int) -> tuple[np.ndarray, Segmentation]:
    """Bring an image down to `longest` pixels on its longer side, and what was drawn of it by the nearest pixels."""
    height, width = drawn.mask.shape
    if max(height, width) <= longest:
        return rgb, drawn
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)

    def nearest(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.NEAREST))

    confidence = None if drawn.confidence is None else nearest(drawn.confidence)
    return np.asarray(image), Segmentation(mask=nearest(drawn.mask), confidence=confidence)


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
        confidence: The confidence likewise, or None.
    """

    size_hw: tuple[int, int]
    image: bytes
    mask: bytes
    confidence: bytes | None = None


def encode_layers(rgb: np.ndarray, drawn: Segmentation, longest: int) -> Layers:
    """Shrink and encode an image and what was drawn of it."""
    rgb, drawn = shrink(rgb, drawn, longest)
    height, width = drawn.mask.shape
    mask = zlib.compress(drawn.mask.tobytes(), 1)
    confidence = None if drawn.confidence is None else zlib.compress(drawn.confidence.tobytes(), 1)
    return Layers(size_hw=(height, width), image=jpeg(rgb), mask=mask, confidence=confidence)


def pack(header: Mapping[str, Any], layers: Layers | None) -> bytes:
    """Return one record: length of the header (4 bytes, big-endian), header in JSON, JPEG, mask, confidence if any.

    The header's key ``layers`` gives the size and the lengths, or null where nothing follows.
    """
    parts: dict[str, bytes] = {}
    if layers is not None:
        parts = {name: part for name, part in vars(layers).items() if isinstance(part, bytes)}
    described = layers and {"size_hw": layers.size_hw, **{name: len(part) for name, part in parts.items()}}
    text = json.dumps({**header, "layers": described}, ensure_ascii=False).encode()
    return b"".join((struct.pack(">I", len(text)), text, *parts.values()))


def _saved(image: Image.Image, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, **options)
    return target.getvalue()
