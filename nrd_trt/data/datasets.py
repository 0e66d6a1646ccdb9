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
    splits = [_layout(folder)(folder) for folder in data]
    return Split(
        training=[pair for split in splits for pair in split.training],
        validation=[pair for split in splits for pair in split.validation],
    )


def _layout(folder: Path) -> Callable[[Path], Split]:
    """Recognise the layout by the folders that only it has."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder of labelled images, found none; check the path.")
    layouts = {
        "leftImg8bit": _cityscapes,
        "annotations/training": _ade20k,
        "ImageSets/SegmentationContext": _pascal_context,
    }
    for mark, layout in layouts.items():
        if (folder / mark).is_dir():
            return layout
    return _camvid if (folder / "train").is_dir() and (folder / "val").is_dir() else _unsplit


def _camvid(folder: Path) -> Split:
    return Split(training=list_pairs(folder / "train"), validation=list_pairs(folder / "val"))


def _unsplit(folder: Path) -> Split:
    pairs = list_pairs(folder)
    if len(pairs) < 2:
        raise ConfigError(f"{folder}: expected at least two labelled images, got {len(pairs)}; add more.")
    return Split(
        training=[pair for index, pair in enumerate(pairs) if index % _HELD_OUT], validation=pairs[::_HELD_OUT]
    )


def _cityscapes(folder: Path) -> Split:
    image_end, label_end = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"

    def pairs(part: str) -> list[Pair]:
        images = sorted((folder / "leftImg8bit" / part).glob(f"*/*{image_end}"))
        labels = folder / "gtFine" / part
        found = [(path, labels / path.parent.name / (path.name.removesuffix(image_end) + label_end)) for path in images]
        hint = "labelTrainIds are written by cityscapesscripts' createTrainIdLabelImgs"
        return _complete(found, folder / "leftImg8bit" / part, f"*/*{image_end}", hint)

    return Split(training=pairs("train"), validation=pairs("val"))


def _ade20k(folder: Path) -> Split:
    def pairs(part: str) -> list[Pair]:
        images = folder / "images" / part
        paths = sorted(path for path in images.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        found = [(path, folder / "annotations" / part / f"{path.stem}.png") for path in paths]
        return _complete(found, images, "images", "labels have the stem of their image")

    return Split(training=pairs("training"), validation=pairs("validation"))


def _pascal_context(folder: Path) -> Split:
    def pairs(part: str) -> list[Pair]:
        listing = folder / "ImageSets" / "SegmentationContext" / f"{part}.txt"
        stems = listing.read_text().split() if listing.is_file() else []
        found = [
            (folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClassContext" / f"{stem}.png")
            for stem in stems
        ]
        return _complete(found, listing, "names of images", "labels are written by mmseg's convert_pascal_context")

    return Split(training=pairs("train"), validation=pairs("val"))


def _complete(pairs: list[Pair], where: Path, what: str, hint: str) -> list[Pair]:
    """Return the pairs; raise `ConfigError` when there are none, or an image or a label does not exist."""
    if not pairs:
        raise ConfigError(f"{where}: expected {what}, found none; check the path.")
    missing = [path for pair in pairs for path in pair if not path.is_file()]
    if missing:
        raise ConfigError(f"{missing[0]}: expected a file, found none ({len(missing)} are missing); {hint}.")
    return pairs
