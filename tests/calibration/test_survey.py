"""What is said of calibration images before anything is measured: against drawn scenes, and against CamVid's drives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nrd_trt.calibration.survey import drive_of, look_at
from nrd_trt.data.exposure import grey_picture
from nrd_trt.data.folders import list_images
from nrd_trt.data.images import read_image
from nrd_trt.data.synthetic import street_scene

STREETS = [street_scene(seed, (64, 96)).image for seed in range(24)]


SIGNS = {"few images": "fewer than 8", "nearly equal": "nearly equal an earlier", "one drive": "are of one drive"}


def named(found: tuple[str, ...]) -> list[str]:
    return [kind for text in found for kind, sign in SIGNS.items() if sign in text]


def kinds(images: list[np.ndarray], names: list[str] | None = None) -> list[str]:
    names = names or [f"{index}.png" for index in range(len(images))]
    found = look_at(names, [drive_of(name) for name in names], [grey_picture(image) for image in images])
    assert len(found) == len(named(found))
    return named(found)


@pytest.mark.parametrize(
    ("name", "drive"),
    [
        ("0016E5_07959.jpg", "0016E5"),
        ("0006R0_f01470.png", "0006R0"),
        ("hamburg_000000_042505_leftImg8bit.png", "hamburg_000000"),
        ("2011_09_26_drive_0001_sync_0000000012.png", "2011_09_26_drive_0001_sync"),
        ("driveB-12.png", "driveB"),
        ("frame_0001.png", "frame"),
        ("000012.png", None),
        ("photo_12.png", None),
        ("ADE_val_00000012.jpg", None),
        ("COCO_val2014_000000000012.jpg", None),
        ("b1c66a42-6f7d68ca.jpg", None),
        ("street.png", None),
    ],
)
def test_a_drive_is_told_by_the_name(name: str, drive: str | None) -> None:
    assert drive_of(name) == drive


def test_different_streets_are_no_reason_to_warn() -> None:
    assert kinds(STREETS) == []
    assert kinds(STREETS[:8]) == []
    assert kinds(STREETS[:7]) == ["few images"]


def noisy(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(image.size).normal(0, 12, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "change",
    [noisy, lambda image: np.roll(image, 2, 1), lambda image: image // 2, lambda image: image[2:, 2:], np.copy],
    ids=["noise", "shift", "exposure", "crop", "copy"],
)
def test_pictures_of_one_view_are_nearly_equal(change: Callable[[np.ndarray], np.ndarray]) -> None:
    repeated = [*STREETS[:12], *map(change, STREETS[:4])]  # a quarter
    (found,) = look_at([f"{index}.png" for index in range(16)], [None] * 16, list(map(grey_picture, repeated)))
    assert "16 images, only 12 of them different: 4 nearly equal" in found
    shown = re.search(r"such as (\d+)\.png and (\d+)\.png \(correlation ([\d.]+) as", found)
    assert shown is not None and 0.95 <= float(shown[3]) <= 1.0
    assert int(shown[2]) == int(shown[1]) + 12
    assert kinds(repeated[:-1]) == [], "three of fifteen may repeat"


@pytest.mark.parametrize(("correlation", "alike"), [(0.94, False), (0.96, True)])
def test_nearly_equal_begins_at_its_threshold(correlation: float, alike: bool) -> None:
    """Brightness and contrast do not count."""
    rows, columns = (np.where(np.arange(size) < size // 2, -1.0, 1.0) for size in (48, 64))
    one, across = np.broadcast_to(rows[:, None], (48, 64)), np.broadcast_to(columns, (48, 64))
    other = 90 + 7 * (correlation * one + np.sqrt(1 - correlation**2) * across)
    found = look_at(["a.png", "b.png"], [None] * 2, [120 + 40 * one, other])
    assert ("nearly equal" in named(found)) is alike


def test_flat_pictures_are_not_alike() -> None:
    flat = [np.full((40, 40, 3), level, np.uint8) for level in range(0, 240, 20)]
    assert kinds(flat) == []


def test_images_of_one_drive() -> None:
    names = [f"0016E5_{index:05}.jpg" for index in range(8)]
    assert kinds(STREETS[:8], names) == ["one drive"]
    assert kinds(STREETS[:8], [*names[:7], "0006R0_f00001.jpg"]) == []
    assert kinds(STREETS[:8], [*names[:7], "a.jpg"]) == [], "its name does not tell"


# --- the thresholds hold on photos


def of(folder: Path, count: int, *, spread: bool) -> tuple[list[str], list[np.ndarray]]:
    paths = list_images(folder)
    paths = [paths[int(index)] for index in np.linspace(0, len(paths) - 1, count)] if spread else paths[:count]
    return [path.name for path in paths], [read_image(path) for path in paths]


def test_frames_of_a_video_are_nearly_equal_and_those_of_drives_are_not(camvid: Path) -> None:
    names, frames = of(camvid / "val", 24, spread=False)
    assert kinds(frames, names) == ["nearly equal", "one drive"]
    assert kinds(frames[:2]) == ["few images", "nearly equal"], "two neighbours"
    names, frames = of(camvid / "train", 24, spread=True)
    assert kinds(frames, names) == []
