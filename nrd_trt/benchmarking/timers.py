"""Latency of callables, measured in turn so that a noisy machine disturbs them alike. NumPy only."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What the timed calls of one callable took.

    Attributes:
        samples_ms: Every call in the order of the run, in milliseconds.
    """

    samples_ms: tuple[float, ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Take timed calls in seconds."""
        return cls(samples_ms=tuple(value * 1000 for value in seconds))

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

    def percentile(self, share: float) -> float:
        """Return a percentile in milliseconds, interpolated between calls; `share` is in 0-100."""
        return float(np.percentile(self.samples_ms, share))

    def to_dict(self) -> dict[str, float]:
        """Return ``p50, p90, p99, mean, min`` in milliseconds."""
        mean = sum(self.samples_ms) / self.runs
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99, "mean": mean, "min": min(self.samples_ms)}

    def throughput_fps(self, batch: int) -> float:
        """Return images per second over the timed calls: their images by their total time."""
        return batch * self.runs * 1000 / sum(self.samples_ms)


def time_in_turn(
    calls: Mapping[str, Call], *, warmup: int, runs: int, between: Call | None = None
) -> dict[str, Latency]:
    """Time several callables in alternation.

    Args:
        calls: By name; each waits for its own end.
        warmup: Untimed calls of each.
        runs: Timed calls of each, at least 1.
        between: Called after every round, untimed, e.g. to read clocks.
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
        if between is not None:
            between()
    return {name: Latency.of(values) for name, values in seconds.items()}


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
