"""From an image file to an array: the one reader of every verb, of data sets and of uploads. NumPy and Pillow only."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from nrd_trt.errors import ConfigError, ShapeError

# Pillow's decoders let all of these through when a file is damaged.
_DAMAGED = (OSError, ValueError, SyntaxError, IndexError, TypeError, OverflowError, struct.error, zlib.error)
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)


def read_image(
    file: Path | str | bytes | BinaryIO, *, formats: tuple[str, ...] | None = None, most_pixels: int | None = None
) -> np.ndarray:
    """Read an image as ``(H, W, 3) uint8 RGB``, upright.

    The EXIF orientation is applied. Transparency is ignored: a pixel counts with the colour that the file gives it. Of
    an animation the first frame is read. Of 16 bits per channel the upper eight are kept, for grey as for colour.

    Args:
        file: Path, content or an open file.
        formats: Pillow's names of the formats that are tried; None tries all.
        most_pixels: Larger images are refused by their header; None leaves the limit to Pillow (about 179 million).

    Returns:
        The pixels, owned by the caller.

    Raises:
        ConfigError: The file is missing, damaged, no image, or has more than 16 bits per channel.
        ShapeError: The image has more than `most_pixels`.
    """
    name = str(file) if isinstance(file, (str, Path)) else "image"
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=formats) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise _too_large(name, most_pixels, f"{image.width}x{image.height}")
            return np.array(_eight_bits(ImageOps.exif_transpose(image), image.format, name))
    except _TOO_LARGE as exc:
        raise _too_large(name, most_pixels or 2 * (Image.MAX_IMAGE_PIXELS or 0), "far more") from exc
    except (ConfigError, ShapeError):
        raise
    except _DAMAGED as exc:
        reason = (str(exc) or type(exc).__name__).splitlines()[0]
        raise ConfigError(f"{name}: expected an image, cannot read it ({reason}); remove or replace the file.") from exc


def _eight_bits(image: Image.Image, file_format: str | None, name: str) -> Image.Image:
    """Convert any mode to RGB.

    Pillow's own conversion cuts 16-bit grey off at 255. Of three 16-bit channels it keeps the upper eight bits, so grey
    is treated alike; 8 bits that were widened by 256 or 257 come back as they were.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ConfigError(f"{name}: expected 8 or 16 bits per channel, got 32 (mode {image.mode}); convert it first.")
    image.info.pop("transparency", None)  # Pillow would warn that a palette loses it
    return image.convert("RGB")


def _too_large(name: str, most_pixels: int, got: str) -> ShapeError:
    return ShapeError(
        f"{name}: expected at most {most_pixels / 1e6:.0f} million pixels, got {got}; make the image smaller."
    )
