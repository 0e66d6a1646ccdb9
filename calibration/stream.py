"""The calibration set as feeds of a network, preprocessed as in deployment. NumPy; see `sources` for where it lies."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nrd_trt.calibration.feeds import Feed, check_distinct
from nrd_trt.calibration.sources import Source, open_source
from nrd_trt.data.preprocessing import FittedImage, fit_image
from nrd_trt.errors import ShapeError
from nrd_trt.files import canonical_json, sha256_bytes
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.runtime.graph_io import batch_feed
from nrd_trt.specs import DEFAULT_IMAGES, Fit, InputShape


class CalibrationStream:
    """Feeds of at most `images` images: sized, repeatable, the same in every pass, each of fresh arrays.

    Every image is read once when the stream is made, so that what is wrong with one is known before any work.

    Args:
        data: A folder of images (see `nrd_trt.data.folders`), a video file, or ``"synthetic"``.
        facts: Of the file to calibrate: sizes, batch, input form and preprocessing.
        images: At most this many, spread over the set.
        seed: Of their choice.
        fit: How images get the engine's size.
        progress: Show a bar on stderr where reading takes over two seconds.

    Attributes:
        names: Of the images.
        sha256: Of the names, what the files hold and how they are fitted.

    Raises:
        ConfigError: No such data, an image cannot be read, or an option is out of range.
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
        progress: bool = False,
    ) -> None:
        self._facts, self._fit = facts, fit
        self._batch = facts.shape.batch.min
        # Images of one batch must have one size.
        self._shape = facts.shape if self._batch == 1 else InputShape.static(facts.shape.opt_hw, self._batch)
        self._source: Source = open_source(data, images=images, seed=seed, size_hw=facts.shape.opt_hw)
        self.names = self._source.names
        self.sha256 = self._survey(progress)

    def __len__(self) -> int:
        """Return the number of feeds."""
        return -(-len(self.names) // self._batch)

    def __iter__(self) -> Iterator[Feed]:
        """Yield one feed per batch; the last is filled up with its own images."""
        waiting: list[FittedImage] = []
        done = 0
        for fitted in self._fitted():
            waiting.append(fitted)
            if len(waiting) == self._batch:
                yield self._feed(waiting, done)
                done += len(waiting)
                waiting = []
        if waiting:
            yield self._feed(waiting, done)

    def _feed(self, fitted: list[FittedImage], done: int) -> Feed:
        names = self.names[done : done + len(fitted)]
        pixels = [entry.image for entry in fitted]
        while len(pixels) < self._batch:
            pixels.append(pixels[len(pixels) % len(names)])
        contents = [entry.content_hw for entry in fitted]
        return Feed(batch_feed(np.stack(pixels), self._facts), names, contents)

    def _fitted(self) -> Iterator[FittedImage]:
        for name, rgb in zip(self.names, self._source, strict=True):
            try:
                yield fit_image(rgb, self._shape, self._facts.info, self._fit)
            except ShapeError as exc:
                raise ShapeError(f"{name}: {exc}") from exc

    def _survey(self, progress: bool) -> str:
        """Read every image once; return the key of the set."""
        bar = tqdm(
            self._fitted(),
            total=len(self.names),
            desc="reading calibration images",
            unit="image",
            delay=2,
            file=sys.stderr,
            disable=not progress,
            leave=False,
        )
        pixels = [hashlib.sha256(entry.image.data).hexdigest() for entry in bar]
        check_distinct(pixels)
        contents = self._source.contents() or pixels
        return sha256_bytes(canonical_json({"fit": self._fit, "images": [*zip(self.names, contents, strict=True)]}))
