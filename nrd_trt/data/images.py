"""From an image file to an array: the one reader of every verb, of data sets and of uploads. NumPy and Pillow only."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.specs import MOST_PIXELS

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
"""Pillow's names of the formats that are read; of others it knows some that start programs or read other files."""
# Pillow's decoders let all of these through when a file is damaged.
_DAMAGED = (
    *(OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError),
    *(ZeroDivisionError, struct.error, zlib.error),
)
_ROWS = 256
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)


def read_image(
    file: Path | str | bytes | BinaryIO, *, formats: tuple[str, ...] = FORMATS, most_pixels: int = MOST_PIXELS
) -> np.ndarray:
    """Read an image as ``(H, W, 3) uint8 RGB``, upright.

    The EXIF orientation is applied. Transparency is ignored: a pixel counts with the colour that the file gives it. Of
    an animation the first frame is read. Of 16 bits per channel the upper eight are kept, for grey as for colour.

    Args:
        file: Path, content or an open file.
        formats: Those of `FORMATS` that are tried.
        most_pixels: Larger images are refused by their header.

    Returns:
        The pixels, owned by the caller.

    Raises:
        ConfigError: The file is missing, no file but a pipe or device, damaged, no image of these formats, or has more
            than 16 bits per channel.
        ShapeError: The image has more than `most_pixels`.
    """
    name = str(file) if isinstance(file, (str, Path)) else "image"
    with open_image(file, formats=formats, most_pixels=most_pixels) as image:
        file_format = image.format
        ImageOps.exif_transpose(image, in_place=True)
        rgb = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, _ROWS):  # Pillow would hold three more pictures of the whole
            strip = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
            rgb[top : top + _ROWS] = np.asarray(_eight_bits(strip, file_format, name))
        return rgb


@contextmanager
def open_image(
    file: Path | str | bytes | BinaryIO,
    *,
    formats: tuple[str, ...] = FORMATS,
    most_pixels: int = MOST_PIXELS,
    what: str = "an image",
) -> Iterator[Image.Image]:
    """Yield an image whose pixels are not read yet; what Pillow raises in the block is raised as `read_image` says."""
    name = str(file) if isinstance(file, (str, Path)) else "image"
    if isinstance(file, (str, Path)) and Path(file).exists() and not Path(file).is_file():
        raise ConfigError(f"{name}: expected a file with {what}, got a folder, a pipe or a device; give a file.")
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=formats) as image:
            if image.width * image.height > most_pixels:
                raise _too_large(name, most_pixels, f"{image.width}x{image.height}")
            yield image
    except _TOO_LARGE as exc:
        raise _too_large(name, most_pixels, "far more") from exc
    except (ConfigError, ShapeError):
        raise
    except _DAMAGED as exc:
        reason = (str(exc) or type(exc).__name__).splitlines()[0].partition(" <_io.")[0]  # an address tells nothing
        raise ConfigError(
            f"{name}: expected {what}, cannot read it ({reason}); give one in {' or '.join(formats)}."
        ) from exc


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
    return image if image.mode == "RGB" else image.convert("RGB")


def _too_large(name: str, most_pixels: int, got: str) -> ShapeError:
    return ShapeError(
        f"{name}: expected at most {most_pixels / 1e6:.0f} million pixels, got {got}; make the image smaller."
    )
