"""Sources, sinks and frames that are made of arrays. Nothing here asserts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from nrd_trt.video.frames import Ending, Frame, SegmentedFrame, StreamInfo

INFO = StreamInfo(name="test", size_hw=(60, 90), rate=Fraction(15), time_base=Fraction(1, 15), frames=None, live=False)


class Pictures:
    """A source of arrays.

    Args:
        picture: Makes the picture of an index.
        count: How many; None goes on for ever.
        live: Whether it says that it is.
        every_s: How long a frame takes to come.
        size_hw: Size that it states.
        rate: Frames per second that it states.

    Attributes:
        read: How many frames were taken.
        closed_by: Name of the thread that closed it.
    """

    reconnects = 0

    def __init__(
        self,
        picture: Callable[[int], np.ndarray],
        count: int | None,
        *,
        live: bool = False,
        every_s: float = 0.0,
        size_hw: tuple[int, int] = INFO.size_hw,
        rate: int = 15,
    ) -> None:
        self._picture, self._count, self._every_s = picture, count, every_s
        self.info = StreamInfo(
            name="street", size_hw=size_hw, rate=Fraction(rate), time_base=Fraction(1, rate), frames=count, live=live
        )
        self._stopped = threading.Event()
        self.closed_by: str | None = None
        self.read = 0

    def __iter__(self) -> Iterator[Frame]:
        while not self._stopped.wait(self._every_s) and (self._count is None or self.read < self._count):
            index = self.read
            yield Frame(index=index, image=self._picture(index), pts=index, duration=1, name=f"{index:06}")
            self.read = index + 1

    def stop(self) -> None:
        self._stopped.set()

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed_by = threading.current_thread().name


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self, *, shows_picture: bool = False, on_write: Callable[[int], None] = lambda index: None) -> None:
        self.shows_picture, self._on_write = shows_picture, on_write
        self.frames: list[SegmentedFrame] = []
        self.latencies_s: list[float] = []
        self.ending: Ending | None = None

    def open(self, info: StreamInfo) -> None:
        pass

    def write(self, frame: SegmentedFrame) -> None:
        self._on_write(frame.frame.index)
        self.frames.append(frame)
        self.latencies_s.append(time.monotonic() - frame.arrived_s)

    def close(self, ending: Ending) -> str | None:
        self.ending = ending
        return f"ended {ending}"

    @property
    def indices(self) -> list[int]:
        return [frame.frame.index for frame in self.frames]


def segmented(index: int, picture: np.ndarray, *, pts: int | None = None, duration: int | None = 1) -> SegmentedFrame:
    """A frame whose picture is the frame itself, all of class 0, which has arrived a quarter of a second ago."""
    mask, now = np.zeros(picture.shape[:2], np.uint8), time.monotonic()
    frame = Frame(index=index, image=picture, pts=index if pts is None else pts, duration=duration, name=f"{index:06}")
    return SegmentedFrame(frame=frame, mask=mask, unsmoothed=mask, shares=np.eye(256)[0], arrived_s=now - 0.25)
