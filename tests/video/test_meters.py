"""Frame rates count intervals, not frames; figures of the window and of the run."""

from __future__ import annotations

import pytest

from nrd_trt.video import meters
from nrd_trt.video.meters import STAGES, Meters


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meters, "time", clock)
    return clock


def write(subject: Meters, clock: Clock, moments: list[float]) -> None:
    for moment in moments:
        clock.now = 100.0 + moment
        subject.written(0.01)


def test_five_frames_in_four_seconds_are_one_per_second(clock: Clock) -> None:
    subject = Meters()
    write(subject, clock, [0, 1, 2, 3, 4])
    assert subject.snapshot().fps == pytest.approx(1.0)
    assert subject.total().fps == pytest.approx(1.0)


def test_no_rate_before_the_second_frame(clock: Clock) -> None:
    subject = Meters()
    assert subject.snapshot().fps is None
    write(subject, clock, [0])
    assert subject.snapshot().fps is None
    assert subject.total().fps is None


def test_a_source_that_stands_still_loses_its_rate(clock: Clock) -> None:
    subject = Meters()
    write(subject, clock, [index / 10 for index in range(11)])
    assert subject.snapshot().fps == pytest.approx(10)
    clock.now += 1
    assert subject.snapshot().fps == pytest.approx(10)
    clock.now += 10
    assert subject.snapshot().fps == pytest.approx(10 / 11)
    assert subject.total().fps == pytest.approx(10)


def test_the_window_forgets_and_the_total_does_not(clock: Clock) -> None:
    subject = Meters()
    write(subject, clock, [float(index) for index in range(10)])
    write(subject, clock, [10 + index / 100 for index in range(200)])
    assert subject.snapshot().fps == pytest.approx(100)
    assert subject.total().fps == pytest.approx(209 / 11.99)
    assert subject.total().frames == 210


def test_split_is_the_mean_of_each_stage() -> None:
    subject = Meters()
    assert subject.total().split_ms == dict.fromkeys(STAGES, 0.0)
    for seconds in (0.001, 0.003):
        subject.stage("infer", seconds)
    subject.stage("write", 0.5)
    assert subject.total().split_ms["infer"] == pytest.approx(2.0)
    assert subject.snapshot().split_ms["write"] == pytest.approx(500.0)


def test_latency_percentiles_are_latencies_that_were_seen() -> None:
    subject = Meters()
    assert subject.snapshot().latency_ms is None
    for milliseconds in range(1, 101):
        subject.written(milliseconds / 1000)
    assert subject.snapshot().latency_ms == pytest.approx({"p50": 50.0, "p90": 90.0, "p99": 99.0})


def test_drops_and_reconnects_are_counted() -> None:
    subject = Meters()
    subject.drop()
    subject.drop(2)
    subject.drop(0)
    subject.reconnects(3)
    assert (subject.snapshot().dropped, subject.snapshot().reconnects) == (3, 3)
