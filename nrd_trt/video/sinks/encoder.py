"""Pictures to H.264 in MP4 that browsers play, with the times of their source. PyAV on use.

There are no B-frames: they shift timestamps, and these are the source's.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from nrd_trt.errors import MissingDependencyError
from nrd_trt.optional import require
from nrd_trt.specs import format_size

_CODEC = "libx264"
_USUAL_RATE = Fraction(30)
_MAX_TICKS = 2**31 - 1
_LONGEST_GAP = 2**31 - 2**20  # in ticks; with the duration of a frame it stays below the above
_TELEVISION = Fraction(1, 90_000)
_KEYFRAME_EVERY_S = 2
_HD_LINES = 720  # from here on, video without a tag is taken to be BT.709


class Mp4Encoder:
    """One video; it is begun with the first picture, which tells its size.

    Args:
        target: A path, or an open binary file.
        time_base: Seconds per tick of the pictures' times.
        rate: Pictures per second, or None where that is not known.
        live: Whether times may be rounded to 90 kHz, so that gaps of hours fit.
        report: Takes a line for people where times or sizes cannot be kept.
        options: Of FFmpeg's muxer.

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
        report: Callable[[str], None],
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
        self._stream.time_base = self._stream.codec_context.time_base = time_base
        # Without this the encoder drops durations; that of the last frame shows nowhere else.
        self._stream.codec_context.flags |= self._av.codec.context.Flags.frame_duration
        self._stream.codec_context.gop_size = max(1, math.ceil(self._rate * _KEYFRAME_EVERY_S))
        self._tag_colours(size_hw[0])

    def _tag_colours(self, height: int) -> None:
        """Say in the file which matrix made its colours."""
        context, high = self._stream.codec_context, height >= _HD_LINES
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
            "pip install --force-reinstall --only-binary av av"
        )
    return av


class _Clock:
    """Times of the source as MP4 can hold them.

    They are the same ticks, but where the first ones are negative, which players skip, and where a gap is longer than
    31 bits. Live sources with finer ticks, such as a camera's microseconds, get the 90 kHz of television.

    Attributes:
        time_base: Seconds per tick.
    """

    def __init__(self, time_base: Fraction, *, live: bool, report: Callable[[str], None]) -> None:
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
