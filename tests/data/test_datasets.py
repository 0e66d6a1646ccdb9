"""Layouts of data sets on disk: the right pairs, and every incomplete folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.data.datasets import Split, find_split
from nrd_trt.errors import ConfigError

Layout = Callable[[Path], None]


def touch(folder: Path, *names: str) -> None:
    """Make empty files; nothing here is opened as a picture."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_of(split: Split, folder: Path) -> dict[str, list[tuple[str, ...]]]:
    return {
        part: [tuple(path.relative_to(folder).as_posix() for path in pair) for pair in pairs]
        for part, pairs in vars(split).items()
    }


CITY = ("leftImg8bit/{}/{}_leftImg8bit.png", "gtFine/{}/{}_gtFine_labelTrainIds.png")
ADE = ("images/{}/{}.jpg", "annotations/{}/{}.png")
CONTEXT = ("JPEGImages/{}.jpg", "SegmentationClassContext/{}.png")


def camvid(folder: Path) -> None:
    for part, stems in (("train", "ba"), ("val", "c")):
        touch(folder, *(f"{part}/images/{stem}.jpg" for stem in stems), *(f"{part}/labels/{s}.png" for s in stems))
    touch(folder, "test/images/d.jpg", "train/labels/e.png")


def cityscapes(folder: Path) -> None:
    for part, stems in (("train", ("ulm/ulm_1_2", "bonn/bonn_0_1")), ("val", ("ulm/ulm_9_9",)), ("test", ("x/x_0_0",))):
        touch(folder, *(name.format(part, stem) for stem in stems for name in CITY))
    touch(folder, "gtFine/train/ulm/ulm_1_2_gtFine_labelIds.png", "gtFine/train/ulm/ulm_1_2_gtFine_color.png")


def ade20k(folder: Path) -> None:
    for part, stems in (("training", ("ADE_2", "ADE_1")), ("validation", ("ADE_3",))):
        touch(folder, *(name.format(part, stem) for stem in stems for name in ADE))
    touch(folder, "images/training/readme.txt", "objectInfo150.txt")


def pascal_context(folder: Path) -> None:
    touch(folder, *(name.format(stem) for stem in ("2008_2", "2008_1", "2008_3", "2008_9") for name in CONTEXT))
    listing = folder / "ImageSets" / "SegmentationContext"
    listing.mkdir(parents=True)
    (listing / "train.txt").write_text("2008_2\n2008_1\n")
    (listing / "val.txt").write_text("2008_3")


EXPECTED: dict[Layout, dict[str, Any]] = {
    camvid: {
        "training": [("train/images/a.jpg", "train/labels/a.png"), ("train/images/b.jpg", "train/labels/b.png")],
        "validation": [("val/images/c.jpg", "val/labels/c.png")],
    },
    cityscapes: {
        "training": [tuple(name.format("train", stem) for name in CITY) for stem in ("bonn/bonn_0_1", "ulm/ulm_1_2")],
        "validation": [tuple(name.format("val", "ulm/ulm_9_9") for name in CITY)],
    },
    ade20k: {
        "training": [tuple(name.format("training", stem) for name in ADE) for stem in ("ADE_1", "ADE_2")],
        "validation": [tuple(name.format("validation", "ADE_3") for name in ADE)],
    },
    pascal_context: {
        "training": [tuple(name.format(stem) for name in CONTEXT) for stem in ("2008_2", "2008_1")],
        "validation": [tuple(name.format("2008_3") for name in CONTEXT)],
    },
}


@pytest.mark.parametrize("layout", EXPECTED, ids=lambda layout: layout.__name__)
def test_layouts(layout: Layout, tmp_path: Path) -> None:
    layout(tmp_path)
    assert names_of(find_split([tmp_path]), tmp_path) == EXPECTED[layout]


def test_every_tenth_image_of_a_plain_folder_is_kept_for_validation(tmp_path: Path) -> None:
    stems = [f"{index:02}" for index in range(21)]
    touch(tmp_path, *(f"images/{stem}.png" for stem in stems), *(f"labels/{stem}.png" for stem in stems))
    split = find_split([tmp_path])
    assert [image.stem for image, _ in split.validation] == ["00", "10", "20"]
    assert [image.stem for image, _ in split.training] == [stem for stem in stems if not stem.endswith("0")]
    assert all(label == tmp_path / "labels" / f"{image.stem}.png" for image, label in split.training + split.validation)
    touch(tmp_path / "single", "images/a.png", "labels/a.png")
    with pytest.raises(ConfigError, match="/single: expected at least two labelled images, got 1"):
        find_split([tmp_path / "single"])


def test_several_data_sets_follow_each_other(tmp_path: Path) -> None:
    camvid(tmp_path / "a")
    pascal_context(tmp_path / "b")
    split = find_split([tmp_path / "b", tmp_path / "a"])
    assert [image.stem for image, _ in split.training] == ["2008_2", "2008_1", "a", "b"]
    assert [image.stem for image, _ in split.validation] == ["2008_3", "c"]


# --- what is incomplete ----------------------------------------------------------------------------------------------


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("layout", "gone", "message"),
    [
        (nothing, ".", "expected a folder of labelled images, found none; check the path"),
        (nothing, "", "expected images .*found none; check the path"),
        (camvid, "train/labels/b.png", r"train/labels: 1 of 2 images have no label \(b\.png\)"),
        (camvid, "val/images/c.jpg", r"val/images: expected images .*found none"),
        (cityscapes, CITY[1].format("val", "ulm/ulm_9_9"), r"ulm_9_9_gtFine_labelTrainIds\.png: expected a f.*creat"),
        (cityscapes, CITY[0].format("val", "ulm/ulm_9_9"), r"leftImg8bit/val: expected \*/\*_leftImg8bit\.png, fo"),
        (ade20k, ADE[1].format("training", "*"), r"training/ADE_1\.png: expected a file, found none \(2 are mis"),
        (ade20k, ADE[0].format("validation", "ADE_3"), r"images/validation: expected images, found none"),
        (pascal_context, CONTEXT[1].format("2008_1"), r"SegmentationClassContext/2008_1\.png: expected a file, fou"),
        (pascal_context, CONTEXT[0].format("2008_3"), r"JPEGImages/2008_3\.jpg: expected a file, found none"),
        (pascal_context, "ImageSets/*/val.txt", r"SegmentationContext/val\.txt: expected names of images"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(layout: Layout, gone: str, message: str, tmp_path: Path) -> None:
    (folder := tmp_path / "set").mkdir()
    layout(folder)
    if gone == ".":
        folder.rmdir()
    else:
        for path in list(folder.glob(gone)) if gone else []:
            path.unlink()
    with pytest.raises(ConfigError, match=rf"/set.*{message}"):
        find_split([folder])
