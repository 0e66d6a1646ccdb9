"""Files that are meant to hurt, and clips that are not."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from tests.data.pictures import encoded, png, png_chunk
from tests.video.clips import write_clip


def png_of_size(width: int, height: int, *, data: bytes = b"") -> bytes:
    """A PNG whose header promises a size, and whose data are whatever they are."""
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), data)


def bomb_png() -> bytes:
    """A few hundred kilobytes that are 8000 x 8000 pixels."""
    return encoded(np.zeros((8000, 8000), np.uint8))


def text_bomb_png() -> bytes:
    """A small picture with a comment of 100 MB."""
    plain = encoded(np.zeros((4, 4, 3), np.uint8))
    comment = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100 << 20), 9))
    return plain[:33] + comment + plain[33:]


def scan_bomb_jpeg() -> bytes:
    """A progressive JPEG with thousands of empty scans, each a pass over all its pixels."""
    plain = encoded(np.zeros((1024, 1024, 3), np.uint8), "JPEG", progressive=True)
    start = plain.index(b"\xff\xda")
    (length,) = struct.unpack(">H", plain[start + 2 : start + 4])
    scan = plain[start : start + 2 + length] + b"\x00"
    return plain[:start] + scan * 5000 + plain[start:]


def clip(
    folder: Path, frames: list[np.ndarray], name: str = "clip.mp4", codec: str = "libx264", **options: object
) -> bytes:
    return write_clip(folder / name, frames, codec=codec, **options).read_bytes()  # type: ignore[arg-type]
