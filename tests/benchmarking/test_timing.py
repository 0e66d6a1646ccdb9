"""Order of calls, percentiles and throughput; nothing here depends on how fast the machine is."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from nrd_trt.benchmarking.timing import Latency, Times, peak_memory_mib, time_at_once, time_in_turn


def times(latency_ms: float) -> Times:
    return Times(latency_ms=latency_ms)


def test_calls_are_interleaved_after_the_warmup_and_only_they_count() -> None:
    order = ""
    durations = {"a": [9.0, 9.0, 4.0, 2.0, 3.0], "b": [9.0, 9.0, 1.0, 1.0, 1.0]}

    def call(name: str) -> Times:
        nonlocal order
        order += name
        return times(durations[name].pop(0) if name in durations else 0)

    @contextmanager
    def during() -> Iterator[None]:
        call("(")
        yield
        call(")")

    calls = {name: partial(call, name) for name in "ab"}
    got = time_in_turn(calls, warmup=2, runs=3, during=during(), between=partial(call, "|"))
    assert order == "aabb(" + "ab|" * 3 + ")"
    latency = got["a"].latency
    assert (latency.samples_ms, latency.p50, latency.p99) == ((4.0, 2.0, 3.0), 3.0, np.percentile([2, 3, 4], 99))
    assert (got["a"].gpu_compute, got["a"].enqueue, got["a"].seconds) == (None, None, pytest.approx(0.009))
    assert (got["b"].latency.runs, got["b"].latency.p90) == (3, 1.0)


@pytest.mark.parametrize(("runs", "duration_s", "expected"), [(3, 0.0, 3), (3, 0.05, 5), (7, 0.05, 7), (1, 0.041, 5)])
def test_rounds_go_on_until_every_call_has_its_number_and_its_time(runs: int, duration_s: float, expected: int) -> None:
    calls = {"slow": lambda: times(500.0), "fast": lambda: times(10.0)}
    got = time_in_turn(calls, warmup=0, runs=runs, duration_s=duration_s)
    assert [timing.latency.runs for timing in got.values()] == [expected] * 2


def test_figures_of_a_device_are_told_beside_the_latency() -> None:
    call = lambda: Times(latency_ms=5.0, gpu_compute_ms=3.0, enqueue_ms=0.5)  # noqa: E731
    got = time_in_turn({"a": call}, warmup=1, runs=2)["a"].to_dict()
    assert {name: part["p99"] for name, part in got.items() if isinstance(part, dict)} == {
        "latency_ms": 5.0, "gpu_compute_ms": 3.0, "enqueue_ms": 0.5,
    }  # fmt: skip


def test_streams_run_at_the_same_time_until_each_has_enough() -> None:
    """The first timed calls wait for each other, which they could not in turn."""
    meet, made = threading.Barrier(2), {"a": 0, "b": 0}

    def call(name: str, latency_ms: float) -> Times:
        made[name] += 1
        if made[name] == 2:  # the first is the warm-up
            meet.wait(30)
        return times(latency_ms)

    got = time_at_once([partial(call, "a", 10.0), partial(call, "b", 5.0)], warmup=1, runs=3, duration_s=0.02)
    assert made["a"] >= 1 + 3 and made["b"] >= 1 + 4
    assert got.latency.runs == sum(made.values()) - 2 and got.seconds > 0


@pytest.mark.parametrize("error", [RuntimeError("of a stream"), KeyboardInterrupt()])
def test_an_error_of_one_stream_ends_all(error: BaseException) -> None:
    made = threading.Event()

    def fails() -> Times:
        made.wait(30)
        raise error

    def goes_on() -> Times:
        made.set()
        return times(1.0)

    with pytest.raises(type(error)):
        time_at_once([fails, goes_on], warmup=0, runs=10**9)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_ctrl_c_ends_all_streams() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_at_once([lambda: times(1.0)] * 2, warmup=0, runs=10**9, between=interrupted)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_summary() -> None:
    got = Latency(samples_ms=(10, 30, 20, 40))
    assert got.to_dict() == pytest.approx({"p50": 25.0, "p90": 37.0, "p99": 39.7, "mean": 25.0, "min": 10.0})


def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    ballast = np.ones(600 << 17)  # 600 MiB that a child has not
    code = "from nrd_trt.benchmarking.timing import peak_memory_mib\nprint(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < float(child.stdout) < ballast.nbytes / 2**20 < peak_memory_mib()


def test_peak_memory_is_that_of_the_process() -> None:
    before = peak_memory_mib()
    block = np.ones(64 << 20, np.uint8)
    after = peak_memory_mib()
    assert 10 < before <= after < 1 << 20
    assert after >= 64, block.nbytes
