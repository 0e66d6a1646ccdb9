"""Small clips for the tests of video, made with PyAV."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrd_trt.data.synthetic import street_clip

av = pytest.importorskip("av", reason="needs PyAV: pip install nrd-trt[video]")


@cache
def _street(size_hw: tuple[int, int]) -> tuple[np.ndarray, ...]:
    return tuple(scene.image for scene in street_clip(7, size_hw, frames=20))


def street_frames(count: int, size_hw: tuple[int, int] = (64, 96)) -> list[np.ndarray]:
    """A second of a drive, as often as it takes; read-only."""
    return [_street(size_hw)[index % 20] for index in range(count)]


def grey_frames(count: int, size_hw: tuple[int, int] = (64, 96)) -> list[np.ndarray]:
    """Frame i is grey of level 10·i + 5, modulo 250: a decoded frame says which one it is."""
    return [np.full((*size_hw, 3), 5 + 10 * index % 250, np.uint8) for index in range(count)]


def number_of(rgb: np.ndarray) -> int:
    """Which frame of `grey_frames` this is."""
    return round((float(rgb.mean()) - 5) / 10)


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    rate: Fraction | int = 15,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    pts: list[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """Write RGB frames; `pts` are in ticks of ``1 / (1000·rate)``, `settings` attributes of the codec."""
    images = list(frames)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.bit_rate = 4_000_000
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = 1 / Fraction(1000 * rate)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = 1 / Fraction(rate) if pts is None else 1 / Fraction(1000 * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_damaged_clip(path: Path) -> Path:
    """Twenty frames of which number 12 cannot be decoded."""
    write_clip(path, street_frames(20), codec="png", pix_fmt="rgb24")
    with av.open(str(path)) as container:
        packet = next(itertools.islice(container.demux(), 12, None))
        start, size = packet.pos + 8, packet.size
    data = path.read_bytes()
    path.write_bytes(data[:start] + b"\xff" * size + data[start + size :])
    return path
