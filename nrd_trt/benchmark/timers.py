"""Latency of callables, measured in turn so that a noisy machine disturbs them alike. NumPy only."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles of one callable.

    Attributes:
        p50: Median in milliseconds.
        p90: 90th percentile in milliseconds.
        p99: 99th percentile in milliseconds.
        runs: Number of timed calls.
    """

    p50: float
    p90: float
    p99: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """Summarise timed calls."""
        p50, p90, p99 = np.percentile(np.array(seconds) * 1000, [50, 90, 99])
        return cls(p50=float(p50), p90=float(p90), p99=float(p99), runs=len(seconds))


def time_in_turn(calls: Mapping[str, Callable[[], object]], *, warmup: int, runs: int) -> dict[str, Latency]:
    """Time several callables in alternation.

    Args:
        calls: By name.
        warmup: Untimed calls of each.
        runs: Timed calls of each, at least 1.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: Latency.of(values) for name, values in seconds.items()}


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
