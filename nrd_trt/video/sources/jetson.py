"""GStreamer pipelines for the hardware of a Jetson: CSI cameras and the video decoder.

The elements are those of NVIDIA's Accelerated GStreamer guide. A pipeline ends in BGRx in ordinary memory, as nvvidconv
makes no RGB; `open_source` takes it from there, also with elements added.
"""

from __future__ import annotations

import shlex
from contextlib import closing
from fractions import Fraction
from pathlib import Path

from nrd_trt.data.videos import VideoReader
from nrd_trt.errors import VideoError
from nrd_trt.video.sources.network import open_url, redacted

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
    sensor: int = 0, *, size_hw: tuple[int, int] = (1080, 1920), rate: Fraction | int = 30, flip: int = 0
) -> str:
    """Return the pipeline of a CSI camera.

    Args:
        sensor: Its number.
        size_hw: Size of the pictures, to which the sensor's nearest mode is scaled.
        rate: Frames per second.
        flip: ``flip-method`` of nvvidconv: 0 none, 1 a quarter turn anticlockwise, 2 a half turn, 3 clockwise.
    """
    height, width = size_hw
    exact = Fraction(rate)
    caps = f"width={width},height={height},framerate={exact.numerator}/{exact.denominator}"
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),format=NV12,{caps} ! "
        f"nvvidconv flip-method={flip} ! video/x-raw,format=BGRx"
    )


def decoder_pipeline(target: str, *, codec: str | None = None) -> str:
    """Return the pipeline that decodes a file or, over TCP, an RTSP stream by hardware.

    Args:
        target: Path of an MP4, QuickTime, Matroska or MPEG transport stream, or a URL with the user and password that
            it needs.
        codec: FFmpeg's name: ``"h264"`` or ``"hevc"``; None looks into the target.

    Raises:
        VideoError: It cannot be read, or the hardware does not decode it.
        MissingDependencyError: PyAV is not installed.
    """
    streamed, suffix = target.startswith(("rtsp://", "rtsps://")), Path(target).suffix.lower()
    if codec is None:
        with closing(open_url(target, live=True) if streamed else VideoReader(Path(target))) as reader:
            codec = reader.codec
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
    return f"{source} ! {parser} ! nvv4l2decoder ! nvvidconv ! video/x-raw,format=BGRx"
