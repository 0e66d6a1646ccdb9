"""Layouts of data sets on disk: the right pairs, and every incomplete folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from nrd_trt.data.datasets import find_split
from nrd_trt.errors import ConfigError


def touch(folder: Path, *names: str) -> None:
    """Make empty files; nothing here is opened as a picture."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


CAMVID = ("{}/images/{}.jpg", "{}/labels/{}.png")
CITY = ("leftImg8bit/{}/{}_leftImg8bit.png", "gtFine/{}/{}_gtFine_labelTrainIds.png")
ADE = ("images/{}/{}.jpg", "annotations/{}/{}.png")
CONTEXT = ("JPEGImages/{1}.jpg", "SegmentationClassContext/{1}.png")
Parts = dict[str, list[str]]
# Per layout: image and label by part and stem, the stems that shall be found, and what is not read.
LAYOUTS: dict[str, tuple[tuple[str, str], Parts, Parts, tuple[str, ...]]] = {
    "camvid": (CAMVID, {"train": ["a", "b"]}, {"val": ["c"]}, ("test/images/d.jpg", "train/labels/e.png")),
    "cityscapes": (
        CITY, {"train": ["bonn/bonn_0_1", "ulm/ulm_1_2"]}, {"val": ["ulm/ulm_9_9"]},
        ("leftImg8bit/test/x/x_0_0_leftImg8bit.png", "gtFine/train/ulm/ulm_1_2_gtFine_labelIds.png"),
    ),
    "ade20k": (
        ADE, {"training": ["ADE_1", "ADE_2"]}, {"validation": ["ADE_3"]},
        ("images/training/readme.txt", "objectInfo150.txt"),
    ),
    "pascal_context": (CONTEXT, {"train": ["2008_2", "2008_1"]}, {"val": ["2008_3"]}, ("JPEGImages/2008_9.jpg",)),
}  # fmt: skip


def pairs(forms: tuple[str, str], parts: Parts) -> list[tuple[str, ...]]:
    return [tuple(form.format(part, stem) for form in forms) for part, stems in parts.items() for stem in stems]


def write(layout: str, folder: Path) -> None:
    forms, training, validation, others = LAYOUTS[layout]
    touch(folder, *others, *(name for pair in pairs(forms, training | validation) for name in pair))
    if layout == "pascal_context":
        listing = folder / "ImageSets" / "SegmentationContext"
        listing.mkdir(parents=True)
        for part, stems in (training | validation).items():
            (listing / f"{part}.txt").write_text("\n".join(stems))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    write(layout, tmp_path)
    forms, training, validation, _ = LAYOUTS[layout]
    split = find_split([tmp_path])
    for found, parts in ((split.training, training), (split.validation, validation)):
        assert [tuple(path.relative_to(tmp_path).as_posix() for path in pair) for pair in found] == pairs(forms, parts)


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
    write("camvid", tmp_path / "a")
    write("pascal_context", tmp_path / "b")
    split = find_split([tmp_path / "b", tmp_path / "a"])
    assert [image.stem for image, _ in split.training] == ["2008_2", "2008_1", "a", "b"]
    assert [image.stem for image, _ in split.validation] == ["2008_3", "c"]


@pytest.mark.parametrize(
    ("layout", "gone", "message"),
    [
        (None, ".", "expected a folder of labelled images, found none; check the path"),
        (None, "", "expected images .*found none; check the path"),
        ("camvid", "train/labels/b.png", r"train/labels: 1 of 2 images have no label \(b\.png\)"),
        ("camvid", "val/images/c.jpg", r"val/images: expected images .*found none"),
        ("cityscapes", CITY[1].format("val", "ulm/ulm_9_9"), r"ulm_9_9_gtFine_labelTrainIds\.png: expected a f.*creat"),
        ("cityscapes", CITY[0].format("val", "ulm/ulm_9_9"), r"leftImg8bit/val: expected \*/\*_leftImg8bit\.png, fo"),
        ("ade20k", ADE[1].format("training", "*"), r"training/ADE_1\.png: expected a file, found none \(2 are mis"),
        ("ade20k", ADE[0].format("validation", "ADE_3"), r"images/validation: expected images, found none"),
        ("pascal_context", CONTEXT[1].format("", "2008_1"), r"SegmentationClassContext/2008_1\.png: expected a file"),
        ("pascal_context", CONTEXT[0].format("", "2008_3"), r"JPEGImages/2008_3\.jpg: expected a file, found none"),
        ("pascal_context", "ImageSets/*/val.txt", r"SegmentationContext/val\.txt: expected names of images"),
    ],
)  # fmt: skip
def test_what_is_missing_of_a_data_set_is_named(layout: str | None, gone: str, message: str, tmp_path: Path) -> None:
    (folder := tmp_path / "set").mkdir()
    if layout is not None:
        write(layout, folder)
    if gone == ".":
        folder.rmdir()
    else:
        for path in list(folder.glob(gone)) if gone else []:
            path.unlink()
    with pytest.raises(ConfigError, match=rf"/set.*{message}"):
        find_split([folder])
