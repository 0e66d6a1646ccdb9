"""From a text to a source: file, folder, camera, URL or GStreamer pipeline."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from nrd_trt.data.folders import IMAGE_SUFFIXES, list_images
from nrd_trt.data.images import read_image
from nrd_trt.data.videos import Picture, VideoFacts, VideoReader
from nrd_trt.errors import ConfigError, VideoError
from nrd_trt.specs import Size, format_size
from nrd_trt.video.frames import Report, Wanted
from nrd_trt.video.sources.camera import CaptureReader, camera_name, open_camera
from nrd_trt.video.sources.gstreamer import PipelineReader, open_gstreamer, pipeline_tokens
from nrd_trt.video.sources.jetson import CSI_SIZE_HW, csi_pipeline, decoder_pipeline, is_stream, look_into
from nrd_trt.video.sources.network import SCHEMES, open_url, redacted
from nrd_trt.video.sources.nvdec import open_on_gpu
from nrd_trt.video.sources.reader import OpenReader, Reader, ReaderSource

FORMS = (
    "a video file, a folder of images, a camera (0 or /dev/video0), a URL "
    f"({', '.join(f'{scheme}://' for scheme in SCHEMES)}), a GStreamer pipeline ('… ! …'), csi://0, jetson://FILE or "
    "jetson://rtsp://…"
)
_RATE = Fraction(30)
_HIGHEST_RATE = 1000


def open_source(
    text: str,
    *,
    rate: Fraction | float | None = None,
    live: bool | None = None,
    wanted: Wanted | None = None,
    report: Report = print,
) -> ReaderSource:
    """Tell what `text` stands for. Entering the source opens it.

    Args:
        text: One of the `FORMS`.
        rate: Frames per second of a folder or a CSI camera (30 when None), or to ask a camera for.
        live: Whether late frames are dropped and a lost source is opened again; None decides by the source.
        wanted: What the run takes of the pictures; None takes all.
        report: Receives one line when a live source is lost, and one when it is back.

    Raises:
        ConfigError: `text` is none of the forms, or an option does not go with it.
        VideoError: It is the path of something that is not there.
    """
    exact = None
    if rate is not None:
        if not 0 < rate <= _HIGHEST_RATE:
            raise ConfigError(f"rate={rate}: expected frames per second above 0 up to {_HIGHEST_RATE}; give another.")
        exact = rate if isinstance(rate, Fraction) else Fraction(rate).limit_denominator(1001)
    name, opened, rated = _understood(text, exact, live, wanted)
    if rate is not None and not rated:
        raise ConfigError(f"rate={rate}: expected none for {name}; it is for folders and cameras, leave it out.")
    return ReaderSource(name, opened, report=report)


def _understood(
    text: str, rate: Fraction | None, live: bool | None, wanted: Wanted | None
) -> tuple[str, OpenReader, bool]:
    """Return the name in messages, what opens the source, and whether a rate goes with it."""
    scheme, separator, rest = text.partition("://")
    if " ! " in text:
        pipeline_tokens(text)  # what is wrong with it is known at once
        return redacted(text), lambda stopped: open_gstreamer(text, live=live, stopped=stopped), False
    if separator and scheme.lower() in SCHEMES:
        return redacted(text), lambda _: open_url(text, live=live), False
    if scheme == "csi" and rest.isdecimal():
        camera = partial(csi_pipeline, int(rest), rate=rate or _RATE)
        return text, partial(_Jetson(live, wanted).camera, camera), True
    if scheme == "jetson" and rest:
        return redacted(text), partial(_Jetson(live, wanted).decoder, rest), False
    if text.isdecimal() or re.match(r"/dev/(video|v4l/)", text):
        device = int(text) if text.isdecimal() else text
        return camera_name(device), lambda _: open_camera(device, rate=rate, live=live is not False), True
    return _on_disk(text, rate, live, wanted)


class _Jetson:
    """Opens what the hardware of a Jetson decodes and scales, or where that fails does it on the CPU, with a note.

    What scaled frames when a source was first opened does so whenever it is opened again: they keep their size.

    Args:
        live: See `open_gstreamer`.
        wanted: See `open_source`.
    """

    def __init__(self, live: bool | None, wanted: Wanted | None) -> None:
        self._live, self._wanted = live, wanted
        self._scales: bool | None = None  # known once something was opened

    def camera(self, pipeline: Callable[..., str], stopped: threading.Event) -> Reader:
        """Open a CSI camera."""
        return self._opened(pipeline, CSI_SIZE_HW, stopped)

    def decoder(self, target: str, stopped: threading.Event) -> Reader:
        """Open a file or stream."""
        found = look_into(target)
        pipeline = partial(decoder_pipeline, target, codec=found.codec, flip=found.flip)
        pipeline()  # what the hardware does not decode at all is an error
        try:
            reader = self._opened(pipeline, found.size_hw, stopped)
        except VideoError as exc:
            if is_stream(target) or self._scales:
                raise
            self._scales = False
            plain = VideoReader(Path(target), live=bool(self._live))
            note = f"frames were decoded on the CPU, not by the hardware of a Jetson: {exc}"
            plain.facts = replace(plain.facts, note=note)
            return plain
        reader.facts = replace(reader.facts, decoded_on="nvdec")
        return reader

    def _opened(
        self, pipeline: Callable[..., str], size_hw: Size, stopped: threading.Event
    ) -> PipelineReader | CaptureReader:
        """Open a pipeline that can scale pictures of a size by hardware, and does where nobody looks at them."""
        scaled_hw, note = self._scaled_hw(size_hw), None
        if self._wanted is not None and scaled_hw is not None and self._scales is not False:
            scaled = pipeline(scaled_hw=scaled_hw, resample=self._wanted.resample)
            try:
                reader = open_gstreamer(scaled, live=self._live, stopped=stopped)
            except VideoError as exc:
                if self._scales:
                    raise
                note = f"frames were scaled on the CPU, not by the hardware of a Jetson: {exc}"
            else:
                self._scales = True
                said = (
                    f"frames were scaled from {format_size(size_hw)} to {format_size(scaled_hw)} by hardware, whose "
                    f"filter is not that of the CPU; masks have {format_size(size_hw)}."
                )
                reader.facts = replace(reader.facts, size_hw=size_hw, scaled=True, note=said)
                return reader
        reader = open_gstreamer(pipeline(), live=self._live, stopped=stopped)
        self._scales = bool(self._scales)
        reader.facts = replace(reader.facts, note=note)
        return reader

    def _scaled_hw(self, size_hw: Size) -> Size | None:
        """Return what pictures are scaled to, or None: a larger one would be more to copy, halved colour is even."""
        if self._wanted is None or self._wanted.pixels:
            return None
        scaled_hw = self._wanted.fitting(size_hw).content_hw
        unfit = any(new > old or new % 2 for new, old in zip(scaled_hw, size_hw, strict=True))
        return None if unfit or scaled_hw == size_hw else scaled_hw


def _on_disk(
    text: str, rate: Fraction | None, live: bool | None, wanted: Wanted | None
) -> tuple[str, OpenReader, bool]:
    path = Path(text)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        raise ConfigError(f"{text}: expected {FORMS}; got one image, give its folder.")
    if not text or not path.exists():
        if "://" not in text and (path.suffix or "/" in text):
            raise VideoError(f"{text}: expected a video or a folder, there is none; check the path.")
        raise ConfigError(f"{redacted(text)!r}: expected {FORMS}; got none of them, check the spelling.")
    if live:
        raise ConfigError(f"live=True: expected a camera or a stream, {text} is a file or folder; leave it out.")
    if path.is_dir():
        return text, lambda _: FolderReader(path, rate=rate or _RATE), True
    if wanted is None:
        return text, lambda _: VideoReader(path), False
    return text, lambda _: open_on_gpu(path, wanted) if wanted.on_device() else VideoReader(path), False


class FolderReader:
    """The images of a folder in the order of their names, played as a video; see `Reader`.

    Args:
        folder: A folder of images; see `nrd_trt.data.folders.list_images`.
        rate: Images per second.

    Raises:
        ConfigError: There are no images.
        VideoError: The first one cannot be read.
    """

    def __init__(self, folder: Path, *, rate: Fraction) -> None:
        self._paths = list_images(folder)
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
        """Do nothing: no file stays open."""


def _read(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except ConfigError as exc:
        raise VideoError(str(exc)) from exc
