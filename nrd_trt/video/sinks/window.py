"""Pictures in a window of the desktop. OpenCV on use."""

from __future__ import annotations

import re
import time
from typing import Any

from nrd_trt.errors import MissingDependencyError, VideoError
from nrd_trt.optional import require
from nrd_trt.video.frames import Ending, EndOfRun, SegmentedFrame, StreamInfo

_TITLE = "nrd-trt"
_CLOSING_KEYS = (ord("q"), 27)  # Esc


class WindowSink:
    """One window; ``q``, Esc or its close button end the run. Files are shown no faster than they were taken."""

    shows_picture = True

    def __init__(self) -> None:
        self._cv2: Any = require("cv2", extra="camera", purpose="showing a window")
        if re.search(r"^\s*GUI:\s+NONE", self._cv2.getBuildInformation(), re.MULTILINE):
            raise MissingDependencyError(
                "showing a window: expected an OpenCV with windows, found the headless build. Install it with "
                "`pip uninstall opencv-python-headless && pip install opencv-python`, or write a file, NAME.mp4."
            )
        self._began: tuple[float, float] | None = None

    def open(self, info: StreamInfo) -> None:
        """Show the empty window."""
        self._info = info
        try:
            self._cv2.namedWindow(_TITLE, self._cv2.WINDOW_NORMAL | self._cv2.WINDOW_KEEPRATIO)
        except self._cv2.error as exc:
            raise VideoError(f"a window cannot be shown ({exc}); is there a display? Write a file instead.") from exc

    def write(self, frame: SegmentedFrame) -> None:
        """Show a picture, as long as it may stand before the next one, but at least for the window's events."""
        self._cv2.imshow(_TITLE, frame.picture[..., ::-1])
        now, time_s = time.monotonic(), float(frame.frame.pts * self._info.time_base)
        if self._info.live or self._began is None:
            self._began = now, time_s
        wait_ms = round((time_s - self._began[1] - (now - self._began[0])) * 1000)
        key = self._cv2.waitKey(max(1, wait_ms))
        if key & 0xFF in _CLOSING_KEYS or self._cv2.getWindowProperty(_TITLE, self._cv2.WND_PROP_VISIBLE) < 1:
            raise EndOfRun

    def close(self, ending: Ending) -> None:
        """Close the window."""
        self._cv2.destroyWindow(_TITLE)
