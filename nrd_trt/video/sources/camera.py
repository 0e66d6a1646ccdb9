"""Cameras of this machine, by OpenCV, imported on use."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from nrd_trt.data.videos import BrokenOffError, Picture, VideoFacts
from nrd_trt.errors import VideoError
from nrd_trt.optional import require

_MICROSECOND = Fraction(1, 1_000_000)


def open_camera(device: int | str, *, rate: Fraction | None = None, live: bool = True) -> CaptureReader:
    """Open a camera.

    Args:
        device: Its number, or the path of a V4L2 device.
        rate: Frames per second to ask it for; it may give another.
        live: See `VideoFacts`.

    Raises:
        VideoError: It is not there, or another program has it.
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = require("cv2", extra="camera", purpose="reading cameras")
    capture = cv2.VideoCapture(device)
    if rate is not None:
        capture.set(cv2.CAP_PROP_FPS, float(rate))
    name = camera_name(device)
    if capture.isOpened():
        return CaptureReader(capture, name=name, live=live)
    capture.release()
    devices = sorted((str(path) for path in Path("/dev").glob("video*")), key=lambda path: (len(path), path))
    raise VideoError(
        f"{name}: expected a camera that opens, this machine has {', '.join(devices)}; give one of them that no other "
        "program uses."
        if devices
        else f"{name}: expected a camera that opens, this machine has no /dev/video*; plug one in, or pass it into the "
        "container."
    )


def camera_name(device: int | str) -> str:
    """Return the name of a camera in messages."""
    return f"camera {device}" if isinstance(device, int) else device


class CaptureReader:
    """The pictures of an open ``cv2.VideoCapture``, each at the time at which it came; see `Reader`.

    Args:
        capture: Released with this object.
        name: Name of the camera in messages.
        live: See `VideoFacts`.
        ends: Whether it may end; the end of a camera is an error.

    Raises:
        VideoError: There is no first picture.
    """

    def __init__(self, capture: Any, *, name: str, live: bool, ends: bool = False) -> None:
        self._cv2 = require("cv2", extra="camera", purpose="reading cameras")
        self._capture, self._name, self._ends = capture, name, ends
        self._began = time.monotonic()
        read, self._first = capture.read()
        if not read:
            capture.release()
            raise VideoError(
                f"{name}: expected a picture, it gives none; plug it in again, or close what else uses it."
            )
        rate = capture.get(self._cv2.CAP_PROP_FPS)
        self.facts = VideoFacts(
            size_hw=self._first.shape[:2],
            rate=Fraction(rate).limit_denominator(1001) if 0 < rate < 1000 else None,
            time_base=_MICROSECOND,
            frames=None,
            live=live,
        )

    def __iter__(self) -> Iterator[Picture]:
        yield self._picture(self._first)
        for count in itertools.count(1):
            read, bgr = self._capture.read()
            if not read and self._ends:
                return
            if not read:
                raise BrokenOffError(self._name, count, "it gives no more pictures; check its cable")
            yield self._picture(bgr)

    def _picture(self, bgr: Any) -> Picture:
        pts = round((time.monotonic() - self._began) / _MICROSECOND)
        return Picture(pts=pts, duration=None, rgb=partial(self._cv2.cvtColor, bgr, self._cv2.COLOR_BGR2RGB))

    def close(self) -> None:
        """Release the camera; may be called again."""
        self._capture.release()
