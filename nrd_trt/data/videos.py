"""Videos as pictures: exact times, right colours, upright. PyAV, imported on use."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np

from nrd_trt.errors import VideoError
from nrd_trt.optional import require

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".flv", ".wmv")
MOST_PIXELS = 8192 * 4608
_LOCAL_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,ivf,yuv4mpegpipe,h264,hevc,av1,obu,vc1,m4v,mjpeg,"
    "mpjpeg,dv,rm,gif,tty,wav,mp3"  # the last three are told what they are
)
"""FFmpeg's names of what a file may be. Playlists (concat, HLS, DASH) are not: they make it open what they name."""
_FALLBACK_RATE = Fraction(25)
_SET_BACK_FRAMES = 3
_MICROSECOND = Fraction(1, 1_000_000)
# Numbers of ISO/IEC 23091-2, the tags of a frame; swscale knows its matrices by the same ones.
_BT709, _BT601 = 1, 5
_MATRICES = {1: _BT709, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: 9, 10: 9}
_HD_LINES = 720
_WITHOUT_TIMES = {"mpjpeg", "mjpeg", "h264", "hevc"}  # FFmpeg makes up 25 a second
_BUFFER_BYTES = 1 << 18  # read at once from an open file; raw pictures are large
_FULL_RANGE = 2
_REASONS = {
    "FileNotFoundError": "there is no such file; check the path",
    "PermissionError": "it may not be read; check its permissions",
    "IsADirectoryError": "it is a folder; give a file, or a folder of images",
    "HTTPUnauthorizedError": "user name or password was refused (401); check them",
    "HTTPForbiddenError": "access is forbidden (403); check the user's rights",
    "HTTPNotFoundError": "the server knows no such path (404); check the end of the URL",
    "ConnectionRefusedError": "the connection was refused; check the port, and that the server runs",
    "ConnectionError": "the server closed the connection",
    "ExitError": "no answer in time; check address, network and that the server sends",
    "TimeoutError": "no answer in time; check address, network and that the server sends",
    "ProtocolNotFoundError": "this FFmpeg does not speak the protocol; use another URL, or a GStreamer pipeline",
    "InvalidDataError": "FFmpeg finds none in it; check that it is complete, or convert it",
    "EOFError": "FFmpeg finds none in it; check that it is complete, or convert it",
}
_BROKEN_OFF = {
    "InvalidDataError": "found damaged data; repair or cut the file",
    "ExitError": "nothing came in time; check the sender and the network",
    "TimeoutError": "nothing came in time; check the sender and the network",
}


class Readable(Protocol):
    """An open file or pipe."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        ...


DecodedOn = Literal["cpu", "nvdec", "gstreamer"]
"""Who turned a video into pixels: this process, NVIDIA's video decoder, or the elements of a pipeline."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a reader knows before its first picture.

    Attributes:
        size_hw: Size of the first picture, before it was scaled; later ones may differ.
        rate: Pictures per second on average, or None where the video does not tell.
        time_base: Seconds per tick of `Picture.pts`.
        frames: Number of pictures that the video says it has, or None where it does not or has no end.
        live: Whether pictures come at their own pace and have no end: late ones are dropped, a lost stream is opened
            again.
        decoded_on: Where pictures are decoded.
        scaled: Whether pictures were scaled from `size_hw` before they came here.
        note: What a user should know of the way that the pictures take, or None.
    """

    size_hw: tuple[int, int]
    rate: Fraction | None
    time_base: Fraction
    frames: int | None
    live: bool
    decoded_on: DecodedOn = "cpu"
    scaled: bool = False
    note: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One picture of a reader.

    Attributes:
        pts: When it is shown, in ticks of the reader's `time_base`; grows from picture to picture.
        duration: In ticks, or None where it is not known.
        rgb: Converts: ``() -> (H, W, 3) uint8 RGB``, a fresh array.
        name: Stem of its file, where each picture has one.
    """

    pts: int
    duration: int | None
    rgb: Callable[[], np.ndarray]
    name: str | None = None


class BrokenOffError(VideoError):
    """A video ends before its end.

    Args:
        name: Name of the video in messages.
        frame: The first one that is missing.
        reason: What happened and what to do.
    """

    def __init__(self, name: str, frame: int, reason: str) -> None:
        super().__init__(f"{name}: expected frame {frame}, {reason}.")
        self.reason = reason


