"""The calibration set as feeds of a network, preprocessed as in deployment. NumPy; see `images` for where it lies."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nrd_trt.calibration.coverage import count_labels
from nrd_trt.calibration.images import open_images
from nrd_trt.calibration.survey import look_at
from nrd_trt.data.exposure import exposure_of, grey_picture
from nrd_trt.data.folders import default_labels
from nrd_trt.data.preprocessing import FittedImage, fit_image
from nrd_trt.errors import CalibrationError, ConfigError, ShapeError
from nrd_trt.files import canonical_json, sha256_bytes
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.progress import bar
from nrd_trt.runtime.graph_io import batch_feed
from nrd_trt.specs import DEFAULT_IMAGES, Fit, InputShape, Resample, Size


class Feed(dict[str, np.ndarray]):
    """Input arrays by name, with the names of their images.

    Args:
        arrays: By input name; the first axis is the batch.
        names: Names of the images. A batch may be longer: it is then filled up with its own images.
        contents_hw: Per image, the upper left part that is not padding.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], names: Sequence[str], contents_hw: Sequence[Size]) -> None:
        super().__init__(arrays)
        self.names = tuple(names)
        self.contents_hw = tuple(contents_hw)


class CalibrationStream:
    """Feeds of at most `images` images: sized, repeatable, the same in every pass, each of fresh arrays.

    Every image is read once when the stream is made, so that what is wrong with one is known before any work.

    Args:
        data: A folder of images (see `nrd_trt.data.folders`), a video file, or ``"synthetic"``.
        facts: Facts of the file to calibrate: sizes, batch, input form and preprocessing.
        images: At most this many, spread over the set.
        seed: Chooses among more images.
        fit: How images get the engine's size.
        resample: What scales them; see `nrd_trt.data.preprocessing.fit_image`.
        labels: Folder of index PNGs, paired with the images by name; None takes ``data/labels`` where that exists.
        ignore_index: Label value that is not counted, besides 255; None takes the model's.
        progress: Show a bar on stderr where reading takes over two seconds.

    Attributes:
        names: Names of the images.
        sha256: Hash of the names, of what the files hold and of how they are fitted.
        exposure: How bright the images are.
        labelled: Classes of their labels.
        warnings: What speaks against calibrating on them.

    Raises:
        ConfigError: No such data, an image or a label that was asked for cannot be read, or an option is out of range.
        CalibrationError: The set is empty or of one image only.
        ShapeError: An image does not fit; it is named.
        VideoError: The video cannot be read.
        MissingDependencyError: A video needs PyAV.
    """

    def __init__(
        self,
        data: Path | str,
        facts: GraphFacts,
        *,
        images: int = DEFAULT_IMAGES,
        seed: int = 0,
        fit: Fit = "resize",
        resample: Resample = "pillow",
        labels: Path | None = None,
        ignore_index: int | None = None,
        progress: bool = False,
    ) -> None:
        self._facts, self._fit, self._resample = facts, fit, resample
        self._batch = facts.shape.batch.min
        # Images of one batch must have one size.
        self._shape = facts.shape if self._batch == 1 else InputShape.static(facts.shape.opt_hw, self._batch)
        self._source = open_images(data, images=images, seed=seed, size_hw=facts.shape.opt_hw)
        if labels is not None and not self._source.paths:
            raise ConfigError(f"labels={labels}: expected a folder of images that they belong to, got {data}.")
        self.names = self._source.names
        survey = self._survey(progress)
        self.sha256, self.exposure = survey.sha256, exposure_of(survey.pictures)
        self.labelled, unread = count_labels(
            self._source.paths,
            survey.sizes_hw,
            labels or default_labels(Path(data)),
            class_names=facts.info.class_names,
            ignore_index=facts.info.ignore_index if ignore_index is None else ignore_index,
            required=labels is not None,
        )
        self.warnings = (*look_at(self.names, self._source.drives, survey.pictures), *unread)

    def __len__(self) -> int:
        """Return the number of feeds."""
        return -(-len(self.names) // self._batch)

    def __iter__(self) -> Iterator[Feed]:
        """Yield one feed per batch; the last is filled up with its own images."""
        images = self._fitted()
        for first in range(0, len(self.names), self._batch):
            names = self.names[first : first + self._batch]
            fitted = [entry for _, entry in itertools.islice(images, len(names))]
            pixels = np.stack([fitted[index % len(names)].image for index in range(self._batch)])
            yield Feed(batch_feed(pixels, self._facts), names, [entry.content_hw for entry in fitted])

    def _fitted(self) -> Iterator[tuple[np.ndarray, FittedImage]]:
        """Yield every image as it is, and as the engine gets it."""
        for name, rgb in zip(self.names, self._source.read(), strict=True):
            try:
                yield rgb, fit_image(rgb, self._shape, self._facts.info, self._fit, resample=self._resample)
            except ShapeError as exc:
                raise ShapeError(f"{name}: {exc}") from exc

    def _survey(self, progress: bool) -> _Survey:
        """Read every image once."""
        shown = bar(
            self._fitted(), desc="reading calibration images", unit="image", show=progress, total=len(self.names)
        )
        pixels, pictures, sizes_hw = [], [], []
        for rgb, fitted in shown:
            pixels.append(hashlib.sha256(fitted.image.data).hexdigest())
            pictures.append(grey_picture(rgb))
            sizes_hw.append(fitted.original_hw)
        check_distinct(pixels)
        contents = self._source.contents() or pixels
        key: dict[str, Any] = {"fit": self._fit, "images": [*zip(self.names, contents, strict=True)]}
        if self._resample != "pillow":  # which was the only way once, and keys of then stay
            key["resample"] = self._resample
        return _Survey(sha256=sha256_bytes(canonical_json(key)), pictures=pictures, sizes_hw=sizes_hw)


@dataclass(frozen=True, kw_only=True)
class _Survey:
    """What is kept of the images when each was read once: the key of the set, small pictures, sizes."""

    sha256: str
    pictures: list[np.ndarray]
    sizes_hw: list[Size]


def names_of(feed: Mapping[str, np.ndarray], number: int) -> tuple[str, ...]:
    """Return the names of a feed's images; those of a plain mapping are made up."""
    if isinstance(feed, Feed):
        return feed.names
    return tuple(f"image {index} of feed {number}" for index in range(batch_of(feed)))


def contents_of(feed: Mapping[str, np.ndarray], mask_hw: tuple[int, ...], count: int) -> list[Size]:
    """Return the part of each mask that is not padding, in the mask's pixels."""
    if not isinstance(feed, Feed):
        return [(mask_hw[0], mask_hw[1])] * count
    height, width = next((a.shape[1:3] if a.shape[-1] == 3 else a.shape[2:4]) for a in feed.values())
    return [(h * mask_hw[0] // height, w * mask_hw[1] // width) for h, w in feed.contents_hw]


def batch_of(feed: Mapping[str, np.ndarray]) -> int:
    """Return the length of the first axis of the inputs."""
    return max((array.shape[0] for array in feed.values()), default=0)


def image_digests(feed: Mapping[str, np.ndarray], count: int) -> list[str]:
    """Return the SHA-256 of each of the first `count` images: types, shapes and values of its part of every input."""
    return ["-".join(_digest(array[index]) for _, array in sorted(feed.items())) for index in range(count)]


def check_distinct(digests: Sequence[str]) -> None:
    """Raise `CalibrationError` where there are not two different images."""
    distinct = len(set(digests))
    if distinct < 2:
        got = "one image" if len(digests) == 1 else f"{len(digests)} copies of one image"
        raise CalibrationError(
            f"calibration set: expected different images, got {got}; ranges of one image do not hold for others. Give "
            "images of the scenes that the engine will see, a hundred or more."
        )


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
