"""Frame rates, latencies and where the time goes, while a run goes on. Standard library only."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

STAGES = ("read", "preprocess", "infer", "smooth", "draw", "write")
_WINDOW = 120  # frames
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class RunStats:
    """Figures of a run up to now.

    Attributes:
        frames: Frames written so far.
        dropped: Frames of a live source that were too late.
        reconnects: How often a live source was opened again.
        fps: Frames per second that were written, None before the second one.
        latency_ms: ``p50``, ``p90``, ``p99`` from the arrival of a frame to the end of writing; None before the first.
        split_ms: Mean time of a frame in each of `STAGES`. They run at the same time, so the longest one, not the sum,
            bounds the frame rate. ``read`` of a live source includes waiting for the frame.
    """

    frames: int
    dropped: int
    reconnects: int
    fps: float | None
    latency_ms: dict[str, float] | None
    split_ms: dict[str, float]


class StatsCollector:
    """Collects the figures of one run; all methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent = {stage: deque[float](maxlen=_WINDOW) for stage in STAGES}
        self._spent = dict.fromkeys(STAGES, (0.0, 0))  # seconds of how many frames
        self._latencies = deque[float](maxlen=_WINDOW)
        self._written = deque[float](maxlen=_WINDOW)
        self._first_written = 0.0
        self._frames = self._dropped = self._reconnects = 0

    def stage(self, name: str, seconds: float) -> None:
        """Note what a frame took in a stage."""
        with self._lock:
            self._recent[name].append(seconds)
            total_s, count = self._spent[name]
            self._spent[name] = total_s + seconds, count + 1

    def written(self, arrived_s: float) -> None:
        """Note that a frame, which arrived at a time of `time.monotonic`, has left the pipeline."""
        now = time.monotonic()
        with self._lock:
            self._frames += 1
            self._first_written = self._first_written or now
            self._written.append(now)
            self._latencies.append(now - arrived_s)

    def drop(self, count: int = 1) -> None:
        """Note frames that were too late."""
        with self._lock:
            self._dropped += count

    def reconnects(self, count: int) -> None:
        """Note how often the source was opened again so far."""
        with self._lock:
            self._reconnects = count

    def snapshot(self) -> RunStats:
        """Return the figures of the last frames."""
        with self._lock:
            # A source that stands still must not show its last rate for ever.
            span = max(self._written[-1], time.monotonic() - 1) - self._written[0] if self._written else 0.0
            spent = {stage: (sum(times), len(times)) for stage, times in self._recent.items()}
            return self._stats(len(self._written), span, spent)

    def total(self) -> RunStats:
        """Return the figures of the whole run; latencies are those of the last frames."""
        with self._lock:
            span = self._written[-1] - self._first_written if self._written else 0.0
            return self._stats(self._frames, span, self._spent)

    def _stats(self, frames: int, span_s: float, spent: Mapping[str, tuple[float, int]]) -> RunStats:
        ordered = sorted(self._latencies)
        percentiles = {f"p{p}": ordered[math.ceil(p / 100 * len(ordered)) - 1] * 1000 for p in _PERCENTILES if ordered}
        return RunStats(
            frames=self._frames,
            dropped=self._dropped,
            reconnects=self._reconnects,
            fps=(frames - 1) / span_s if frames > 1 and span_s > 0 else None,  # n moments are n-1 intervals
            latency_ms=percentiles or None,
            split_ms={stage: 1000 * total_s / max(count, 1) for stage, (total_s, count) in spent.items()},
        )
