"""Pictures as H.264 in an MP4 file that browsers play. PyAV on use.

The file is written in fragments under ``NAME.partial.mp4``, so that even after a power cut it can be played; at the end
it becomes a plain file and gets its name. There are no B-frames: they shift timestamps, and these are the source's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nrd_trt.errors import ConfigError, VideoError
from nrd_trt.files import check_absent
from nrd_trt.optional import require
from nrd_trt.specs import format_size
from nrd_trt.video.frames import SegmentedFrame, StreamInfo
from nrd_trt.video.sinks.base import Ending

SUFFIXES = (".mp4", ".m4v", ".mov")
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
        report: Takes a line for people.

    Raises:
        ConfigError: The file exists, or its folder does not.
        MissingDependencyError: There is no PyAV.
    """

    shows_picture = True

    def __init__(self, path: Path, *, force: bool, report: Callable[[str], None]) -> None:
        self._av: Any = require("av", extra="video", purpose="writing videos")
        self._path, self._report = path, report
        self._partial = partial_of(path)
        for target in (path, self._partial):
            if target.is_dir():
                raise ConfigError(f"{target}: expected a file, found a folder; choose another name.")
            check_absent(target, force=force)
        self._container: Any = None
        self._stream: Any = None
        self._placed = False
        self._size: tuple[int, int] | None = None
        self._resized = False

    def open(self, info: StreamInfo) -> None:
        """Take the place; the file is begun with the first picture, which tells its size."""
        self._info, self._clock = info, _Clock(info, self._report)
        try:
            self._partial.open("wb").close()
        except OSError as exc:
            raise VideoError(
                f"{self._path}: cannot be written ({exc.strerror}); check its folder and the permissions."
            ) from exc
        self._placed = True

    def write(self, frame: SegmentedFrame) -> None:
        """Encode a picture with the frame's timestamp."""
        picture = frame.picture
        if picture is None:
            raise VideoError(f"{self._path}: expected a drawn picture, got none.")
        if self._container is None:
            self._begin(picture.shape[:2])
        image = self._av.VideoFrame.from_ndarray(self._fitted(picture), format="rgb24")
        encoded = image.reformat(format=self._stream.pix_fmt, dst_colorspace=self._colorspace)
        encoded.time_base = self._clock.time_base
        encoded.pts, encoded.duration = self._clock(frame.frame.pts, frame.frame.duration or 0)
        self._container.mux(self._stream.encode(encoded))

    def close(self, ending: Ending) -> str | None:
        """Finish the file; after a failure it keeps its partial name."""
        if self._container is None:
            if self._placed:
                self._partial.unlink(missing_ok=True)
            return None
        try:
            self._container.mux(self._stream.encode())
        finally:
            self._container.close()
        if ending == "failed":
            return f"{self._partial}: holds the frames up to the failure."
        os.replace(self._partial, self._path)
        return None

    def _begin(self, size_hw: tuple[int, int]) -> None:
        time_base = self._clock.time_base
        self._container = self._av.open(
            f"file:{self._partial}",  # the prefix keeps FFmpeg from taking "a:b" for a protocol
            "w",
            format="mp4",
            options={
                "movflags": "hybrid_fragmented+frag_keyframe",
                # With these an offset of the first timestamp is kept to the tick.
                "use_editlist": "1",
                "movie_timescale": str(min(time_base.denominator, _MAX_TICKS)),
            },
        )
        rate = self._info.rate or Fraction(30)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "bf": "0"})
        self._size, (self._stream.height, self._stream.width) = size_hw, size_hw
        # Halved colour needs even sides; every browser plays it, some do not play the full one.
        self._stream.pix_fmt = "yuv420p" if all(side % 2 == 0 for side in size_hw) else "yuv444p"
        self._stream.time_base = self._stream.codec_context.time_base = time_base
        # Without this the encoder drops durations; that of the last frame shows nowhere else.
        self._stream.codec_context.flags |= self._av.codec.context.Flags.frame_duration
        self._stream.codec_context.gop_size = max(1, math.ceil(rate * _KEYFRAME_EVERY_S))
        self._tag_colours(size_hw[0])

    def _tag_colours(self, height: int) -> None:
        """Say in the file which matrix made its colours."""
        context, high = self._stream.codec_context, height >= _HD_LINES
        space = self._av.video.reformatter.Colorspace
        self._colorspace = space.ITU709 if high else space.ITU601
        context.color_primaries, context.color_trc, context.colorspace = (1, 1, 1) if high else (6, 6, 6)
        context.color_range = 1  # limited

    def _fitted(self, picture: np.ndarray) -> np.ndarray:
        """Return the picture at the file's size, which cannot change."""
        if self._size is None or picture.shape[:2] == self._size:
            return picture
        if not self._resized:
            self._resized = True
            self._report(
                f"{self._path}: the picture's size changed from {format_size(self._size)} to "
                f"{format_size(picture.shape[:2])}; it is scaled to the file's."
            )
        return np.asarray(Image.fromarray(picture).resize(self._size[::-1], Image.Resampling.BILINEAR))


def partial_of(path: Path) -> Path:
    """Return the name under which a file is written."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


class _Clock:
    """Times of the source as the file can hold them.

    They are the same ticks, but where the first ones are negative, which players skip, and where a gap is longer than
    MP4's 31 bits. Live sources with finer ticks, such as a camera's microseconds, get the 90 kHz of television, so
    that hours without a frame fit.

    Attributes:
        time_base: Seconds per tick.
    """

    def __init__(self, info: StreamInfo, report: Callable[[str], None]) -> None:
        fine = info.live and info.time_base < _TELEVISION
        self.time_base = _TELEVISION if fine else info.time_base
        self._factor, self._report = info.time_base / self.time_base, report
        self._shift, self._last = 0, -1

    def __call__(self, pts: int, duration: int) -> tuple[int, int]:
        now = round(pts * self._factor) + self._shift
        if self._last < 0 and now < 0:
            self._shift_by(-now, "its times begin before zero and are shifted")
            now = 0
        if self._last >= 0 and now - self._last > _LONGEST_GAP:
            self._shift_by(self._last + _LONGEST_GAP - now, "a gap is longer than MP4 can hold and is shortened")
            now = self._last + _LONGEST_GAP
        self._last = max(now, self._last + 1)
        return self._last, round(duration * self._factor)

    def _shift_by(self, ticks: int, reason: str) -> None:
        self._shift += ticks
        self._report(f"{reason}, by {float(abs(ticks) * self.time_base):.3f} s.")
