"""Where the labelled images of a data set lie: one function per layout on disk. Paths only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nrd_trt.data.folders import IMAGE_SUFFIXES, list_pairs
from nrd_trt.errors import ConfigError

Pair = tuple[Path, Path]
SYNTHETIC = "synthetic"
"""Given as a data set, it stands for procedural street scenes (`nrd_trt.data.synthetic`)."""

_HELD_OUT = 10  # of a folder without a split, every tenth image is kept for validation


@dataclass(frozen=True, kw_only=True)
class Split:
    """Labelled images ``(image, label)`` to train on and to validate on, neither empty."""

    training: list[Pair]
    validation: list[Pair]


def find_split(data: Sequence[Path]) -> Split:
    """List the labelled images of one or several data sets.

    Args:
        data: Folders of these layouts, recognised by the folders in them:

            * CamVid: ``train/`` and ``val/``, each with ``images/`` and ``labels/``;
            * Cityscapes: ``leftImg8bit/{train,val}/CITY/*_leftImg8bit.png`` and
              ``gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png``;
            * ADE20K: ``images/{training,validation}`` and ``annotations/{training,validation}``;
            * Pascal Context: ``JPEGImages``, ``SegmentationClassContext`` and
              ``ImageSets/SegmentationContext/{train,val}.txt``;
            * ``images/`` and ``labels/`` alone: every tenth image is then kept for validation.

    Raises:
        ConfigError: A folder is missing or empty, or an image has no label.
    """
    splits = [_split(folder) for folder in data]
    return Split(
        training=[pair for split in splits for pair in split.training],
        validation=[pair for split in splits for pair in split.validation],
    )


def _split(folder: Path) -> Split:
    """Recognise the layout of a data set by the folders that only it has."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder of labelled images, found none; check the path.")
    layouts: dict[str, tuple[Callable[[Path, str], list[Pair]], str, str]] = {
        "leftImg8bit": (_cityscapes, "train", "val"),
        "annotations/training": (_ade20k, "training", "validation"),
        "ImageSets/SegmentationContext": (_pascal_context, "train", "val"),
    }
    for mark, (pairs_of, training, validation) in layouts.items():
        if (folder / mark).is_dir():
            return Split(training=pairs_of(folder, training), validation=pairs_of(folder, validation))
    if (folder / "train").is_dir() and (folder / "val").is_dir():  # CamVid
        return Split(training=list_pairs(folder / "train"), validation=list_pairs(folder / "val"))
    pairs = list_pairs(folder)
    if len(pairs) < 2:
        raise ConfigError(f"{folder}: expected at least two labelled images, got {len(pairs)}; add more.")
    return Split(
        training=[pair for index, pair in enumerate(pairs) if index % _HELD_OUT], validation=pairs[::_HELD_OUT]
    )


def _cityscapes(folder: Path, part: str) -> list[Pair]:
    image_end, label_end = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"
    images, labels = folder / "leftImg8bit" / part, folder / "gtFine" / part
    found = [
        (path, labels / path.parent.name / (path.name.removesuffix(image_end) + label_end))
        for path in sorted(images.glob(f"*/*{image_end}"))
    ]
    hint = "labelTrainIds are written by cityscapesscripts' createTrainIdLabelImgs"
    return _complete(found, images, f"*/*{image_end}", hint)


def _ade20k(folder: Path, part: str) -> list[Pair]:
    images, labels = folder / "images" / part, folder / "annotations" / part
    paths = sorted(path for path in images.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    found = [(path, labels / f"{path.stem}.png") for path in paths]
    return _complete(found, images, "images", "labels have the stem of their image")


def _pascal_context(folder: Path, part: str) -> list[Pair]:
    listing = folder / "ImageSets" / "SegmentationContext" / f"{part}.txt"
    images, labels = folder / "JPEGImages", folder / "SegmentationClassContext"
    stems = listing.read_text().split() if listing.is_file() else []
    found = [(images / f"{stem}.jpg", labels / f"{stem}.png") for stem in stems]
    return _complete(found, listing, "names of images", "labels are written by mmseg's convert_pascal_context")


def _complete(pairs: list[Pair], where: Path, what: str, hint: str) -> list[Pair]:
    """Return the pairs; raise `ConfigError` when there are none, or an image or a label does not exist."""
    if not pairs:
        raise ConfigError(f"{where}: expected {what}, found none; check the path.")
    missing = [path for pair in pairs for path in pair if not path.is_file()]
    if missing:
        raise ConfigError(f"{missing[0]}: expected a file, found none ({len(missing)} are missing); {hint}.")
    return pairs
