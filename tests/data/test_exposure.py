"""How bright sets are, and when two count as exposed otherwise: on drawn scenes and on CamVid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nrd_trt.data.exposure import Exposure, compare_exposure, exposure_of, exposure_of_folder, grey_picture
from nrd_trt.data.folders import list_images
from nrd_trt.data.images import read_image
from nrd_trt.data.synthetic import street_scene
from tests.artefacts import scenes

STREETS = [street_scene(seed, (64, 96)).image for seed in range(24)]


def test_exposure_is_compared_beyond_its_error() -> None:
    pictures = [grey_picture(image) for image in STREETS]
    bright, dark = exposure_of(pictures), exposure_of(picture / 2 for picture in pictures)
    assert bright.images == 24
    assert dark.brightness + 1 == pytest.approx(bright.brightness / 2 + 1, rel=0.02)
    assert compare_exposure(bright, bright) is None
    for one, other in ((bright, dark), (dark, bright)):
        found = compare_exposure(one, other)
        assert found is not None and "exposed otherwise than the images of data=" in found
        assert f"brightness {one.brightness:.0f} against {other.brightness:.0f}" in found
        assert ("cut brighter ones off" in found) is (one is dark)
        assert f"contrast {one.contrast:.0f} against {other.contrast:.0f}" in found
    few = exposure_of(pictures[:1])
    assert compare_exposure(few, dark) is None, "one image has no spread"
    apart = Exposure(images=24, brightness=99, brightness_spread=0.1, contrast=60, contrast_spread=0.1)
    for brightness, contrast, warned in ((64, 60, False), (54, 60, True), (99, 47, False), (99, 42, True)):
        changed = Exposure(**{**vars(apart), "brightness": brightness, "contrast": contrast})
        assert (compare_exposure(apart, changed) is not None) is warned, (brightness, contrast)


def test_black_images_have_an_exposure() -> None:
    black = exposure_of([np.zeros((48, 64), np.float32)] * 4)
    assert (black.brightness, black.contrast, black.contrast_spread) == (0, 0, 0)


def test_exposure_of_a_folder_is_that_of_its_images(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "data", 3, labels=True)
    read = [grey_picture(read_image(path)) for path in list_images(folder)]
    assert exposure_of_folder(folder) == exposure_of(read)


def spread_over(folder: Path, count: int) -> list[np.ndarray]:
    paths = list_images(folder)
    return [read_image(paths[int(index)]) for index in np.linspace(0, len(paths) - 1, count)]


def test_validation_of_camvid_is_exposed_as_training_is_and_half_as_bright_is_not(camvid: Path) -> None:
    val, train = (spread_over(camvid / name, 16) for name in ("val", "train"))
    one, other = (exposure_of(map(grey_picture, images)) for images in (train, val))
    assert compare_exposure(one, other) is None and compare_exposure(other, one) is None
    half, halved = (exposure_of(grey_picture(image // 2) for image in images) for images in (train, val))
    assert compare_exposure(half, other) is not None and compare_exposure(one, halved) is not None
