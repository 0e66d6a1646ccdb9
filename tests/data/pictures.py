"""Files of every kind that a reader of images meets, with what it must return. Nothing here asserts."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

_RNG = np.random.default_rng(0)
RGB = _RNG.integers(0, 256, (40, 56, 3), np.uint8)
DEEP = _RNG.integers(0, 65536, (40, 56, 3), np.uint16)
"""The same in 16 bits, with low bytes of their own."""
_TURNED = Image.Exif()
_TURNED[0x0112] = 6  # to be turned right by 90 degrees


def encoded(array: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    """Return an image file."""
    target, image = io.BytesIO(), Image.fromarray(array)
    (image.convert(mode) if mode else image).save(target, kind, **options)
    return target.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header: bytes, rows: bytes) -> bytes:
    """Return a PNG file of an IHDR and of filtered rows, which Pillow need not know how to write."""
    parts = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def readable() -> dict[str, tuple[bytes, np.ndarray]]:
    """Return content and expected pixels ``(H, W, 3) uint8`` by file name."""
    grey = RGB[..., 0]
    as_rgb = {mode: np.asarray(Image.fromarray(RGB).convert(mode).convert("RGB")) for mode in ("1", "P")}
    jpeg = encoded(RGB, "JPEG", quality=95)
    cmyk = encoded(RGB, "JPEG", "CMYK", quality=95)
    upper = (DEEP >> 8).astype(np.uint8)
    alpha = np.dstack((RGB, grey))
    transparent = Image.fromarray(RGB).convert("P")
    buffer = io.BytesIO()
    transparent.save(buffer, "PNG", transparency=bytes(range(256)))
    return {
        "grey.png": (encoded(grey), _grey(grey)),
        "rgb.png": (encoded(RGB), RGB),
        "grey16.png": (encoded(DEEP[..., 0]), _grey(upper[..., 0])),
        "widened16.png": (encoded(grey.astype(np.uint16) * 257), _grey(grey)),
        "rgb16.png": (_png_16(DEEP), upper),
        "palette.png": (encoded(RGB, mode="P"), as_rgb["P"]),
        "transparent_palette.png": (buffer.getvalue(), as_rgb["P"]),
        "one_bit.png": (encoded(RGB, mode="1"), as_rgb["1"]),
        "rgba.png": (encoded(alpha), RGB),
        "grey_alpha.png": (encoded(np.dstack((grey, grey))), _grey(grey)),
        "turned.png": (encoded(RGB, exif=_TURNED), np.rot90(RGB, -1)),
        "turned16.png": (encoded(DEEP[..., 0], exif=_TURNED), _grey(np.rot90(upper[..., 0], -1))),
        "animated.png": (encoded(RGB, save_all=True, append_images=[Image.fromarray(255 - RGB)]), RGB),
        "plain.jpg": (jpeg, _decoded(jpeg)),
        "turned.jpg": (encoded(RGB, "JPEG", quality=95, exif=_TURNED), np.rot90(_decoded(jpeg), -1)),
        "cmyk.jpg": (cmyk, _decoded(cmyk)),
        "lossless.webp": (encoded(RGB, "WEBP", lossless=True), RGB),
        "windows.bmp": (encoded(RGB, "BMP"), RGB),
        "rgb.tif": (encoded(RGB, "TIFF"), RGB),
        "grey16.tif": (encoded(DEEP[..., 0], "TIFF"), _grey(upper[..., 0])),
        "grey16_big.tif": (encoded(DEEP[..., 0].astype(">u2"), "TIFF"), _grey(upper[..., 0])),
        "rgb16.tif": (_tiff_16(DEEP), upper),
    }


@cache
def unreadable() -> dict[str, bytes]:
    """Return content by file name; each of these is an error everywhere."""
    png_file, jpeg = encoded(RGB), encoded(RGB, "JPEG")
    return {
        "empty.png": b"",
        "text.png": b"hello",
        "truncated.png": png_file[: len(png_file) // 2],
        "header_only.png": png_file[:33],
        "no_size.png": png(struct.pack(">IIBBBBB", 0, 64, 8, 2, 0, 0, 0), b""),
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "garbage.bmp": b"BM" + b"\xff" * 60,
        "garbage.webp": b"RIFF\x20\0\0\0WEBP" + b"\xff" * 60,
        "float.tif": encoded(RGB[..., 0].astype(np.float32), "TIFF"),
        "integer.tif": encoded(RGB[..., 0].astype(np.int32), "TIFF"),
    }


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def _decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _png_16(array: np.ndarray) -> bytes:
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return png(struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0), rows)


def _tiff_16(array: np.ndarray) -> bytes:
    """A baseline TIFF: header, bits per sample, pixels, directory."""
    height, width, channels = array.shape
    pixels, start = array.astype("<u2").tobytes(), 8 + 2 * channels
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, start), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    return struct.pack("<2sHI", b"II", 42, start + len(pixels)) + bits + pixels + directory
