"""Calls that are timed: of several sources in turn, so that a noisy machine disturbs them alike, or of several streams.

Knows neither runners nor devices; `nrd_trt.benchmarking.calls` makes what is called.
"""

from __future__ import annotations

import re
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one call took; None for what it does not tell.

    Attributes:
        latency_ms: From begin to end, for who called.
        gpu_compute_ms: On the device, between events around the engine's work, which was queued behind other work.
        enqueue_ms: What it took the host to queue the engine's work.
    """

    latency_ms: float
    gpu_compute_ms: float | None = None
    enqueue_ms: float | None = None


Call = Callable[[], Times]
"""Runs once, waits for the end and tells what it took."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What the timed calls of one callable took.

    Attributes:
        samples_ms: Every call in the order of the run, in milliseconds.
    """

    samples_ms: tuple[float, ...]

    @property
    def runs(self) -> int:
        """Number of timed calls."""
        return len(self.samples_ms)

    @property
    def p50(self) -> float:
        """Median in milliseconds."""
        return self.percentile(50)

    @property
    def p90(self) -> float:
        """90th percentile in milliseconds."""
        return self.percentile(90)

    @property
    def p99(self) -> float:
        """99th percentile in milliseconds; of fewer than 100 calls it is close to the slowest one."""
        return self.percentile(99)

    @property
    def mean(self) -> float:
        """Mean in milliseconds."""
        return sum(self.samples_ms) / self.runs

    @property
    def min(self) -> float:
        """Smallest in milliseconds."""
        return min(self.samples_ms)

    def percentile(self, share: float) -> float:
        """Return a percentile in milliseconds, interpolated between calls; `share` is in 0-100."""
        return float(np.percentile(self.samples_ms, share))

    def to_dict(self) -> dict[str, float]:
        """Return ``p50, p90, p99, mean, min`` in milliseconds."""
        return {name: getattr(self, name) for name in ("p50", "p90", "p99", "mean", "min")}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The timed calls of one source.

    Attributes:
        latency: From begin to end of each call.
        gpu_compute: What the engine alone took on the device, in runs of their own; None where it was not timed.
        enqueue: What the host took to queue the engine; None without a device.
        seconds: What the calls took together; for calls at the same time this is from the first begin to the last end.
    """

    latency: Latency
    gpu_compute: Latency | None
    enqueue: Latency | None
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """Return ``latency_ms, gpu_compute_ms, enqueue_ms, timed_s``."""
        parts = {"latency_ms": self.latency, "gpu_compute_ms": self.gpu_compute, "enqueue_ms": self.enqueue}
        return {**{name: part and part.to_dict() for name, part in parts.items()}, "timed_s": self.seconds}


def time_in_turn(
    calls: Mapping[str, Call],
    *,
    warmup: int,
    runs: int,
    duration_s: float = 0.0,
    during: AbstractContextManager[object] | None = None,
    between: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time several callables in alternation.

    Args:
        calls: By name.
        warmup: Untimed calls of each.
        runs: Timed calls of each at the least, 1 or more.
        duration_s: Seconds of timed calls of each at the least.
        during: Entered after the warm-up and left after the last call, e.g. to measure energy.
        between: Called after every round, untimed, e.g. to read clocks.
    """
    _warm_up([*calls.values()], warmup)
    tallies = {name: _Tally() for name in calls}
    with during or nullcontext():
        while not all(tally.has(runs, duration_s) for tally in tallies.values()):
            for name, call in calls.items():
                tallies[name].add(call())
            if between is not None:
                between()
    return {name: _timing(tally.times, tally.busy_s) for name, tally in tallies.items()}


def time_at_once(
    calls: Sequence[Call],
    *,
    warmup: int,
    runs: int,
    duration_s: float = 0.0,
    during: AbstractContextManager[object] | None = None,
    between: Callable[[], object] | None = None,
) -> Timing:
    """Time callables that run at the same time, each on a thread of its own, until each has enough calls.

    Args:
        calls: One for each thread.
        warmup: Untimed calls of each, one after the other.
        runs: See `time_in_turn`.
        duration_s: See `time_in_turn`.
        during: See `time_in_turn`.
        between: Called on this thread every now and then.
    """
    _warm_up(calls, warmup)
    start, ended = threading.Barrier(len(calls)), threading.Event()
    tallies = [_Tally() for _ in calls]

    def go_on(call: Call, tally: _Tally) -> tuple[float, float]:
        try:
            start.wait()
            begin = time.perf_counter()
            while not ended.is_set():
                tally.add(call())
                if all(one.has(runs, duration_s) for one in tallies):
                    ended.set()
            return begin, time.perf_counter()
        finally:
            ended.set()  # after an error the others end too

    with during or nullcontext(), ThreadPoolExecutor(len(calls), "stream") as pool:
        try:
            running = {pool.submit(go_on, *both) for both in zip(calls, tallies, strict=True)}
            while True:
                if between is not None:
                    between()
                if not wait(running, _LOOK_EVERY_S).not_done:
                    break
        finally:
            ended.set()  # Ctrl-C must not wait for the threads for ever
            start.abort()
    begins, ends = zip(*(future.result() for future in running), strict=True)
    return _timing([times for tally in tallies for times in tally.times], max(ends) - min(begins))


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB.

    Linux's VmHWM, where there is one: ``ru_maxrss`` begins with what the process had that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _warm_up(calls: Sequence[Call], warmup: int) -> None:
    for call in calls:
        for _ in range(warmup):
            call()


class _Tally:
    """The timed calls of one callable so far."""

    def __init__(self) -> None:
        self.times: list[Times] = []
        self.busy_s = 0.0

    def add(self, times: Times) -> None:
        self.times.append(times)
        self.busy_s += times.latency_ms / 1000

    def has(self, runs: int, duration_s: float) -> bool:
        return len(self.times) >= runs and self.busy_s >= duration_s


def _timing(done: Sequence[Times], seconds: float) -> Timing:
    """Sum up timed calls; either all of them tell of a device, or none."""
    gpu_compute = tuple(times.gpu_compute_ms for times in done if times.gpu_compute_ms is not None)
    enqueue = tuple(times.enqueue_ms for times in done if times.enqueue_ms is not None)
    return Timing(
        latency=Latency(samples_ms=tuple(times.latency_ms for times in done)),
        gpu_compute=Latency(samples_ms=gpu_compute) if gpu_compute else None,
        enqueue=Latency(samples_ms=enqueue) if enqueue else None,
        seconds=seconds,
    )
