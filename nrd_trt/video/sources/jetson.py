"""GStreamer pipelines for the hardware of a Jetson: CSI cameras, the video decoder and the scaler.

The elements are those of NVIDIA's Accelerated GStreamer guide. A pipeline ends in BGRx in ordinary memory, as nvvidconv
makes no RGB; `open_source` takes it from there, also with elements added. Where nobody looks at the pictures but the
engine, nvvidconv scales them to what the engine reads of them, so that no more than that is copied.
"""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from nrd_trt.data.videos import VideoReader
from nrd_trt.errors import VideoError
from nrd_trt.specs import Resample, Size
from nrd_trt.video.sources.network import open_url, redacted

CSI_SIZE_HW = (1080, 1920)
_ELEMENTS = {"h264": ("rtph264depay", "h264parse"), "hevc": ("rtph265depay", "h265parse")}
_DEMUXERS = {
    ".mp4": "qtdemux",
    ".mov": "qtdemux",
    ".m4v": "qtdemux",
    ".mkv": "matroskademux",
    ".webm": "matroskademux",
    ".ts": "tsdemux",
}


def csi_pipeline(
    sensor: int = 0,
    *,
    size_hw: Size = CSI_SIZE_HW,
    rate: Fraction | int = 30,
    flip: int = 0,
    scaled_hw: Size | None = None,
    resample: Resample = "pillow",
) -> str:
    """Return the pipeline of a CSI camera.

    Args:
        sensor: Its number.
        size_hw: Size of the pictures, to which the sensor's nearest mode is scaled.
        rate: Frames per second.
        flip: ``flip-method`` of nvvidconv: 0 none, 1 a quarter turn anticlockwise, 2 a half turn, 3 clockwise.
        scaled_hw: Size that the pictures are scaled to, after the turn; None leaves theirs.
        resample: Whose filter the hardware's shall be like.
    """
    height, width = size_hw
    exact = Fraction(rate)
    caps = f"width={width},height={height},framerate={exact.numerator}/{exact.denominator}"
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),format=NV12,{caps} ! "
        f"nvvidconv flip-method={flip}{_scaling(scaled_hw, resample)}"
    )


@dataclass(frozen=True, kw_only=True)
class Target:
    """A file or stream that may be decoded by hardware.

    Attributes:
        codec: FFmpeg's name.
        flip: ``flip-method`` that lets its pictures stand upright.
        size_hw: Size of the upright pictures.
    """

    codec: str
    flip: int
    size_hw: Size


def look_into(target: str) -> Target:
    """Tell what a file or a stream is; see `decoder_pipeline`."""
    with closing(open_url(target, live=True) if is_stream(target) else VideoReader(Path(target))) as reader:
        return Target(codec=reader.codec, flip=reader.quarter_turns % 4, size_hw=reader.facts.size_hw)


def decoder_pipeline(
    target: str,
    *,
    codec: str | None = None,
    flip: int = 0,
    scaled_hw: Size | None = None,
    resample: Resample = "pillow",
) -> str:
    """Return the pipeline that decodes a file or, over TCP, an RTSP stream by hardware.

    Args:
        target: Path of an MP4, QuickTime, Matroska or MPEG transport stream, or a URL with the user and password that
            it needs.
        codec: FFmpeg's name: ``"h264"`` or ``"hevc"``; None looks into the target, also for `flip`.
        flip: See `csi_pipeline`.
        scaled_hw: See `csi_pipeline`.
        resample: See `csi_pipeline`.

    Raises:
        VideoError: It cannot be read, or the hardware does not decode it.
        MissingDependencyError: PyAV is not installed.
    """
    streamed, suffix = is_stream(target), Path(target).suffix.lower()
    if codec is None:
        found = look_into(target)
        codec, flip = found.codec, found.flip
    if codec not in _ELEMENTS or not (streamed or suffix in _DEMUXERS):
        expected = f"{'a stream' if streamed else ', '.join(_DEMUXERS)} with {' or '.join(_ELEMENTS)}, got {codec}"
        raise VideoError(
            f"{redacted(target)}: expected {expected}; leave out jetson://, or write the pipeline yourself."
        )
    depayloader, parser = _ELEMENTS[codec]
    location = f"location={shlex.quote(target)}"
    if streamed:
        source = f"rtspsrc {location} latency=200 protocols=tcp ! {depayloader}"
    else:
        source = f"filesrc {location} ! {_DEMUXERS[suffix]} ! queue"
    turn = f" flip-method={flip}" if flip else ""
    return f"{source} ! {parser} ! nvv4l2decoder ! nvvidconv{turn}{_scaling(scaled_hw, resample)}"


def is_stream(target: str) -> bool:
    """Tell whether a target of `decoder_pipeline` is a URL, not a file."""
    return target.startswith(("rtsp://", "rtsps://"))


def _scaling(scaled_hw: Size | None, resample: Resample) -> str:
    """Return the end of a pipeline, from the options of its nvvidconv on."""
    if scaled_hw is None:
        return " ! video/x-raw,format=BGRx"
    height, width = scaled_hw
    # Without a method nvvidconv takes the nearest pixel. 2 is its 5-tap filter, the closest to Pillow's; 1 is bilinear.
    method = 1 if resample == "cv2" else 2
    return f" interpolation-method={method} ! video/x-raw,format=BGRx,width={width},height={height}"
