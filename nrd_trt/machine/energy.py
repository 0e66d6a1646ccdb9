"""Energy of a device during a run: by a counter read before and after it, or by power that a thread samples.

All of it counts, whoever caused it; what the device would have taken at rest is not subtracted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

_SAMPLE_EVERY_S = 0.06
"""Reading a board's rails takes some milliseconds more: about 15 samples a second."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What a device took during a run.

    Attributes:
        joules: Above 0.
        seconds: How long the run took.
        source: What told it, e.g. ``"NVML"``.
    """

    joules: float
    seconds: float
    source: str

    @property
    def watts(self) -> float:
        """Average power during the run."""
        return self.joules / self.seconds


class EnergyMeter(Protocol):
    """Measures from entering to leaving.

    Attributes:
        energy: What the last block took; None before it ended, and where the device did not tell.
    """

    energy: Energy | None

    def __enter__(self) -> object:
        """Begin."""
        ...

    def __exit__(self, *error: object) -> None:
        """End."""
        ...


class CounterMeter:
    """Reads a counter before and after.

    Args:
        read_joules: The counter; None is not readable.
        source: See `Energy`.
    """

    def __init__(self, read_joules: Callable[[], float | None], source: str) -> None:
        self._read, self._source = read_joules, source
        self.energy: Energy | None = None

    def __enter__(self) -> CounterMeter:
        self.energy = None
        self._joules, self._start = self._read(), time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        joules, seconds = self._read(), time.monotonic() - self._start
        if joules is not None and self._joules is not None and joules > self._joules:
            self.energy = Energy(joules=joules - self._joules, seconds=seconds, source=self._source)


class SamplingMeter:
    """Reads power again and again, on a thread of its own, and sums it up.

    Args:
        read_watts: Power now; None is not readable.
        source: See `Energy`.
    """

    def __init__(self, read_watts: Callable[[], float | None], source: str) -> None:
        self._read, self._source = read_watts, source
        self.energy: Energy | None = None

    def __enter__(self) -> SamplingMeter:
        self.energy, self._samples, self._ended = None, list[tuple[float, float]](), threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._go_on, name="energy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()
        joules, seconds = summed(self._samples)
        if joules > 0:
            self.energy = Energy(joules=joules, seconds=seconds, source=self._source)

    def _go_on(self) -> None:
        while not self._ended.wait(_SAMPLE_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        watts = self._read()
        if watts is not None:
            self._samples.append((time.monotonic(), watts))


def summed(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return joules and seconds of ``(seconds, watts)`` in the order of time; power is taken to change evenly."""
    joules = sum((later - now) * (power + then) / 2 for (now, power), (later, then) in pairwise(samples))
    return joules, samples[-1][0] - samples[0][0] if samples else 0.0
