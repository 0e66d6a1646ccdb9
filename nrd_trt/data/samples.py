"""Images for parity, ranges and validation: the user's, or procedural scenes where none are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from nrd_trt.data.folders import default_labels, list_images, list_pairs, read_label
from nrd_trt.data.images import read_image
from nrd_trt.data.preprocessing import fit_image
from nrd_trt.data.synthetic import street_scene
from nrd_trt.errors import ConfigError
from nrd_trt.specs import Fit, InputShape, ModelInfo, Resample, Size

SYNTHETIC_COUNT = 4
MEASURED_COUNT = 2
"""Images that magnitudes and parity of an export are measured on."""
SCALES_COUNT = 8
"""Images that scales of activations are judged on, evenly spaced: largest values differ between images."""
# The training recipes draw their scenes from seeds of 100 000 and above.
_FIRST_SEED = 7


Restore = Callable[[np.ndarray], np.ndarray]


def spread_places(length: int, count: int) -> list[int]:
    """Return up to `count` places among `length`, evenly spaced, the first and the last among them."""
    places: list[int] = np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
    return places


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image to compare on.

    Attributes:
        image: ``(h, w, 3) uint8`` at the engine's size.
        restore: Brings an engine-sized map back to the image's own size; padding is cut off.
        label: ``(H, W) uint8`` with 255 for ignored pixels, or None.
        name: Name of the file, or what else the image is.
    """

    image: np.ndarray
    restore: Restore
    label: np.ndarray | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """A re-iterable set of samples.

    Attributes:
        data: Folder of images (see `nrd_trt.data.folders`); None for procedural scenes.
        labels: Folder of labels; None takes ``data/labels`` where that exists.
        shape: Sizes that the engine accepts.
        info: The model's preprocessing and classes.
        fit: How images are brought to the engine's size.
        resample: What scales them, see `nrd_trt.data.preprocessing.fit_image`.
        ignore_index: Overrides the model's.
    """

    data: Path | None
    labels: Path | None
    shape: InputShape
    info: ModelInfo
    fit: Fit = "resize"
    resample: Resample = "pillow"
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and self.data is None:
            raise ConfigError("labels= needs data=: labels are paired with images by name.")
        self._paths()  # so that an empty folder is found before any work is done

    @property
    def name(self) -> str:
        """What the samples are, for records."""
        return "synthetic scenes" if self.data is None else "given images"

    def __len__(self) -> int:
        return SYNTHETIC_COUNT if self.data is None else len(self._paths())

    def __iter__(self) -> Iterator[Sample]:
        return self._at(range(len(self)))

    def first(self, count: int) -> list[Sample]:
        """Return up to `count` samples from the beginning."""
        return [sample for sample, _ in zip(self, range(count), strict=False)]

    def spread(self, count: int) -> list[Sample]:
        """Return up to `count` samples, evenly spaced: neighbours in a video show the same."""
        return [*self._at(spread_places(len(self), count))]

    def _at(self, places: Iterable[int]) -> Iterator[Sample]:
        paths = self._paths()
        for place in places:
            if self.data is None:
                seed = _FIRST_SEED + place
                yield self._sample(_scene(seed, self.shape.opt_hw).copy(), None, f"scene {seed}")
            else:
                image, label = paths[place]
                yield self._sample(read_image(image), label, image.name)

    def _paths(self) -> list[tuple[Path, Path | None]]:
        if self.data is None:
            return []
        if self.labels is not None or default_labels(self.data) is not None:
            return [*list_pairs(self.data, self.labels)]
        return [(image, None) for image in list_images(self.data)]

    def _sample(self, rgb: np.ndarray, label: Path | None, name: str) -> Sample:
        fitted = fit_image(rgb, self.shape, self.info, self.fit, resample=self.resample)
        ignore = self.info.ignore_index if self.ignore_index is None else self.ignore_index
        values = None
        if label is not None:
            values = read_label(
                label, num_classes=len(self.info.class_names), ignore_index=ignore, image_hw=fitted.original_hw
            )
        return Sample(image=fitted.image, restore=fitted.restore, label=values, name=name)


@lru_cache(maxsize=SYNTHETIC_COUNT)
def _scene(seed: int, size_hw: Size) -> np.ndarray:
    """Draw a scene once: a build looks at each of them several times."""
    return street_scene(seed, size_hw).image
