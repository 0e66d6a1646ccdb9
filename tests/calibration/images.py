"""Folders of small pictures, videos and broken files for the tests of calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nrd_trt.data.synthetic import street_scene


def picture(seed: int, size_hw: tuple[int, int] = (70, 90)) -> np.ndarray:
    return street_scene(seed, size_hw).image


def folder_of(path: Path, count: int, size_hw: tuple[int, int] = (70, 90)) -> Path:
    path.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(picture(index, size_hw)).save(path / f"{index:03}.png")
    return path


def video_of(path: Path, count: int, size_hw: tuple[int, int] = (64, 96)) -> Path:
    """Frame i is grey of level 10·i, so that a decoded frame says which one it is."""
    pytest.importorskip("av", reason="needs PyAV: pip install nrd-trt[video]")
    from tests.video.clips import write_clip

    frames = [np.full((*size_hw, 3), 10 * index, np.uint8) for index in range(count)]
    return write_clip(path, frames, codec="mjpeg", pix_fmt="yuvj420p")
