"""From a text to a source: file, folder, camera, URL or GStreamer pipeline."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from nrd_trt.data.folders import IMAGE_SUFFIXES
from nrd_trt.data.videos import VideoReader
from nrd_trt.errors import ConfigError, VideoError
from nrd_trt.video.sources.base import Report, Source
from nrd_trt.video.sources.folder import FolderReader
from nrd_trt.video.sources.reader import ReaderSource

FORMS = "a video file, a folder of images"
_FOLDER_RATE = Fraction(30)


def open_source(
    text: str, *, rate: Fraction | float | None = None, live: bool | None = None, report: Report = print
) -> Source:
    """Tell what `text` stands for. Nothing is opened before the source is entered.

    Args:
        text: One of the `FORMS`.
        rate: Frames per second of a folder (30).
        live: Whether late frames are dropped and a lost source is opened again; None decides by the source.
        report: Takes one line when a live source is lost, and one when it is back.

    Raises:
        ConfigError: `text` is none of the forms, or an option does not go with it.
        VideoError: It is the path of something that is not there.
    """
    path = Path(text)
    if path.is_dir():
        _refuse_live(text, live, "a folder")
        exact = _FOLDER_RATE if rate is None else _exact(rate)
        return ReaderSource(text, lambda _: FolderReader(path, rate=exact))
    _refuse_missing(text, path)
    _refuse_live(text, live, "a file")
    if rate is not None:
        raise ConfigError(f"{text}: expected no rate for a file, got {rate}; a file has its own.")
    return ReaderSource(text, lambda _: VideoReader(path))


def _exact(rate: Fraction | float) -> Fraction:
    if not 0 < rate <= 1000:
        raise ConfigError(f"rate {rate}: expected frames per second above 0 and up to 1000; give another.")
    return Fraction(rate).limit_denominator(1001)


def _refuse_live(text: str, live: bool | None, kind: str) -> None:
    if live:
        raise ConfigError(f"{text}: expected a camera or stream for live, got {kind}; leave live out.")


def _refuse_missing(text: str, path: Path) -> None:
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        raise ConfigError(f"{text}: expected {FORMS}; got one image; give its folder.")
    if path.exists():
        return
    if path.suffix or "/" in text:
        raise VideoError(f"{text}: expected {FORMS}; there is no such file or folder; check the path.")
    raise ConfigError(f"{text!r}: expected {FORMS}; it is none of them; check the spelling.")
