"""A folder of images, played as a video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from nrd_trt.data.folders import list_images
from nrd_trt.data.images import read_image
from nrd_trt.data.videos import Picture, VideoFacts
from nrd_trt.errors import ConfigError, VideoError


class FolderReader:
    """The images of a folder in the order of their names; see `Reader`.

    Args:
        folder: See `nrd_trt.data.folders.list_images`.
        rate: Images per second.

    Raises:
        ConfigError: There are no images.
        VideoError: The first one cannot be read.
    """

    def __init__(self, folder: Path, *, rate: Fraction) -> None:
        try:
            self._paths = list_images(folder)
        except ConfigError as exc:
            raise ConfigError(str(exc).replace("check --data", "check the path")) from exc
        height, width, _ = _read(self._paths[0]).shape
        self.facts = VideoFacts(
            size_hw=(height, width), rate=rate, time_base=1 / rate, frames=len(self._paths), live=False
        )

    def __iter__(self) -> Iterator[Picture]:
        stems = Counter(path.stem for path in self._paths)
        for index, path in enumerate(self._paths):
            # a.png and a.jpg must not write the same file
            name = path.stem if stems[path.stem] == 1 else path.name
            yield Picture(pts=index, duration=1, rgb=partial(_read, path), name=name)

    def close(self) -> None:
        """Nothing stays open."""


def _read(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except ConfigError as exc:
        raise VideoError(str(exc)) from exc
