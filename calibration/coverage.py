"""Which classes calibration images show, by the model's own masks and by labels. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nrd_trt.data.folders import IGNORE, read_label
from nrd_trt.errors import ConfigError, NrdTrtError
from nrd_trt.specs import Size

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Classes of masks.

    Attributes:
        pixel_share: Share of all pixels that count per class name, 0-1.
        images: Number of images per class name that show it.
    """

    pixel_share: dict[str, float]
    images: dict[str, int]

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes that no image shows."""
        return tuple(name for name, count in self.images.items() if not count)


@dataclass(frozen=True, kw_only=True)
class LabelCoverage(ClassCounts):
    """Classes that the labels of the images show; ignored pixels are not counted.

    Attributes:
        labelled: Number of images with a label.
        never_labelled: Classes that no label shows.
        never_predicted: Classes that labels show and that the model predicts on no image.
    """

    labelled: int
    never_labelled: tuple[str, ...]
    never_predicted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Coverage(ClassCounts):
    """Classes of the masks that the model itself predicts on the images; padding is not counted.

    Attributes:
        never_seen: Classes that no mask shows.
        labels: What the labels show; None where the images have none.
    """

    never_seen: tuple[str, ...]
    labels: LabelCoverage | None = None


class ClassCounter:
    """Counts the classes of masks.

    Args:
        class_names: One per index.

    Attributes:
        masks: Number of masks.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = tuple(class_names)
        self._pixels = np.zeros(len(self._names), np.int64)
        self._images = np.zeros(len(self._names), np.int64)
        self.masks = 0

    def add(self, mask: np.ndarray) -> None:
        """Count one mask of class indices, of any shape; what does not count is cut off before."""
        counts = np.bincount(mask.reshape(-1), minlength=len(self._names))
        self._pixels += counts
        self._images += counts > 0
        self.masks += 1

    def counts(self) -> ClassCounts | None:
        """Return what was counted; None where no pixel was."""
        if not self._pixels.any():
            return None
        shares = (self._pixels / self._pixels.sum()).tolist()
        images: dict[str, int] = dict(zip(self._names, self._images.tolist(), strict=True))
        return ClassCounts(pixel_share=dict(zip(self._names, shares, strict=True)), images=images)


def count_labels(
    images: Sequence[Path],
    sizes_hw: Sequence[Size],
    folder: Path | None,
    *,
    class_names: Sequence[str],
    ignore_index: int | None,
    required: bool,
) -> tuple[ClassCounter, tuple[str, ...]]:
    """Count the classes in the labels of images.

    Args:
        images: Files of the images.
        sizes_hw: Their sizes.
        folder: Labels by the names of the images; None where there are none.
        class_names: One per index.
        ignore_index: Value that is not counted, besides 255.
        required: Whether every image must have a label that can be read, because they were asked for.

    Returns:
        What was counted, and a warning where labels that lie beside the images could not be.

    Raises:
        ConfigError: A required label is missing or cannot be read.
        ShapeError: A required label has another size than its image.
    """
    counter = ClassCounter(class_names)
    try:
        for image, size_hw in zip(images if folder else (), sizes_hw, strict=False):
            path = Path(folder or "", f"{image.stem}.png")
            if path.is_file():
                label = read_label(path, num_classes=len(class_names), ignore_index=ignore_index, image_hw=size_hw)
                counter.add(label[label != IGNORE])
            elif required:
                raise ConfigError(f"{path}: expected the label of {image.name}, found none; add it or leave it out.")
    except NrdTrtError as exc:
        if required:
            raise
        text = f"calibration set: the labels beside the images are not counted: {exc}"
        return ClassCounter(class_names), (text,)
    return counter, ()


def coverage_of(predicted: ClassCounter, labelled: ClassCounter) -> Coverage | None:
    """Return the classes that were predicted, and those of the labels beside them; None where no mask was drawn."""
    masks, labels = predicted.counts(), labelled.counts()
    if masks is None:
        return None
    if labels is None:
        return Coverage(**vars(masks), never_seen=masks.absent)
    beside = LabelCoverage(
        **vars(labels),
        labelled=labelled.masks,
        never_labelled=labels.absent,
        never_predicted=tuple(name for name in masks.absent if name not in labels.absent),
    )
    return Coverage(**vars(masks), never_seen=masks.absent, labels=beside)


def look_at_classes(coverage: Coverage | None) -> tuple[str, ...]:
    """Say which classes the images do not show; where there are labels they tell what the model overlooks."""
    if coverage is None:
        return ()
    labels, found = coverage.labels, []
    if labels is None and coverage.never_seen:
        names = coverage.never_seen
        found.append(f"classes never predicted on the calibration images: {listed(names)}; add images that show them.")
    if labels is not None and labels.never_predicted:
        names = labels.never_predicted
        shown = {name: f"{name}, labelled on {labels.images[name]} of {labels.labelled} images" for name in names}
        found.append(
            "classes never predicted on the calibration images although their labels show them: "
            f"{listed(tuple(shown.values()))}; more images do not help: see with nrd_trt.evaluate whether the model "
            "finds them, and whether names and order of its classes are those of the labels."
        )
    if labels is not None and labels.never_labelled:
        names = labels.never_labelled
        found.append(f"classes never labelled on the calibration images: {listed(names)}; add images that show them.")
    return tuple(found)


def listed(names: Sequence[str]) -> str:
    """Return names as one text, the first of many, and their number."""
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "") + f" ({len(names)})"
