"""Uploaded images: checked by their headers before anything is decoded. Pillow only."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from nrd_trt.serving.problems import Refusal

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_SCANS = 100
"""Of a progressive JPEG: each costs a pass over all pixels and may be a few bytes long. Usual ones have about ten."""


def read_upload(body: bytes, most_pixels: int) -> np.ndarray:
    """Read an image as ``(H, W, 3) uint8 RGB``, upright; of an animation the first frame.

    Args:
        body: JPEG, PNG, WebP or BMP.
        most_pixels: Larger images are refused by their headers.

    Raises:
        Refusal: It is damaged, none of these, or would take too much memory or time to decode.
    """
    with _readable(most_pixels), Image.open(io.BytesIO(body), formats=_FORMATS) as image:
        if image.width * image.height > most_pixels:
            raise _too_many(most_pixels, f"{image.width} x {image.height}")
        if image.format == "JPEG" and body.count(b"\xff\xda") > _SCANS:
            raise _unreadable("one that is made to take hours to decode")
        return np.array(_as_rgb(ImageOps.exif_transpose(image)))


@contextmanager
def _readable(most_pixels: int) -> Iterator[None]:
    """Turn what Pillow raises into refusals."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise _too_many(most_pixels, "far more") from exc
    except MemoryError as exc:
        raise _too_many(most_pixels, "one that does not fit into memory") from exc
    except (OSError, ValueError, SyntaxError, IndexError, TypeError, EOFError, OverflowError) as exc:
        raise _unreadable(f"one that cannot be decoded ({_first_line(exc)})") from exc


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow would cut them off at 255
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _too_many(most_pixels: int, got: str) -> Refusal:
    message = f"image: expected at most {most_pixels / 1e6:.0f} million pixels, got {got}; send a smaller one."
    return Refusal(422, "TooManyPixels", message)


def _unreadable(got: str) -> Refusal:
    return Refusal(422, "UnreadableImage", f"image: expected a JPEG, PNG, WebP or BMP file, got {got}; save it anew.")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
