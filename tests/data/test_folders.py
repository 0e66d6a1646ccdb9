"""Images and labels on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nrd_trt.data.folders import IGNORE, default_labels, list_images, list_pairs, read_label
from nrd_trt.errors import ConfigError, ShapeError

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def write(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette([value % 256 for value in range(5, 5 + 768)])
    elif mode:
        image = image.convert(mode)
    image.save(path)
    return path


def write_label(path: Path, values: list[list[int]], mode: str = "L") -> Path:
    return write(path, np.array(values, np.uint8), mode)


def test_images_are_listed_by_name_from_the_subfolder_where_there_is_one(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.BMP"):
        write(tmp_path / name, RGB)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.png", "c.BMP"]
    inside = write(tmp_path / "images" / "inside.png", RGB)
    assert list_images(tmp_path) == [inside]


def test_folders_without_images(tmp_path: Path) -> None:
    for name in ("empty", "other", "inner/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "other" / "notes.txt").write_text("no image")
    for name in ("empty", "other", "inner", "missing"):
        with pytest.raises(ConfigError, match=rf"{name}.*found none; check the path"):
            list_images(tmp_path / name)


def test_pairs_by_stem(tmp_path: Path) -> None:
    for stem in ("two", "one"):
        write(tmp_path / "images" / f"{stem}.jpg", RGB)
        write_label(tmp_path / "labels" / f"{stem}.png", [[0]])
    write_label(tmp_path / "labels" / "alone.png", [[0]])
    assert default_labels(tmp_path) == tmp_path / "labels"
    pairs = [(image.name, label.name) for image, label in list_pairs(tmp_path)]
    assert pairs == [("one.jpg", "one.png"), ("two.jpg", "two.png")]
    frames, truth = (tmp_path / "images").rename(tmp_path / "frames"), (tmp_path / "labels").rename(tmp_path / "truth")
    assert default_labels(frames) is None
    assert list_pairs(frames, truth)[0] == (frames / "one.jpg", truth / "one.png")


def test_missing_labels_and_label_folders_are_named(tmp_path: Path) -> None:
    for stem in "abcdefg":
        write(tmp_path / "images" / f"{stem}.png", RGB)
    for labels in (None, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="expected a folder of label PNGs; give labels=DIR"):
            list_pairs(tmp_path, labels)
    write_label(tmp_path / "labels" / "a.png", [[0]])
    with pytest.raises(ConfigError, match=r"6 of 7 images have no label \(b.png, .*f.png …\)"):
        list_pairs(tmp_path)


def test_labels_that_are_no_index_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.png: expected a label PNG, cannot read it"):
            read_label(path, num_classes=2, ignore_index=None)
    for mode in ("RGB", "RGBA", "1", "LA"):
        with pytest.raises(ConfigError, match=rf"got mode {mode}; convert colours to class indices"):
            read_label(write(path, RGB, mode), num_classes=2, ignore_index=None)
    with pytest.raises(ConfigError, match="8-bit index PNG"):
        read_label(write(path, np.zeros((2, 2), np.uint16)), num_classes=2, ignore_index=None)


def test_label_values_and_ignored_pixels(tmp_path: Path) -> None:
    for mode in ("L", "P"):
        path = write_label(tmp_path / "a.png", [[0, 1, 2], [11, 255, 10]], mode)
        label = read_label(path, num_classes=11, ignore_index=11, image_hw=(2, 3))
        assert label.dtype == np.uint8
        assert label.tolist() == [[0, 1, 2], [IGNORE, IGNORE, 10]]
    path = write_label(tmp_path / "a.png", [[0, 1, 255]])
    assert read_label(path, num_classes=2, ignore_index=0).tolist() == [[IGNORE, 1, IGNORE]]
    counted_from_one = read_label(path, num_classes=1, ignore_index=None, reduce_zero_label=True)
    assert counted_from_one.tolist() == [[IGNORE, 0, IGNORE]]


def test_label_values_out_of_range_and_another_size_are_refused(tmp_path: Path) -> None:
    path = write_label(tmp_path / "a.png", [[0, 11, 12, 255]])
    for ignore_index, message in (
        (None, r"0-10 or ignored values \(255\), got \[11, 12\]"),
        (11, r"ignored values \(255, 11\), got \[12\]"),
    ):
        with pytest.raises(ConfigError, match=rf"a\.png.*{message}; name the ignored value with ignore_index=N"):
            read_label(path, num_classes=11, ignore_index=ignore_index)
    with pytest.raises(ShapeError, match=r"a\.png: expected the image's size 4x1, got 1x4"):
        read_label(path, num_classes=13, ignore_index=None, image_hw=(4, 1))
