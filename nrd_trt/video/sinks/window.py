"""Pictures in a window of the desktop. OpenCV on use."""

from __future__ import annotations

import time
from typing import Any

from nrd_trt.errors import MissingDependencyError, VideoError
from nrd_trt.optional import require
from nrd_trt.video.frames import SegmentedFrame, StreamInfo
from nrd_trt.video.sinks.base import Ending, EndOfRun

_TITLE = "nrd-trt"
_CLOSING_KEYS = (ord("q"), 27)  # Esc


class WindowSink:
    """One window; ``q``, Esc or its close button end the run. Files are shown no faster than they were taken."""

    shows_picture = True

    def __init__(self) -> None:
        self._cv2: Any = require("cv2", extra="camera", purpose="showing a window")
        if not _has_windows(self._cv2):
            raise MissingDependencyError(
                "showing a window: expected an OpenCV with windows, found the headless build. Install it with "
                "`pip uninstall opencv-python-headless && pip install opencv-python`, or write a file with -o NAME.mp4."
            )
        self._shown: tuple[float, float] | None = None

    def open(self, info: StreamInfo) -> None:
        """Show the empty window."""
        self._info = info
        try:
            self._cv2.namedWindow(_TITLE, self._cv2.WINDOW_NORMAL | self._cv2.WINDOW_KEEPRATIO)
        except self._cv2.error as exc:
            raise VideoError(f"a window cannot be shown ({exc}); is there a display? Write a file instead.") from exc

    def write(self, frame: SegmentedFrame) -> None:
        """Show a picture at its time."""
        if frame.picture is None:
            raise VideoError("window: expected a drawn picture, got none.")
        self._cv2.imshow(_TITLE, frame.picture[..., ::-1])
        key = self._cv2.waitKey(self._wait_ms(float(frame.frame.pts * self._info.time_base)))
        if key & 0xFF in _CLOSING_KEYS or self._cv2.getWindowProperty(_TITLE, self._cv2.WND_PROP_VISIBLE) < 1:
            raise EndOfRun

    def close(self, ending: Ending) -> None:
        """Close the window."""
        self._cv2.destroyWindow(_TITLE)

    def _wait_ms(self, time_s: float) -> int:
        """How long the picture may stand before the next one; at least a moment, for the window's events."""
        now = time.monotonic()
        if self._info.live or self._shown is None:
            self._shown = (now, time_s)
            return 1
        start, first = self._shown
        return max(1, round((time_s - first - (now - start)) * 1000))


def _has_windows(cv2: Any) -> bool:
    lines = [line.split() for line in cv2.getBuildInformation().splitlines()]
    return not any(line[:2] == ["GUI:", "NONE"] for line in lines)
