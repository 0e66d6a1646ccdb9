"""Images and labels on disk: listing, pairing by stem, reading labels. NumPy and Pillow only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nrd_trt.data.images import open_image
from nrd_trt.errors import ConfigError, ShapeError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
IGNORE = 255
"""Value of pixels that no metric counts, in every label array that this module returns."""


def list_images(data: Path) -> list[Path]:
    """List the images of ``data/images`` where that folder exists, else of `data`, sorted by name.

    Raises:
        ConfigError: The folder does not exist or holds no image.
    """
    folder = data / "images" if (data / "images").is_dir() else data
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder of images, found none; check the path.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ConfigError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none; check the path.")
    return paths


def default_labels(data: Path) -> Path | None:
    """Return ``data/labels`` where `data` has the images/labels layout, else None."""
    labels = data / "labels"
    return labels if (data / "images").is_dir() and labels.is_dir() else None


def list_pairs(data: Path, labels: Path | None = None) -> list[tuple[Path, Path]]:
    """Pair every image with the label of the same stem.

    Args:
        data: As for `list_images`.
        labels: Folder of index PNGs; ``data/labels`` when None.

    Returns:
        ``(image, label)`` paths in the order of `list_images`.

    Raises:
        ConfigError: There is no label folder, or an image has no label.
    """
    images = list_images(data)
    folder = labels or default_labels(data)
    if folder is None or not folder.is_dir():
        raise ConfigError(f"{folder or data / 'labels'}: expected a folder of label PNGs; give labels=DIR.")
    pairs = [(image, folder / f"{image.stem}.png") for image in images]
    missing = [label.name for _, label in pairs if not label.is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ConfigError(f"{folder}: {len(missing)} of {len(pairs)} images have no label ({shown}).")
    return pairs


def read_label(
    path: Path,
    *,
    num_classes: int,
    ignore_index: int | None,
    image_hw: tuple[int, int] | None = None,
    reduce_zero_label: bool = False,
) -> np.ndarray:
    """Read an index PNG as ``(H, W) uint8`` with every ignored pixel set to 255.

    Args:
        path: 8-bit grey or palette PNG of class indices.
        num_classes: K; values 0 to K-1 are classes.
        ignore_index: A value ignored besides 255, or None.
        image_hw: Size of the image that the label belongs to; checked when given.
        reduce_zero_label: Whether the file counts classes from 1, with 0 for ignored pixels.

    Raises:
        ConfigError: The file is not an index image or has a value out of range.
        ShapeError: The label has another size than its image.
    """
    label = _read_indices(path, image_hw)
    if reduce_zero_label:
        label = np.where((label == 0) | (label == IGNORE), np.uint8(IGNORE), label - np.uint8(1))
    if ignore_index is not None:
        label = np.where(label == ignore_index, np.uint8(IGNORE), label)
    wrong = np.unique(label[(label >= num_classes) & (label != IGNORE)])
    if wrong.size:
        raise ConfigError(
            f"{path}: expected class indices 0-{num_classes - 1} or ignored values (255"
            f"{'' if ignore_index is None else f', {ignore_index}'}), got {wrong.tolist()[:8]}; "
            "name the ignored value with ignore_index=N."
        )
    return label


def _read_indices(path: Path, image_hw: tuple[int, int] | None) -> np.ndarray:
    with open_image(path, formats=("PNG",), what="a label PNG") as image:
        if image.mode not in ("L", "P"):
            raise ConfigError(
                f"{path}: expected an 8-bit index PNG (mode L or P), got mode {image.mode}; "
                "convert colours to class indices first."
            )
        if image_hw not in (None, (image.height, image.width)):
            raise ShapeError(
                f"{path}: expected the image's size {image_hw[0]}x{image_hw[1]}, got {image.height}x{image.width}; "
                "labels must have the size of their images."
            )
        return np.array(image)
