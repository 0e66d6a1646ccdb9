"""Frame rates count intervals, not frames; figures of the window and of the run."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from nrd_trt.video import stats
from nrd_trt.video.stats import STAGES, StatsCollector


class Run:
    """A collector and the clock that it reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.stats = 100.0, StatsCollector()
        monkeypatch.setattr(stats, "time", SimpleNamespace(monotonic=lambda: self.now))

    def write(self, moments: Iterable[float]) -> None:
        """Frames that take 10 ms each."""
        for moment in moments:
            self.now = 100.0 + moment
            self.stats.written(self.now - 0.01)

    def rates(self) -> tuple[float | None, float | None]:
        """Of the last frames, and of the run."""
        return self.stats.snapshot().fps, self.stats.total().fps


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def test_five_frames_in_four_seconds_are_one_per_second_and_one_frame_has_no_rate(run: Run) -> None:
    assert run.rates() == (None, None)
    run.write([0])
    assert run.rates() == (None, None)
    run.write([1])
    assert run.rates() == pytest.approx((1.0, 1.0))
    run.write([2, 3, 4])
    assert run.rates() == pytest.approx((1.0, 1.0))


def test_a_source_that_stands_still_loses_its_rate_and_the_window_forgets(run: Run) -> None:
    run.write(index / 10 for index in range(11))
    run.now += 1
    assert run.rates() == pytest.approx((10, 10))
    run.now += 10
    assert run.rates() == pytest.approx((10 / 11, 10))
    run.write(12 + index / 100 for index in range(200))
    assert run.rates() == pytest.approx((100, 210 / 13.99))
    assert run.stats.total().frames == 211


def test_the_split_is_the_mean_of_each_stage_and_percentiles_are_latencies_that_were_seen(run: Run) -> None:
    before = run.stats.total()
    assert (before.split_ms, before.latency_ms) == (dict.fromkeys(STAGES, 0.0), None)
    for seconds in (0.001, 0.003):
        run.stats.stage("infer", seconds)
    run.stats.stage("write", 0.5)
    for milliseconds in range(1, 101):
        run.stats.written(run.now - milliseconds / 1000)
    for figures in (run.stats.snapshot(), run.stats.total()):
        assert figures.split_ms == pytest.approx(dict.fromkeys(STAGES, 0.0) | {"infer": 2.0, "write": 500.0})
        assert figures.latency_ms == pytest.approx({"p50": 50.0, "p90": 90.0, "p99": 99.0})


def test_drops_and_reconnects_are_counted(run: Run) -> None:
    for count in (1, 2, 0):
        run.stats.drop(count)
    run.stats.reconnects(3)
    for figures in (run.stats.snapshot(), run.stats.total()):
        assert (figures.dropped, figures.reconnects) == (3, 3)
