"""From a text to a source: file, folder, camera, URL or GStreamer pipeline."""

from __future__ import annotations

import re
import threading
from fractions import Fraction
from functools import partial
from pathlib import Path

from nrd_trt.data.folders import IMAGE_SUFFIXES
from nrd_trt.data.videos import VideoReader
from nrd_trt.errors import ConfigError, VideoError
from nrd_trt.video.sources.base import Report
from nrd_trt.video.sources.camera import camera_name, open_camera
from nrd_trt.video.sources.folder import FolderReader
from nrd_trt.video.sources.gstreamer import open_gstreamer, pipeline_tokens
from nrd_trt.video.sources.jetson import csi_pipeline, decoder_pipeline
from nrd_trt.video.sources.network import SCHEMES, open_url, redacted
from nrd_trt.video.sources.reader import OpenReader, ReaderSource
from nrd_trt.video.sources.reconnect import Reader

FORMS = (
    "a video file, a folder of images, a camera (0 or /dev/video0), a URL "
    f"({', '.join(f'{scheme}://' for scheme in SCHEMES)}), a GStreamer pipeline ('… ! …'), csi://0, jetson://FILE or "
    "jetson://rtsp://…"
)
_RATE = Fraction(30)
_HIGHEST_RATE = 1000


def open_source(
    text: str, *, rate: Fraction | float | None = None, live: bool | None = None, report: Report = print
) -> ReaderSource:
    """Tell what `text` stands for. Entering the source opens it.

    Args:
        text: One of the `FORMS`.
        rate: Frames per second of a folder or a CSI camera (30 when None), or to ask a camera for.
        live: Whether late frames are dropped and a lost source is opened again; None decides by the source.
        report: Takes one line when a live source is lost, and one when it is back.

    Raises:
        ConfigError: `text` is none of the forms, or an option does not go with it.
        VideoError: It is the path of something that is not there.
    """
    exact = None if rate is None else _exact(rate)
    name, opened, rated = _understood(text, exact, live)
    if rate is not None and not rated:
        raise ConfigError(f"{name}: expected no rate, got {rate}; it is for folders and cameras, leave it out.")
    return ReaderSource(name, opened, report=report)


def _understood(text: str, rate: Fraction | None, live: bool | None) -> tuple[str, OpenReader, bool]:
    """Return the name for people, what opens it, and whether a rate goes with it."""
    scheme, separator, rest = text.partition("://")
    if " ! " in text:
        pipeline_tokens(text)  # what is wrong with it is known at once
        return redacted(text), partial(_open_pipeline, text, live), False
    if separator and scheme.lower() in SCHEMES:
        return redacted(text), lambda _: open_url(text, live=live), False
    if scheme == "csi" and rest.isdecimal():
        return text, partial(_open_pipeline, csi_pipeline(int(rest), rate=rate or _RATE), live), True
    if scheme == "jetson" and rest:
        return redacted(text), partial(_open_jetson, rest, live), False
    if text.isdecimal() or re.match(r"/dev/(video|v4l/)", text):
        device = int(text) if text.isdecimal() else text
        return camera_name(device), lambda _: open_camera(device, rate=rate, live=live is not False), True
    return _on_disk(text, rate, live)


def _on_disk(text: str, rate: Fraction | None, live: bool | None) -> tuple[str, OpenReader, bool]:
    path = Path(text)
    _refuse_missing(text, path)
    if live:
        raise ConfigError(f"{text}: expected a camera or a stream for live, got a file or folder; leave live out.")
    if path.is_dir():
        return text, lambda _: FolderReader(path, rate=rate or _RATE), True
    return text, lambda _: VideoReader(path), False


def _open_pipeline(pipeline: str, live: bool | None, stopped: threading.Event) -> Reader:
    return open_gstreamer(pipeline, live=live, stopped=stopped)


def _open_jetson(target: str, live: bool | None, stopped: threading.Event) -> Reader:
    return open_gstreamer(decoder_pipeline(target), live=live, stopped=stopped)


def _exact(rate: Fraction | float) -> Fraction:
    if not 0 < rate <= _HIGHEST_RATE:
        raise ConfigError(f"rate {rate}: expected frames per second above 0, up to {_HIGHEST_RATE}; give another.")
    return rate if isinstance(rate, Fraction) else Fraction(rate).limit_denominator(1001)


def _refuse_missing(text: str, path: Path) -> None:
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        raise ConfigError(f"{text}: expected {FORMS}; got one image, give its folder.")
    if text and path.exists():
        return
    if "://" not in text and (path.suffix or "/" in text):
        raise VideoError(f"{text}: expected a video or a folder, there is none; check the path.")
    raise ConfigError(f"{redacted(text)!r}: expected {FORMS}; got none of them, check the spelling.")
