"""Uploaded clips, from bytes to bytes: decode, segment, draw, encode as MP4. PyAV on use.

The demuxer is named and may open nothing else: no playlist, no reference to another file, no protocol.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from PIL import Image

from nrd_trt.data.overlay import Palette
from nrd_trt.data.videos import Picture, VideoFacts, VideoReader
from nrd_trt.optional import require
from nrd_trt.serve.pictures import Look, compose
from nrd_trt.serve.problems import Refusal
from nrd_trt.serve.uploads import Job, Limits

Segment = Callable[[np.ndarray], np.ndarray]

_DEMUXERS = {"mp4": "mov", "matroska": "matroska"}
_OPTIONS = {
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "codec_whitelist": "h264,hevc,vp8,vp9,av1,libdav1d,mpeg4,mjpeg,prores",
}
_USUAL_RATE = Fraction(25)
_HD_LINES = 720  # from here on, players take video to be BT.709


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
        VideoError: It is damaged, or its pictures are too large.
        Refusal: It is too long, took too long, or nobody waits for it.
    """
    target = io.BytesIO()
    with closing(_open(body, kind, limits)) as reader:
        job.total = reader.facts.frames
        writer = _Writer(target, reader.facts)
        try:
            for picture in _pictures(reader, limits):
                job.check()
                rgb = picture.rgb()
                writer.write(compose(rgb, segment(rgb), palette, look), picture)
                job.done += 1
        finally:
            writer.close()
    return target.getvalue()


def _open(body: bytes, kind: str, limits: Limits) -> VideoReader:
    return VideoReader(
        io.BytesIO(body), name="clip", container=_DEMUXERS[kind], options=_OPTIONS, most_pixels=limits.clip_pixels
    )


def _pictures(reader: VideoReader, limits: Limits) -> Iterator[Picture]:
    """Yield the pictures up to the limits; headers may lie, so they are counted too."""
    told = reader.facts.frames or 0
    first: int | None = None
    for index, picture in enumerate(reader):
        first = picture.pts if first is None else first
        seconds = (picture.pts - first) * reader.facts.time_base
        if max(told, index + 1) > limits.clip_frames or seconds > limits.clip_s:
            raise Refusal(
                422,
                "TooLongClip",
                f"clip: expected at most {limits.clip_s:.0f} s and {limits.clip_frames} frames, got "
                f"{f'{told} frames' if told > limits.clip_frames else 'more'}; cut it.",
            )
        yield picture


class _Writer:
    """Encodes pictures with the times of those that they were made of."""

    def __init__(self, target: io.BytesIO, facts: VideoFacts) -> None:
        self._av: Any = require("av", extra="serve", purpose="clips")
        self._container: Any = self._av.open(target, "w", format="mp4")
        rate = facts.rate or _USUAL_RATE
        # Without B-frames the times stay those of the source.
        self._stream: Any = self._container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "bf": "0"})
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = self._time_base = facts.time_base
        self._size_hw: tuple[int, int] | None = None

    def write(self, rgb: np.ndarray, source: Picture) -> None:
        """Encode one picture; the first one's size is everybody's."""
        if self._size_hw is None:
            self._begin(rgb)
        frame = self._av.VideoFrame.from_ndarray(self._fitted(rgb), format="rgb24")
        encoded = frame.reformat(format="yuv420p", dst_colorspace=self._colorspace)
        encoded.pts, encoded.time_base = source.pts, self._time_base
        self._container.mux(self._stream.encode(encoded))

    def close(self) -> None:
        """Finish the file."""
        if self._size_hw is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def _begin(self, rgb: np.ndarray) -> None:
        # Four pixels share a colour, and players want nothing else: an odd row or column is left out.
        self._size_hw = height, width = max(2, rgb.shape[0] & ~1), max(2, rgb.shape[1] & ~1)
        self._stream.height, self._stream.width = height, width
        context, high = self._stream.codec_context, height >= _HD_LINES
        space = self._av.video.reformatter.Colorspace
        self._colorspace = space.ITU709 if high else space.ITU601
        context.color_primaries, context.color_trc, context.colorspace = (1, 1, 1) if high else (6, 6, 6)

    def _fitted(self, rgb: np.ndarray) -> np.ndarray:
        height, width = self._size_hw or rgb.shape[:2]
        if 0 <= rgb.shape[0] - height <= 1 and 0 <= rgb.shape[1] - width <= 1:
            return np.ascontiguousarray(rgb[:height, :width])
        return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
