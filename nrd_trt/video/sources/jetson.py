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

_PARSERS = {"h264": "h264parse", "hevc": "h265parse"}
_DEPAYLOADERS = {"h264": "rtph264depay", "hevc": "rtph265depay"}
_DECODER = "nvv4l2decoder ! nvvidconv ! video/x-raw,format=BGRx"
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


def file_pipeline(path: Path | str, *, codec: str = "h264") -> str:
    """Return the pipeline that decodes a file by hardware.

    Args:
        path: MP4, QuickTime, Matroska or MPEG transport stream.
        codec: FFmpeg's name: ``"h264"`` or ``"hevc"``.

    Raises:
        VideoError: There is no such path through the hardware.
    """
    demuxer = _DEMUXERS.get(Path(path).suffix.lower())
    if demuxer is None or codec not in _PARSERS:
        raise _refusal(str(path), f"{', '.join(_DEMUXERS)} with {' or '.join(_PARSERS)}", codec)
    return f"filesrc location={shlex.quote(str(path))} ! {demuxer} ! queue ! {_PARSERS[codec]} ! {_DECODER}"


def rtsp_pipeline(url: str, *, codec: str = "h264", latency_ms: int = 200) -> str:
    """Return the pipeline that decodes an RTSP stream by hardware, over TCP.

    Args:
        url: With user and password where it needs them.
        codec: As for `file_pipeline`.
        latency_ms: Time that the jitter buffer holds back.

    Raises:
        VideoError: There is no such path through the hardware.
    """
    if codec not in _PARSERS:
        raise _refusal(redacted(url), " or ".join(_PARSERS), codec)
    source = f"rtspsrc location={shlex.quote(url)} latency={latency_ms} protocols=tcp"
    return f"{source} ! {_DEPAYLOADERS[codec]} ! {_PARSERS[codec]} ! {_DECODER}"


def decoder_pipeline(target: str) -> str:
    """Look what codec a file or an RTSP stream has, and return `file_pipeline` or `rtsp_pipeline` for it.

    Raises:
        VideoError: It cannot be read, or the hardware does not decode it.
        MissingDependencyError: PyAV is not installed.
    """
    if target.startswith(("rtsp://", "rtsps://")):
        with closing(open_url(target, live=True)) as reader:
            return rtsp_pipeline(target, codec=reader.codec)
    with closing(VideoReader(Path(target))) as reader:
        return file_pipeline(target, codec=reader.codec)


def _refusal(name: str, expected: str, codec: str) -> VideoError:
    return VideoError(f"{name}: expected {expected}, got {codec}; leave out jetson://, or write the pipeline yourself.")
