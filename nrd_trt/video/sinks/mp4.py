"""Pictures as H.264 in MP4 that browsers play, with the times of their source. PyAV on use.

There are no B-frames: they shift timestamps, and these are the source's. A file is written in fragments under
``NAME.partial.mp4``, so that even after a power cut it can be played, and locked while its run lives; at the end it
becomes a plain file and gets its name.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nrd_trt.errors import MissingDependencyError, VideoError
from nrd_trt.files import check_file, hold_file
from nrd_trt.optional import require
from nrd_trt.specs import format_size
from nrd_trt.video.frames import Ending, Report, SegmentedFrame, StreamInfo

SUFFIXES = (".mp4", ".m4v", ".mov")
_CODEC = "libx264"
_USUAL_RATE = Fraction(30)
_MAX_TICKS = 2**31 - 1
_LONGEST_GAP = 2**31 - 2**20  # in ticks; with the duration of a frame it stays below the above
_TELEVISION = Fraction(1, 90_000)
_KEYFRAME_EVERY_S = 2
_HD_LINES = 720  # from here on, video without a tag is taken to be BT.709


class Mp4Sink:
    """One video file.

    Args:
        path: Ends in one of `SUFFIXES`.
        force: Replace an existing file, and what a failed run left.
        report: Receives lines for the user.

    Raises:
        ConfigError: The file exists, or its folder does not.
        MissingDependencyError: There is no PyAV, or it has no H.264 encoder.
    """

    shows_picture = True

    def __init__(self, path: Path, *, force: bool, report: Report) -> None:
        require_encoder()
        self._path, self._partial, self._report = path, partial_of(path), report
        for target in (path, self._partial):
            check_file(target, force=force, marks=[b"ftyp"])
        self._force, self._held = force, -1

    def open(self, info: StreamInfo) -> None:
        """Take the place; the file is begun with the first picture.

        Raises:
            ConfigError: Another run is writing it, or it exists by now.
            VideoError: It cannot be written.
        """
        try:
            self._held = hold_file(self._partial, force=self._force)
        except OSError as exc:
            raise VideoError(
                f"{self._path}: cannot be written ({exc.strerror}); check its folder and the permissions."
            ) from exc
        self._encoder = Mp4Encoder(
            f"file:{self._partial}",  # the prefix keeps FFmpeg from taking "a:b" for a protocol
            time_base=info.time_base,
            rate=info.rate,
            live=info.live,
            report=lambda line: self._report(f"{self._path}: {line}"),
            options={"movflags": "hybrid_fragmented+frag_keyframe"},
        )

    def write(self, frame: SegmentedFrame) -> None:
        """Encode a picture with the frame's timestamp."""
        self._encoder.write(frame.picture, frame.frame.pts, frame.frame.duration)

    def close(self, ending: Ending) -> str | None:
        """Finish the file; after a failure it keeps its partial name."""
        if self._held < 0:
            return None
        try:
            self._encoder.close()
            if not self._encoder.begun:
                self._partial.unlink(missing_ok=True)
            elif ending == "failed":
                return f"{self._partial}: holds the frames up to the failure."
            else:
                os.replace(self._partial, self._path)
            return None
        finally:
            os.close(self._held)  # only now may another run take the name
            self._held = -1


