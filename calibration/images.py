"""Where calibration images come from: a folder, a video, drawn scenes. NumPy and Pillow; PyAV for videos, on use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nrd_trt.calibration.survey import drive_of
from nrd_trt.data.datasets import SYNTHETIC
from nrd_trt.data.folders import IMAGE_SUFFIXES, list_images
from nrd_trt.data.images import open_image, read_image
from nrd_trt.data.synthetic import street_scene
from nrd_trt.data.videos import VIDEO_SUFFIXES, VideoReader
from nrd_trt.errors import CalibrationError, ConfigError, ShapeError
from nrd_trt.files import sha256_file

# Scenes of validation have seeds below 100, those of the training recipes 100 000 and above.
_SCENE_SEEDS = (20_000, 100_000)
_LABEL_VALUES = 64  # a photo shows more grey levels than a label image has classes
_LOOKED_AT = 3


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images in a fixed order that can be read again and again.

    Attributes:
        names: One per image.
        read: Makes an iterator over the images, ``(H, W, 3) uint8 RGB``, each a fresh array.
        contents: Returns one hash per image, or None where their pixels have to be hashed.
        drives: What each image is of, a drive or a video; None where that is not known.
        paths: Image files; empty for a video and for drawn scenes.
    """

    names: tuple[str, ...]
    read: Callable[[], Iterator[np.ndarray]]
    contents: Callable[[], list[str] | None]
    drives: tuple[str | None, ...]
    paths: tuple[Path, ...] = ()


def open_images(data: Path | str, *, images: int, seed: int, size_hw: tuple[int, int]) -> ImageSet:
    """Open a data set and choose at most `images` of it.

    Args:
        data: A folder of images (see `nrd_trt.data.folders`), a video, or ``"synthetic"``.
        images: At least 1.
        seed: Chooses among more images.
        size_hw: Size of drawn scenes.

    Raises:
        ConfigError: `images` is below 1, or there is no such folder or file.
        CalibrationError: The folder holds no usable images; the message says what it holds.
        VideoError: The video cannot be read.
        MissingDependencyError: A video needs PyAV.
    """
    if images < 1:
        raise ConfigError(f"images={images}: expected 1 or more.")
    if str(data) == SYNTHETIC:
        low, high = _SCENE_SEEDS
        streets = [low + index for index in _choose(high - low, images, seed)]
        return ImageSet(
            names=tuple(f"street {street}" for street in streets),
            read=lambda: (street_scene(street, size_hw).image for street in streets),
            contents=lambda: None,  # how a street is drawn may change from version to version
            drives=(None,) * len(streets),
        )
    path = Path(data)
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ConfigError(
                f"{path}: expected a folder of images, a video ({', '.join(VIDEO_SUFFIXES)}) or "
                f"{SYNTHETIC!r}, got another file."
            )
        return _frames(path, images, seed)
    return _files(path, images, seed)


def _files(folder: Path, images: int, seed: int) -> ImageSet:
    """Image files of a folder."""
    listed = _listed(folder)
    paths = [listed[index] for index in _choose(len(listed), images, seed)]
    _refuse_labels(paths[:_LOOKED_AT])
    return ImageSet(
        names=tuple(path.name for path in paths),
        read=lambda: (read_image(path) for path in paths),
        contents=lambda: [sha256_file(path) for path in paths],
        drives=tuple(drive_of(path.name) for path in paths),
        paths=tuple(paths),
    )


def _frames(path: Path, images: int, seed: int) -> ImageSet:
    """Frames of a video, one from each of equal stretches. Every frame up to the last one chosen is decoded."""
    # Counted, because what a file says of itself is often wrong.
    with closing(VideoReader(path)) as reader:
        total = sum(1 for _ in reader)
    frames = _choose(total, images, seed)

    def read() -> Iterator[np.ndarray]:
        # Frames are passed one by one: seeking lands on other frames in some formats.
        with closing(VideoReader(path)) as reader:
            pictures = enumerate(reader)
            for frame in frames:
                picture = next((picture for index, picture in pictures if index == frame), None)
                if picture is None:
                    raise CalibrationError(f"{path}: expected frame {frame} as before, got none; has the file changed?")
                yield picture.rgb()

    return ImageSet(
        names=tuple(f"{path.name} frame {frame}" for frame in frames),
        read=read,
        contents=lambda: [sha256_file(path)] * len(frames),
        drives=(path.name,) * len(frames),
    )


def _choose(total: int, wanted: int, seed: int) -> list[int]:
    """Choose one index at random from each of `wanted` equal stretches; all where there are no more."""
    if total <= wanted:
        return list(range(total))
    edges = [total * index // wanted for index in range(wanted + 1)]
    rng = np.random.default_rng(seed)
    return [int(rng.integers(low, high)) for low, high in itertools.pairwise(edges)]


def _listed(folder: Path) -> list[Path]:
    """List the images of a folder, or say what it holds instead."""
    try:
        return list_images(folder)
    except ConfigError as exc:
        inner = folder / "images" if (folder / "images").is_dir() else folder
        if not inner.is_dir():
            raise
        raise CalibrationError(f"{inner}: expected images ({', '.join(IMAGE_SUFFIXES)}), {_held(inner)}") from exc


def _held(folder: Path) -> str:
    """Say what a folder without images holds, and what to do."""
    entries = sorted(folder.iterdir())
    folders = [entry for entry in entries if entry.is_dir()]
    if inside := [entry for entry in folders if _has_images(entry) or _has_images(entry / "images")]:
        return f"found them one level below; give {inside[0]} ({len(inside)} such folders)."
    videos = [entry for entry in entries if entry.suffix.lower() in VIDEO_SUFFIXES]
    if videos:
        return f"found a video; give the file itself, {videos[0]}."
    if not entries:
        return "the folder is empty; check the path, and that the copy or the mount is complete."
    kinds = sorted({entry.suffix.lower() or "no suffix" for entry in entries if entry.is_file()})
    listed = ", ".join([*(f"{entry.name}/" for entry in folders[:3]), *kinds[:5]])
    return f"found {listed}; check the path, or convert the files."


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())


def _refuse_labels(paths: Sequence[Path]) -> None:
    """Raise `CalibrationError` where the files are index images: the folder of the labels was given by mistake."""
    if not all(_looks_like_label(path) for path in paths):
        return
    raise CalibrationError(
        f"{paths[0]}: expected a photo, got what looks like a label image (few grey or palette values); "
        "give the folder of the photos."
    )


def _looks_like_label(path: Path) -> bool:
    try:
        with open_image(path) as image:
            return image.mode in ("L", "P") and len(np.unique(np.asarray(image))) <= _LABEL_VALUES
    except (ConfigError, ShapeError):
        return False  # reading it as an image says what is wrong