class VideoReader:
    """All pictures of a video stream in the order in which they are shown.

    Opening decodes the first one. Iterate once.

    Args:
        video: Path, URL or an open file.
        name: Name in messages; the path when None.
        live: Whether data that cannot be decoded is passed over and delay kept low, at the price of speed; None decides
            by whether the duration is unknown.
        container: FFmpeg's name of the format, where it is known.
        options: Options of FFmpeg's format and protocol.
        timeout_s: For opening and for each read; None waits.
        most_pixels: Larger pictures are refused before they are decoded: a decoder keeps a dozen of them.

    Attributes:
        facts: What is known of the pictures.
        codec: FFmpeg's name.
        quarter_turns: How often pictures are turned by 90° anticlockwise to stand upright.
        peculiarity: What another decoder might take otherwise, in words, or None.

    Raises:
        VideoError: It cannot be opened, holds no video, or no frame of it can be decoded.
        MissingDependencyError: PyAV is not installed.
    """

    def __init__(
        self,
        video: Path | str | Readable,
        *,
        name: str | None = None,
        live: bool | None = False,
        container: str | None = None,
        options: Mapping[str, str] | None = None,
        timeout_s: tuple[float, float] | None = None,
        most_pixels: int = MOST_PIXELS,
    ) -> None:
        self._av = require("av", extra="video", purpose="reading videos")
        self.name = name or str(video)
        # The prefix keeps FFmpeg from taking a file "a:b" for a protocol.
        opened = f"file:{video}" if isinstance(video, Path) else video
        local = {"format_whitelist": _LOCAL_FORMATS} if isinstance(video, Path) and container is None else {}
        began = time.monotonic()
        try:
            self._container: InputContainer = self._av.open(
                opened,
                format=container,
                options={**local, **(options or {})},
                timeout=timeout_s,
                metadata_errors="replace",
                buffer_size=_BUFFER_BYTES,
            )
        except (self._av.FFmpegError, OSError, ValueError) as exc:
            late = timeout_s is not None and time.monotonic() - began > timeout_s[0]
            why = _REASONS["TimeoutError"] if late else _reason(exc)
            if local and isinstance(exc, self._av.ArgumentError):
                why = "got a list of other files or a format that is not played; give the video itself, e.g. as MP4"
            raise VideoError(f"{self.name}: expected a video, {why}.") from exc
        self._live = self._container.duration is None if live is None else live
        self._most_pixels = most_pixels
        try:
            self.facts = self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> VideoFacts:
        stream = self._video_stream()
        self._bound(stream)
        stream.thread_type = "SLICE" if self._live else "AUTO"  # frame threads hold one frame back per thread
        self.codec = stream.codec_context.name
        rate = stream.average_rate or stream.guessed_rate or None
        time_base = stream.time_base or 1 / _FALLBACK_RATE
        self._times: _Times = RepairedTimes(time_base, rate)
        if self._live and self._container.format.name in _WITHOUT_TIMES:
            self._times, rate, time_base = _Arrivals(), None, _MICROSECOND
        self._reformatter = self._av.video.reformatter.VideoReformatter()
        decoded = self._decode(stream)
        first = next(decoded, None)
        if first is None:
            raise VideoError(f"{self.name}: expected a video, no frame of it can be decoded; convert it.")
        self._frames = itertools.chain([first], decoded)
        self.peculiarity = _peculiarity(first)
        self.quarter_turns, size = _quarter_turns(first), (first.height, first.width)
        size_hw = size[::-1] if self.quarter_turns % 2 else size
        return VideoFacts(
            size_hw=size_hw,
            rate=rate,
            time_base=time_base,
            frames=None if self._live else stream.frames or None,
            live=self._live,
        )

    def _video_stream(self) -> VideoStream:
        # FFmpeg takes any text for a film of an old terminal, and the cover of a song for a video of one frame.
        stream: Any = self._container.streams.best("video")
        cover = self._av.stream.Disposition.attached_pic
        if not isinstance(stream, self._av.VideoStream) or stream.disposition & cover:
            kinds = " and ".join(sorted({each.type for each in self._container.streams})) or "nothing"
            raise VideoError(f"{self.name}: expected a video stream, found {kinds}; give a file with pictures.")
        if self._container.format.name == "tty":
            raise VideoError(f"{self.name}: expected a video, it is a text file; give a video.")
        if stream.codec_context is None:
            raise VideoError(f"{self.name}: expected a codec that FFmpeg decodes, got another; convert it to H.264.")
        return cast("VideoStream", stream)

    def _bound(self, stream: VideoStream) -> None:
        if stream.width * stream.height > self._most_pixels:
            raise VideoError(
                f"{self.name}: expected at most {self._most_pixels / 1e6:.1f} million pixels per picture, got "
                f"{stream.width} x {stream.height}; make it smaller."
            )
        stream.codec_context.options = {"max_pixels": str(self._most_pixels)}  # for what changes midway

    def __iter__(self) -> Iterator[Picture]:
        for frame in self._frames:
            pts, duration = self._times(frame.pts, frame.duration or None)
            yield Picture(pts=pts, duration=duration, rgb=partial(self._rgb, frame))

    def _decode(self, stream: VideoStream) -> Iterator[av.VideoFrame]:
        count, packets, cut = 0, 0, False
        try:
            for packet in self._container.demux(stream):  # the last one is empty: it flushes the decoder
                if packet.size:
                    packets += 1
                    cut = packet.is_corrupt and packets < stream.frames
                try:
                    frames = packet.decode()
                except self._av.InvalidDataError:
                    if count and not self._live and not cut:
                        raise
                    continue  # a stream that is joined midway starts with what cannot be decoded
                count += len(frames)
                yield from frames
        except (self._av.FFmpegError, OSError) as exc:
            raise BrokenOffError(self.name, count, _BROKEN_OFF.get(type(exc).__name__) or _reason(exc)) from exc
        if cut:
            raise BrokenOffError(self.name, count, "found the file cut off there; copy it again")

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        try:
            converted = self._reformatter.reformat(frame, format="rgb24", **_colours(frame))
        except (self._av.FFmpegError, ValueError) as exc:
            raise VideoError(
                f"{self.name}: expected pixels that FFmpeg turns to RGB, got {frame.format.name}; convert it to H.264."
            ) from exc
        return np.ascontiguousarray(np.rot90(converted.to_ndarray(), _quarter_turns(frame)))

    def close(self) -> None:
        """Close the file; may be called again."""
        self._container.close()


