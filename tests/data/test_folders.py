"""Images and labels on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nrd_trt.data.folders import IGNORE, default_labels, list_images, list_pairs, read_label
from nrd_trt.data.images import read_image
from nrd_trt.errors import ConfigError, ShapeError

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def write(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def write_label(path: Path, values: list[list[int]], palette: bool = False) -> Path:
    image = Image.fromarray(np.array(values, np.uint8))
    if palette:
        image.putpalette([value % 256 for value in range(5, 5 + 768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_images_are_listed_by_name_and_other_files_left_out(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.BMP"):
        write(tmp_path / name, RGB)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.png", "c.BMP"]


def test_images_subfolder_is_preferred(tmp_path: Path) -> None:
    write(tmp_path / "outside.png", RGB)
    inside = write(tmp_path / "images" / "inside.png", RGB)
    assert list_images(tmp_path) == [inside]


@pytest.mark.parametrize(
    "prepare",
    [
        lambda folder: None,
        lambda folder: (folder / "notes.txt").write_text("no image"),
        lambda folder: folder.rmdir(),
        lambda folder: (folder / "images").mkdir(),
    ],
    ids=["empty", "no-image", "missing", "empty-images"],
)
def test_folders_without_images(prepare: Callable[[Path], object], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    prepare(data)
    with pytest.raises(ConfigError, match=r"data.*found none; check the path"):
        list_images(data)


def test_pairs_by_stem(tmp_path: Path) -> None:
    for stem in ("two", "one"):
        write(tmp_path / "images" / f"{stem}.jpg", RGB)
        write_label(tmp_path / "labels" / f"{stem}.png", [[0]])
    write_label(tmp_path / "labels" / "alone.png", [[0]])
    assert default_labels(tmp_path) == tmp_path / "labels"
    pairs = [(image.name, label.name) for image, label in list_pairs(tmp_path)]
    assert pairs == [("one.jpg", "one.png"), ("two.jpg", "two.png")]


def test_labels_elsewhere(tmp_path: Path) -> None:
    image = write(tmp_path / "frames" / "one.jpg", RGB)
    label = write_label(tmp_path / "truth" / "one.png", [[0]])
    assert default_labels(tmp_path / "frames") is None
    assert list_pairs(tmp_path / "frames", tmp_path / "truth") == [(image, label)]


def test_images_without_labels_are_named(tmp_path: Path) -> None:
    for stem in "abcdefg":
        write(tmp_path / "images" / f"{stem}.png", RGB)
    write_label(tmp_path / "labels" / "a.png", [[0]])
    with pytest.raises(ConfigError, match=r"6 of 7 images have no label \(b.png, .*f.png …\)"):
        list_pairs(tmp_path)


@pytest.mark.parametrize("labels", [None, "nowhere"])
def test_missing_label_folder(labels: str | None, tmp_path: Path) -> None:
    write(tmp_path / "a.png", RGB)
    with pytest.raises(ConfigError, match="expected a folder of label PNGs; give labels=DIR"):
        list_pairs(tmp_path, tmp_path / labels if labels else None)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_unreadable_labels(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.png: expected a label PNG, cannot read it"):
        read_label(path, num_classes=2, ignore_index=None)


@pytest.mark.parametrize("palette", [False, True])
def test_label_values_and_ignored_pixels(palette: bool, tmp_path: Path) -> None:
    path = write_label(tmp_path / "a.png", [[0, 1, 2], [11, 255, 10]], palette)
    label = read_label(path, num_classes=11, ignore_index=11, image_hw=(2, 3))
    assert label.dtype == np.uint8
    assert label.tolist() == [[0, 1, 2], [IGNORE, IGNORE, 10]]


def test_an_ignored_class_index_is_not_counted_either(tmp_path: Path) -> None:
    path = write_label(tmp_path / "a.png", [[0, 1, 255]])
    assert read_label(path, num_classes=2, ignore_index=0).tolist() == [[IGNORE, 1, IGNORE]]


@pytest.mark.parametrize(
    ("ignore_index", "message"),
    [(None, r"0-10 or ignored values \(255\), got \[11, 12\]"), (11, r"ignored values \(255, 11\), got \[12\]")],
)
def test_label_values_out_of_range(ignore_index: int | None, message: str, tmp_path: Path) -> None:
    path = write_label(tmp_path / "a.png", [[0, 11, 12, 255]])
    with pytest.raises(ConfigError, match=rf"a\.png.*{message}; name the ignored value with ignore_index=N"):
        read_label(path, num_classes=11, ignore_index=ignore_index)


def test_label_of_another_size(tmp_path: Path) -> None:
    path = write_label(tmp_path / "a.png", [[0, 1]])
    with pytest.raises(ShapeError, match=r"a\.png: expected the image's size 2x1, got 1x2"):
        read_label(path, num_classes=2, ignore_index=None, image_hw=(2, 1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "LA"])
def test_colour_labels_are_refused(mode: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", RGB, mode)
    with pytest.raises(ConfigError, match=rf"got mode {mode}; convert colours to class indices"):
        read_label(path, num_classes=2, ignore_index=None)


def test_sixteen_bit_labels_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", np.zeros((2, 2), np.uint16))
    with pytest.raises(ConfigError, match="8-bit index PNG"):
        read_label(path, num_classes=2, ignore_index=None)


def test_camvid_pairs_read(camvid: Path) -> None:
    pairs = list_pairs(camvid / "val")
    assert len(pairs) == 101
    image = read_image(pairs[0][0])
    label = read_label(pairs[0][1], num_classes=11, ignore_index=11, image_hw=image.shape[:2])
    assert label.shape == (360, 480)