def partial_of(path: Path) -> Path:
    """Return the name under which a file is written."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


class Mp4Encoder:
    """One video; it is begun with the first picture, which tells its size.

    Args:
        target: A path, or an open binary file.
        time_base: Seconds per tick of the pictures' times.
        rate: Pictures per second, or None where that is not known.
        live: Whether times may be rounded to 90 kHz, so that gaps of hours fit.
        report: Receives a line where times or sizes cannot be kept.
        options: Options of FFmpeg's muxer.

    Attributes:
        begun: Whether there was a picture.
    """

    def __init__(
        self,
        target: str | io.BytesIO,
        *,
        time_base: Fraction,
        rate: Fraction | None,
        live: bool,
        report: Report,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._av = require_encoder()
        self._target, self._rate, self._report, self._options = target, rate or _USUAL_RATE, report, options or {}
        self._clock = _Clock(time_base, live=live, report=report)
        self._size: tuple[int, int] = (0, 0)
        self._resized = self.begun = False

    def write(self, picture: np.ndarray, pts: int, duration: int | None) -> None:
        """Encode a picture ``(H, W, 3) uint8 RGB``; one of another size than the first is scaled to that."""
        if not self.begun:
            self._begin(picture.shape[:2])
        image = self._av.VideoFrame.from_ndarray(self._fitted(picture), format="rgb24")
        encoded = image.reformat(format=self._stream.pix_fmt, dst_colorspace=self._colorspace)
        encoded.time_base = self._clock.time_base
        encoded.pts, encoded.duration = self._clock(pts, duration or 0)
        self._container.mux(self._stream.encode(encoded))

    def close(self) -> None:
        """Finish the video; without a picture there is none."""
        if not self.begun:
            return
        try:
            self._container.mux(self._stream.encode())
        finally:
            self._container.close()

    def _begin(self, size_hw: tuple[int, int]) -> None:
        time_base = self._clock.time_base
        # With these an offset of the first timestamp is kept to the tick.
        exact = {"use_editlist": "1", "movie_timescale": str(min(time_base.denominator, _MAX_TICKS))}
        self._container = self._av.open(self._target, "w", format="mp4", options={**exact, **self._options})
        self.begun = True
        self._stream = self._container.add_stream(_CODEC, rate=self._rate, options={"preset": "veryfast", "bf": "0"})
        self._size, (self._stream.height, self._stream.width) = size_hw, size_hw
        # Halved colour needs even sides; every browser plays it, some do not play the full one.
        self._stream.pix_fmt = "yuv420p" if all(side % 2 == 0 for side in size_hw) else "yuv444p"
        context = self._stream.codec_context
        self._stream.time_base = context.time_base = time_base
        # Without this the encoder drops durations; that of the last frame shows nowhere else.
        context.flags |= self._av.codec.context.Flags.frame_duration
        context.gop_size = max(1, math.ceil(self._rate * _KEYFRAME_EVERY_S))
        # The file says which matrix made its colours.
        high = size_hw[0] >= _HD_LINES
        space = self._av.video.reformatter.Colorspace
        self._colorspace = space.ITU709 if high else space.ITU601
        context.color_primaries, context.color_trc, context.colorspace = (1, 1, 1) if high else (6, 6, 6)
        context.color_range = 1  # limited

    def _fitted(self, picture: np.ndarray) -> np.ndarray:
        if picture.shape[:2] == self._size:
            return picture
        if not self._resized:
            self._resized = True
            self._report(
                f"the picture's size changed from {format_size(self._size)} to {format_size(picture.shape[:2])}; it is "
                "scaled to the file's."
            )
        return np.asarray(Image.fromarray(picture).resize(self._size[::-1], Image.Resampling.BILINEAR))


def require_encoder() -> Any:
    """Import PyAV with an H.264 encoder.

    Raises:
        MissingDependencyError: There is no PyAV, or it was built without libx264.
    """
    av: Any = require("av", extra="video", purpose="writing videos")
    if _CODEC not in av.codecs_available:
        raise MissingDependencyError(
            f"writing videos: expected a PyAV with {_CODEC}, found {av.__version__} without; PyPI's wheels have it: "
            "uninstall it, then `pip install av`."
        )
    return av


class _Clock:
    """Times of the source as MP4 can hold them.

    They are the same ticks, but where the first ones are negative, which players skip, and where a gap is longer than
    31 bits. Live sources with finer ticks, such as a camera's microseconds, get the 90 kHz of television.

    Attributes:
        time_base: Seconds per tick.
    """

    def __init__(self, time_base: Fraction, *, live: bool, report: Report) -> None:
        self.time_base = _TELEVISION if live and time_base < _TELEVISION else time_base
        self._factor, self._report = time_base / self.time_base, report
        self._shift, self._last = 0, -1

    def __call__(self, pts: int, duration: int) -> tuple[int, int]:
        now = round(pts * self._factor) + self._shift
        if self._last < 0 and now < 0:
            self._shift_by(-now, "the times begin before zero and are shifted")
            now = 0
        if self._last >= 0 and now - self._last > _LONGEST_GAP:
            self._shift_by(self._last + _LONGEST_GAP - now, "a gap is longer than MP4 can hold and is shortened")
            now = self._last + _LONGEST_GAP
        self._last = max(now, self._last + 1)
        return self._last, round(duration * self._factor)

    def _shift_by(self, ticks: int, reason: str) -> None:
        self._shift += ticks
        self._report(f"{reason}, by {float(abs(ticks) * self.time_base):.3f} s.")
