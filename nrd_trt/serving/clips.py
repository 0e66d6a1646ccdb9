"""Uploaded clips, from bytes to bytes: decode, draw, encode as MP4. PyAV on use.

The demuxer is named and may open nothing else: no playlist, no reference to another file, no protocol.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np

from nrd_trt.data.videos import Picture, VideoReader
from nrd_trt.progress import silent
from nrd_trt.serving.problems import Refusal
from nrd_trt.serving.uploads import Job, Limits
from nrd_trt.video.sinks.mp4 import Mp4Encoder

Draw = Callable[[np.ndarray], np.ndarray]

_OPTIONS = {
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "codec_whitelist": "h264,hevc,vp8,vp9,av1,libdav1d,mpeg4,mjpeg,prores",
}


def overlay_clip(body: bytes, container: str, draw: Draw, limits: Limits, job: Job) -> bytes:
    """Draw every picture of a clip anew.

    Args:
        body: The file.
        container: Name of its demuxer.
        draw: From image to picture, ``(H, W, 3) uint8 RGB`` both.
        limits: Size, length and number of frames that are taken.
        job: Told of every frame, and asked whether to go on.

    Returns:
        An MP4 file, H.264, without sound, with the times of the clip.

    Raises:
        VideoError: It is damaged, or its pictures are too large.
        Refusal: It is too long, took too long, or nobody waits for it.
    """
    target = io.BytesIO()
    opened = VideoReader(
        io.BytesIO(body), name="clip", container=container, options=_OPTIONS, most_pixels=limits.clip_pixels
    )
    with closing(opened) as reader:
        job.progress.total = reader.facts.frames
        facts = reader.facts
        encoder = Mp4Encoder(target, time_base=facts.time_base, rate=facts.rate, live=False, report=silent)
        with closing(encoder):
            for picture in _pictures(reader, limits):
                job.check()
                encoder.write(_even(draw(picture.rgb())), picture.pts, picture.duration)
                job.progress.done += 1
    return target.getvalue()


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


def _even(rgb: np.ndarray) -> np.ndarray:
    """Leave out an odd row or column: four pixels share a colour, and some browsers play nothing else."""
    height, width = rgb.shape[:2]
    if height < 2 or width < 2:
        return np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(rgb[: height & ~1, : width & ~1])
