"""Nowhere: for measuring, and for runs whose figures are all that is wanted."""

from __future__ import annotations

from nrd_trt.video.frames import SegmentedFrame, StreamInfo
from nrd_trt.video.sinks.base import Ending


class NullSink:
    """Takes every frame and keeps none."""

    shows_picture = False

    def open(self, info: StreamInfo) -> None:
        """Nothing to do."""

    def write(self, frame: SegmentedFrame) -> None:
        """Nothing to do."""

    def close(self, ending: Ending) -> None:
        """Nothing to do."""
