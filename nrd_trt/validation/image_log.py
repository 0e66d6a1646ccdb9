"""What an evaluation finds image by image, in a file of JSON lines that it goes on with after any end.

The first line is what must be the same then; each further one is an image. A line that a killed run left without its
end is cut off.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nrd_trt.data.views import Viewing
from nrd_trt.errors import ConfigError
from nrd_trt.files import canonical_json, check_absent
from nrd_trt.json_files import MOST_BYTES, decode_json
from nrd_trt.validation.metrics import mean_iou, pixel_agreement


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What must be the same where an evaluation goes on; paths are absolute.

    Attributes:
        source_sha256: SHA-256 of the file that runs, or of ``bundle.json``.
        images: Folder of the images.
        labels: Folder of the labels.
        ignore_index: Label value that is not counted.
        runner: Backend that draws the masks.
        size: Size of the network, and how images are brought to it.
        viewing: How images are looked at.
        options: What was said of a checkpoint beyond the file.
    """

    source_sha256: str
    images: str
    labels: str
    ignore_index: int | None
    runner: str
    size: str
    viewing: Viewing
    options: str


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """Figures of one image, fractions in 0-1; None where no pixel was counted.

    Attributes:
        image: Name of its file.
        miou: Mean over the classes that its mask or label shows.
        pixel_accuracy: Share of the labelled pixels with the right class.
        counts: Class of the label, class of the mask, and how many pixels have both; where there are any.
        seams: Pixels that several windows show, and how many of them agree.
    """

    image: str
    miou: float | None
    pixel_accuracy: float | None
    counts: tuple[tuple[int, int, int], ...]
    seams: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, image: str, matrix: np.ndarray, seams: tuple[int, int]) -> ImageResult:
        """Return what an image's confusion matrix ``(K, K)`` says."""
        counts = tuple((int(row), int(column), int(matrix[row, column])) for row, column in np.argwhere(matrix))
        return cls(
            image=image, miou=mean_iou(matrix), pixel_accuracy=pixel_agreement(matrix), counts=counts, seams=seams
        )

    def matrix(self, classes: int) -> np.ndarray:
        """Return the confusion matrix ``(K, K) int64``; raise `ValueError` where an index is no class."""
        found = np.zeros((classes, classes), np.int64)
        for row, column, pixels in self.counts:
            if not (0 <= row < classes and 0 <= column < classes and pixels > 0):
                raise ValueError(f"expected classes 0-{classes - 1} and pixels above 0, got {(row, column, pixels)}")
            found[row, column] = pixels
        return found


class ImageLog:
    """Results by the name of the image, and the file that they are added to, where there is one."""

    def __init__(self, file: BinaryIO | None = None, done: dict[str, ImageResult] | None = None) -> None:
        self.done, self._file = done or {}, file

    def add(self, result: ImageResult) -> None:
        """Add an image; the line is with the operating system when this returns."""
        self.done[result.image] = result
        if self._file is not None:
            self._file.write(canonical_json(asdict(result)) + b"\n")
            self._file.flush()


@contextmanager
def open_log(path: Path | None, terms: Terms, classes: int, *, resume: bool) -> Iterator[ImageLog]:
    """Open the file of an evaluation, or none.

    Args:
        path: The file; None keeps results in memory only.
        terms: What this run evaluates; a file that was begun with others is refused.
        classes: K.
        resume: Go on with a file that exists; one that does not is begun.

    Raises:
        ConfigError: The file exists and `resume` is off, is of other terms or damaged, or another run writes it.
    """
    if path is None:
        yield ImageLog()
        return
    if path.exists() and not resume:
        raise ConfigError(f"{path}: already exists; give resume=True to go on with it, or choose another name.")
    check_absent(path, force=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{path}: another run is writing it; wait for its end, or name another file.") from None
        done = _read(file, path, terms, classes)
        yield ImageLog(file, done)


def _read(file: BinaryIO, path: Path, terms: Terms, classes: int) -> dict[str, ImageResult]:
    """Return the images that are done, and leave the file at the end of its last whole line."""
    done: dict[str, ImageResult] = {}
    end, number = 0, 0
    for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES), b""), 1):
        if not line.endswith(b"\n"):
            break
        try:
            if number == 1:
                _check_terms(path, decode_json(line, Terms), terms)
            else:
                result = decode_json(line, ImageResult)
                result.matrix(classes)
                done[result.image] = result
        except ValueError as exc:
            if isinstance(exc, ConfigError):
                raise
            raise ConfigError(
                f"{path}: expected results of an evaluation, line {number} is none ({exc}); name another file."
            ) from exc
        end += len(line)
    if number == 1 and not end:  # no line at all that is whole: it may be anybody's file
        raise ConfigError(f"{path}: expected results of an evaluation, got another file; name another one.")
    file.seek(end)
    file.truncate()
    if not end:
        file.write(canonical_json(asdict(terms)) + b"\n")
        file.flush()
    return done


def _check_terms(path: Path, began: Terms, now: Terms) -> None:
    for name, value in vars(began).items():
        if value != (got := getattr(now, name)):
            raise ConfigError(
                f"{path}: the evaluation began with {name.replace('_', ' ')} {value}, got {got}; give that, or name "
                "another file."
            )
