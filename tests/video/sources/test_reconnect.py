"""Lost readers are replaced, with pauses that grow and times that go on."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest

from nrd_trt.data.videos import BrokenOffError, Picture, VideoFacts
from nrd_trt.errors import VideoError
from nrd_trt.video.sources import reader
from nrd_trt.video.sources.reader import ReaderSource


@dataclass
class FakeReader:
    pts: list[int]
    ticks: int = 1000
    breaks: bool = True
    closed: bool = False

    @property
    def facts(self) -> VideoFacts:
        rate = Fraction(10)
        return VideoFacts(size_hw=(2, 2), rate=rate, time_base=Fraction(1, self.ticks), frames=None, live=True)

    def __iter__(self) -> Iterator[Picture]:
        for pts in self.pts:
            yield Picture(pts=pts, duration=None, rgb=lambda: np.zeros((2, 2, 3), np.uint8))
        if self.breaks:
            raise BrokenOffError("cam", len(self.pts), "the cable was pulled; check it")

    def close(self) -> None:
        self.closed = True


class Clock:
    """Stands still but for the pauses, which it records."""

    def __init__(self) -> None:
        self.now_s, self.pauses = 100.0, list[float]()

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        clock.pauses.append(timeout or 0)
        clock.now_s += timeout or 0
        return self.is_set()

    monkeypatch.setattr(reader, "time", clock)
    monkeypatch.setattr(reader.random, "uniform", lambda low, high: 1.0)
    monkeypatch.setattr(threading.Event, "wait", wait)
    return clock


def source_of(*readers: FakeReader | VideoError, report: Callable[[str], None] = print) -> ReaderSource:
    following = iter(readers)

    def opened(stopped: threading.Event) -> FakeReader:
        reader = next(following)
        if isinstance(reader, VideoError):
            raise reader
        return reader

    return ReaderSource("cam", opened, report=report)


def test_numbers_and_times_go_on(clock: Clock) -> None:
    readers = [FakeReader([0, 100, 200]), FakeReader([7000, 7100], breaks=False), FakeReader([-5, 95])]
    lines: list[str] = []
    with source_of(*readers, report=lines.append) as source:
        frames = list(itertools.islice(source, 7))
    assert [frame.index for frame in frames] == list(range(7))
    # Half a second of pause lies between the last picture of one and the first of the next.
    assert [frame.pts for frame in frames] == [0, 100, 200, 700, 800, 1300, 1400]
    assert source.reconnects == 2 and all(reader.closed for reader in readers)
    assert lines == [
        "cam: lost (the cable was pulled); opening it again",
        "cam: back after 0.5 s",
        "cam: lost (it ended); opening it again",
        "cam: back after 0.5 s",
    ]


def test_times_keep_to_the_first_time_base(clock: Clock) -> None:
    with source_of(FakeReader([0, 100]), FakeReader([0, 9000, 9001], ticks=90_000)) as source:
        assert [frame.pts for frame in itertools.islice(source, 5)] == [0, 100, 600, 700, 701]
        assert source.info.time_base == Fraction(1, 1000)


def test_pauses_double_up_to_eight_seconds(clock: Clock) -> None:
    absent = VideoError("cam: expected a camera, there is none.")
    lines: list[str] = []
    with source_of(FakeReader([0]), *[absent] * 7, FakeReader([0]), report=lines.append) as source:
        list(itertools.islice(source, 2))
    assert clock.pauses == [0.5, 1, 2, 4, 8, 8, 8, 8]
    assert source.reconnects == 1 and lines[1] == "cam: back after 39.5 s"


def test_the_first_failure_is_final(clock: Clock) -> None:
    with pytest.raises(VideoError, match="there is none"), source_of(VideoError("cam: there is none."), FakeReader([])):
        pass
    assert clock.pauses == []


def test_stop_is_the_end() -> None:
    with source_of(FakeReader([0, 1, 2, 3])) as source:
        frames = iter(source)
        next(frames)
        source.stop()
        assert list(frames) == []
