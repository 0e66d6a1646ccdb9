"""Small files that ask for much memory, or for something else than they are named. Nothing here asserts."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from tests.data.pictures import png_chunk
from tests.helpers import cached_small_model

_PIECE = 16 << 20


def zeros_deflated(mib: int, first: bytes = b"") -> tuple[bytes, int]:
    """Return a raw deflate stream of `first` and then zeros, and the size of what it holds."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    head = packer.compress(first) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(_PIECE)) + packer.flush(zlib.Z_FULL_FLUSH)
    count = (mib << 20) // _PIECE
    return head + piece * count + packer.flush(), len(first) + count * _PIECE


def zip_of(entries: dict[str, tuple[bytes, int]]) -> bytes:
    """Return a ZIP file of deflated entries, whose checksums are wrong: content and size by name."""
    local, central = b"", b""
    for name, (packed, size) in entries.items():
        facts = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(packed), size, len(name), 0)
        central += b"PK\1\2" + struct.pack("<H", 20) + facts + struct.pack("<HHHII", 0, 0, 0, 0, len(local))
        central += name.encode()
        local += b"PK\3\4" + facts + name.encode() + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(central), len(local), 0)
    return local + central + b"PK\5\6" + end


def small_state() -> dict[str, torch.Tensor]:
    """The tensors of the quickest network."""
    return dict(cached_small_model().state_dict())


def deflated_checkpoint(path: Path, mib: int) -> None:
    """Write a ``.pth`` one record of which is deflated zeros."""
    torch.save({"weight": torch.zeros(4)}, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as source:
        entries = {}
        for name in source.namelist():
            content = source.read(name).replace(b"K\x04", b"J" + struct.pack("<i", mib << 18))
            packer = zlib.compressobj(1, zlib.DEFLATED, -15)
            entries[name] = packer.compress(content) + packer.flush(), len(content)
            if name.endswith("data/0"):
                entries[name] = zeros_deflated(mib)
    path.write_bytes(zip_of(entries))


def expanded_checkpoint(path: Path, name: str, *shape: int) -> None:
    """Write a ``.pth`` with a tensor all of whose elements are one."""
    torch.save({**small_state(), name: torch.zeros(1).expand(shape)}, path)


def calling_checkpoint(path: Path, call: bytes) -> None:
    """Write a ``.pth`` whose pickle calls what PyTorch lets pass."""
    torch.save({"state_dict": {"weight": torch.zeros(4)}, "meta": 1}, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(b"K\x01s", call + b"s").replace(b"K\x01u", call + b"u"))


def wide_checkpoint(path: Path) -> None:
    """Write a ``.pth`` whose tensors are small and tell of a network whose others would be huge."""
    state = small_state()
    wide = {
        "decode_head.bottleneck.conv.weight": (60_000, 1, 1, 1),
        "decode_head.c1_bottleneck.0.conv.weight": (60_000,),
    }
    for name, shape in wide.items():
        state[name] = torch.zeros(shape)
    torch.save(state, path)


def references(path: Path, mib: int) -> None:
    """Write a ``reference.npz`` of images that are all black."""
    side = int((mib << 20) / 24) // 1024
    arrays = {"images": (8, 1024, side, 3), "masks": (8, 1024, side), "near_ties": (8, 1024, side)}
    entries = {}
    for name, shape in arrays.items():
        np.lib.format.write_array_header_1_0(
            header := io.BytesIO(),
            {"descr": "|b1" if name == "near_ties" else "|u1", "fortran_order": False, "shape": shape},
        )
        packed, _ = zeros_deflated(-(-int(np.prod(shape)) // _PIECE) * 16, header.getvalue())
        entries[f"{name}.npy"] = packed, len(header.getvalue()) + int(np.prod(shape))
    np.save(source := io.BytesIO(), np.array("torch"))
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    entries["source.npy"] = packer.compress(source.getvalue()) + packer.flush(), len(source.getvalue())
    path.write_bytes(zip_of(entries))


def black_png(width: int, height: int, *, channels: int) -> bytes:
    """Return a PNG that is all black, of 8 bits per channel."""
    colour = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    packed, _ = zeros_deflated(-(-height * (1 + width * channels) // _PIECE) * 16)
    body = b"\x78\x01" + packed + b"\0\0\0\1"
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def pipe(path: Path) -> None:
    """Make a FIFO, to which nobody writes."""
    os.mkfifo(path)
