"""What instruments read off a device, and the summary of a run. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One look at a device; None is not readable.

    Attributes:
        clock_mhz: GPU clock.
        clock_max_mhz: The largest that the GPU, or its power mode, allows.
        power_w: Of the GPU, on a Jetson of the board.
        temperature_c: Of the GPU.
        memory_used_mib: On the device, by all processes.
        throttle: Reasons for which clocks were lowered, other than idleness and a user's setting.
    """

    clock_mhz: float | None = None
    clock_max_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    memory_used_mib: float | None = None
    throttle: tuple[str, ...] = ()


class Probe(Protocol):
    """An instrument: NVML or tegrastats.

    Attributes:
        source: Its name.
        notes: What a reader of its figures must know.
    """

    source: str
    notes: list[str]

    def facts(self) -> dict[str, Any]:
        """Return what does not change during a run, e.g. the device's name."""
        ...

    def read(self) -> Reading:
        """Look once, at leisure: before and after a run."""
        ...

    def glance(self) -> Reading:
        """Look once, within about a millisecond: during a run."""
        ...

    def close(self) -> None:
        """Release the instrument."""
        ...


@dataclass(frozen=True, kw_only=True)
class DeviceLog:
    """The device before, during and after a run."""

    before: Reading
    during: Sequence[Reading]
    after: Reading

    @property
    def clock_max_mhz(self) -> float | None:
        """The largest clock that the device allows."""
        return _largest(reading.clock_max_mhz for reading in self._all)

    @property
    def clock_during_mhz(self) -> float | None:
        """Median GPU clock during the run."""
        return _median(reading.clock_mhz for reading in self.during)

    @property
    def throttle(self) -> list[str]:
        """Reasons seen during or right after the run; one from before it has passed."""
        return sorted({reason for reading in (*self.during, self.after) for reason in reading.throttle})

    @property
    def memory_grown_mib(self) -> float | None:
        """How much more memory the device held than before, at most; other processes count as well."""
        peak = _largest(reading.memory_used_mib for reading in (*self.during, self.after))
        if peak is None or self.before.memory_used_mib is None:
            return None
        return max(0.0, peak - self.before.memory_used_mib)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: clocks in MHz, watts, degrees Celsius."""
        return {
            "clock_mhz": {**self._course("clock_mhz"), "max": self.clock_max_mhz},
            "power_w": self._course("power_w"),
            "temperature_c": self._course("temperature_c"),
            "throttle": self.throttle,
        }

    @property
    def _all(self) -> tuple[Reading, ...]:
        return (self.before, *self.during, self.after)

    def _course(self, name: str) -> dict[str, float | None]:
        during = _median(getattr(reading, name) for reading in self.during)
        return {"before": getattr(self.before, name), "during": during, "after": getattr(self.after, name)}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