def _reason(exc: Exception) -> str:
    """Say in words why FFmpeg could not open or read something; without the URL, which may hold a password."""
    for kind in type(exc).__mro__:
        if kind.__name__ in _REASONS:
            return _REASONS[kind.__name__]
    return f"FFmpeg says: {getattr(exc, 'strerror', None) or type(exc).__name__}"


_Times = Callable[[int | None, int | None], tuple[int, int | None]]
"""From a picture's own time and duration, which may be missing, to those that are passed on."""


class RepairedTimes:
    """Times that always grow, also where the file lacks some or jumps back.

    Args:
        time_base: Seconds per tick.
        rate: Pictures per second, or None where the video does not tell.
    """

    def __init__(self, time_base: Fraction, rate: Fraction | None) -> None:
        self._step = max(1, round(1 / ((rate or _FALLBACK_RATE) * time_base)))
        self._last: int | None = None
        self._shift = 0

    def __call__(self, pts: int | None, duration: int | None) -> tuple[int, int | None]:
        """Return time and duration of the next picture, from its own; see `Picture`."""
        due = 0 if self._last is None else self._last + (duration or self._step)
        now = due if pts is None else pts + self._shift
        if self._last is not None and now <= self._last:
            if self._last - now > _SET_BACK_FRAMES * self._step:  # the clock was set back, and stays so
                self._shift += due - now
                now = due
            else:
                now = self._last + 1
        self._last = now
        return now, duration


class _Arrivals:
    """Times at which pictures come, in microseconds, for live streams that state none."""

    def __init__(self) -> None:
        self._began, self._last = time.monotonic(), -1

    def __call__(self, pts: int | None, duration: int | None) -> tuple[int, None]:
        self._last = max(round((time.monotonic() - self._began) / _MICROSECOND), self._last + 1)
        return self._last, None


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Return how often the frame is turned by 90° anticlockwise to stand upright."""
    return round(frame.rotation / 90)


def _peculiarity(frame: av.VideoFrame) -> str | None:
    """Name the turn, the pixels or the colours of a frame where they are not what is usual and tagged."""
    if _quarter_turns(frame):
        return "its pictures have to be turned"
    if frame.format.name != "yuv420p" or frame.color_range == _FULL_RANGE:
        return f"its pixels are {frame.format.name}{' of full range' * (frame.color_range == _FULL_RANGE)}"
    if int(frame.colorspace) not in _MATRICES and frame.height < _HD_LINES:
        return "it does not say by which matrix its colours were made, and as a small video it is taken to be BT.601"
    return None


def _colours(frame: av.VideoFrame) -> dict[str, Any]:
    """Return what tells swscale the matrix and range of a frame.

    PyAV before 17 applies them only where source and destination differ; of RGB the destination's matrix is not used.
    """
    if frame.format.is_rgb:
        return {}
    matrix = _MATRICES.get(int(frame.colorspace), _BT709 if frame.height >= _HD_LINES else _BT601)
    colours = {"src_colorspace": matrix, "dst_colorspace": _BT709 if matrix != _BT709 else _BT601}
    if frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj"):
        colours |= {"src_color_range": _FULL_RANGE, "dst_color_range": _FULL_RANGE}
    return colours
