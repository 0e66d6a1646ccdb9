"""Order of calls, percentiles and throughput; nothing here depends on how fast the machine is."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from nrd_trt.benchmarking import timing
from nrd_trt.benchmarking.timing import Latency, peak_memory_mib, time_in_turn


def test_calls_are_interleaved_after_the_warmup_and_only_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time moves only when a call moves it."""
    now, order = [100.0], ""
    durations = {"a": [9.0, 9.0, 0.004, 0.002, 0.003], "b": [9.0, 9.0, 0.001, 0.001, 0.001], "|": [50.0] * 3}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call(name: str) -> None:
        nonlocal order
        order += name
        now[0] += durations[name].pop(0)

    calls = {name: partial(call, name) for name in "ab"}
    got = time_in_turn(calls, warmup=2, runs=3, between=partial(call, "|"))
    assert order == "aabb" + "ab|" * 3
    assert got["a"].samples_ms == pytest.approx((4.0, 2.0, 3.0))
    assert got["a"].p50 == pytest.approx(3.0)
    assert got["a"].p99 == pytest.approx(np.percentile([2, 3, 4], 99))
    assert (got["b"].runs, got["b"].p50, got["b"].p90) == (3, pytest.approx(1.0), pytest.approx(1.0))


def test_summary_and_throughput() -> None:
    got = Latency(samples_ms=(10, 30, 20, 40))
    assert got.to_dict() == pytest.approx({"p50": 25.0, "p90": 37.0, "p99": 39.7, "mean": 25.0, "min": 10.0})
    # Images by the time that they took, not by the median: one slow call costs frames.
    assert Latency(samples_ms=(10, 10, 80)).throughput_fps(batch=2) == pytest.approx(60.0)


def test_peak_memory_is_that_of_the_process() -> None:
    before = peak_memory_mib()
    block = np.ones(64 << 20, np.uint8)
    after = peak_memory_mib()
    assert 10 < before <= after < 1 << 20
    assert after >= 64, block.nbytes
