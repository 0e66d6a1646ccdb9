"""Uploaded clips, from bytes to bytes: decode, segment, draw, encode as MP4. PyAV only.

The demuxer is named and may open nothing else: no playlist, no reference to another file, no protocol.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from nrd_trt.serve.pictures import Look, Palette, compose
from nrd_trt.serve.problems import Refusal
from nrd_trt.serve.uploads import Job, Limits

Segment = Callable[[np.ndarray], np.ndarray]

_DEMUXERS = {"mp4": "mov", "matroska": "matroska"}
_CODECS = "h264,hevc,vp8,vp9,av1,libdav1d,mpeg4,mjpeg,prores"
_USUAL_RATE = Fraction(25)


def overlay_clip(
    body: bytes,
    kind: Literal["mp4", "matroska"],
    segment: Segment,
    palette: Palette,
    look: Look,
    limits: Limits,
    job: Job,
) -> bytes:
    """Segment a clip and draw the masks over it.

    Args:
        body: The file.
        kind: What it is by its first bytes.
        segment: From image to mask.
        palette: Of the classes.
        look: What is drawn.
        limits: Of the clip.
        job: Told of every frame, and asked whether to go on.

    Returns:
        An MP4 file, H.264, without sound, with the times of the clip.

    Raises:
        Refusal: It is damaged, or over a limit.
    """
    target = io.BytesIO()
    with _readable(), _open(body, kind, limits) as source:
        stream = _video_of(source, limits)
        job.total = stream.frames or None
        with av.open(target, "w", format="mp4", options={"movflags": "faststart"}) as output:
            writer = _Writer(output, stream)
            for frame in _frames(source, stream, limits):
                job.check()
                rgb = _upright(frame)
                writer.write(np.asarray(compose(rgb, segment(rgb), palette, look)), frame)
                job.done += 1
            writer.end()
    if not job.done:
        raise _unreadable("no frame in it")
    return target.getvalue()


class _Writer:
    """Encodes pictures with the times of the frames that they were made of."""

    def __init__(self, output: OutputContainer, source: VideoStream) -> None:
        self._output = output
        self._stream = output.add_stream("libx264", rate=source.average_rate or _USUAL_RATE)
        self._stream.options = {"preset": "veryfast", "crf": "21"}
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = source.time_base or 1 / _USUAL_RATE
        self._first: int | None = None
        self._last = -1

    def write(self, picture: np.ndarray, source: VideoFrame) -> None:
        """Encode one picture; the first one's size is everybody's."""
        if self._first is None:
            # Two pixels share a colour, so that sides are even.
            self._stream.height, self._stream.width = picture.shape[0] & ~1, picture.shape[1] & ~1
            self._first = source.pts or 0
        height, width = self._stream.height, self._stream.width
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        if (frame.height, frame.width) != (height, width):
            frame = frame.reformat(width=width, height=height)
        self._last = max(self._last + 1, (source.pts or 0) - self._first)
        frame.pts, frame.time_base = self._last, self._stream.codec_context.time_base
        self._output.mux(self._stream.encode(frame))

    def end(self) -> None:
        """Write what the encoder still holds."""
        if self._first is not None:
            self._output.mux(self._stream.encode(None))


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what PyAV raises into refusals."""
    try:
        yield
    except (av.FFmpegError, ValueError, OSError, IndexError) as exc:
        raise _unreadable(f"one that cannot be decoded ({str(exc).splitlines()[0]})") from exc


def _open(body: bytes, kind: str, limits: Limits) -> InputContainer:
    options = {"codec_whitelist": _CODECS, "protocol_whitelist": "none", "max_pixels": str(limits.clip_pixels)}
    return av.open(io.BytesIO(body), "r", format=_DEMUXERS[kind], options=options, io_open=_refuse)


def _refuse(url: str, flags: int, options: dict[str, Any]) -> Any:
    raise OSError("a clip must not open other files")


def _video_of(source: InputContainer, limits: Limits) -> VideoStream:
    """Return the video stream, held against what its header says."""
    if not source.streams.video:
        raise _unreadable("one without video")
    stream = source.streams.video[0]
    if stream.width * stream.height > limits.clip_pixels:
        raise _too_large(limits, f"{stream.width} x {stream.height} pixels")
    if stream.frames > limits.clip_frames or (source.duration or 0) > limits.clip_s * av.time_base:
        raise _too_large(limits, f"{stream.frames} frames in {(source.duration or 0) / av.time_base:.0f} s")
    stream.codec_context.options = {"max_pixels": str(limits.clip_pixels)}
    return stream


def _frames(source: InputContainer, stream: VideoStream, limits: Limits) -> Iterator[VideoFrame]:
    """Yield the frames; headers may lie, so they are counted."""
    first: float | None = None
    for index, frame in enumerate(source.decode(stream)):
        first = frame.time if first is None else first
        if index >= limits.clip_frames or (frame.time or 0) - (first or 0) > limits.clip_s:
            raise _too_large(limits, "a longer one")
        if frame.width * frame.height > limits.clip_pixels:
            raise _too_large(limits, f"{frame.width} x {frame.height} pixels")
        yield frame


def _upright(frame: VideoFrame) -> np.ndarray:
    """Return the picture as a player shows it: phones write how they were held."""
    rgb = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90))


def _too_large(limits: Limits, got: str) -> Refusal:
    message = (
        f"clip: expected at most {limits.clip_s:.0f} s, {limits.clip_frames} frames and "
        f"{limits.clip_pixels / 1e6:.1f} million pixels each, got {got}; cut it or make it smaller."
    )
    return Refusal(422, "TooLongClip", message)


def _unreadable(got: str) -> Refusal:
    return Refusal(422, "UnreadableClip", f"clip: expected an MP4, MOV, MKV or WebM file, got {got}; convert it anew.")
