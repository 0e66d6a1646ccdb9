"""A feed that knows which images it holds. NumPy only."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from nrd_trt.errors import CalibrationError

Size = tuple[int, int]


class Feed(dict[str, np.ndarray]):
    """Input arrays by name, with the names of their images.

    Args:
        arrays: By input name; the first axis is the batch.
        names: Of the images. A batch may be longer: it is then filled up with its own images.
        contents_hw: Per image, the upper left part that is not padding.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], names: Sequence[str], contents_hw: Sequence[Size]) -> None:
        super().__init__(arrays)
        self.names = tuple(names)
        self.contents_hw = tuple(contents_hw)


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
    """Raise `CalibrationError` where there are not two different images; warn where most are copies."""
    distinct = len(set(digests))
    if distinct < 2:
        got = "one image" if len(digests) == 1 else f"{len(digests)} copies of one image"
        raise CalibrationError(
            f"calibration set: expected different images, got {got}; ranges of one image do not hold for others. Give "
            "images of the scenes that the engine will see, a hundred or more."
        )
    if 2 * distinct < len(digests):
        warnings.warn(
            f"calibration set: {len(digests)} images, but only {distinct} different ones; the copies say nothing new.",
            stacklevel=3,
        )


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
