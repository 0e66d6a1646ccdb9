"""The rules that mark a run as doubtful."""

from __future__ import annotations

from typing import Any

import pytest

from nrd_trt.benchmarking.notes import (
    arithmetic_notes,
    comparison_notes,
    device_marks,
    load_marks,
    spread_marks,
    stream_notes,
)
from nrd_trt.benchmarking.timing import Latency
from nrd_trt.machine.clocks import DeviceLog, Reading


def _log(*clocks: float | None, largest: float | None = 2000, **after: Any) -> DeviceLog:
    return DeviceLog(
        before=Reading(clock_mhz=210, clock_max_mhz=largest, throttle=("power cap",)),
        during=[Reading(clock_mhz=clock) for clock in clocks],
        after=Reading(**after),
    )


@pytest.mark.parametrize(
    ("log", "marks"),
    [
        (None, []),
        (_log(1900, 1950), []),  # what throttled before the run has passed
        (_log(1000, 1000), []),  # exactly half
        (_log(999, 990), ["low clocks: the GPU ran at 994 of 2000 MHz"]),
        (_log(300, 1900, 1900), []),  # the median: one glance came too early
        (_log(None), []),
        (_log(300, largest=None), []),
        (_log(), []),
        (_log(1900, throttle=("power brake",)), ["throttled: power brake"]),
        (_log(300, throttle=("b", "a")), ["throttled: a, b", "low clocks"]),
    ],
)
def test_device_marks(log: DeviceLog | None, marks: list[str]) -> None:
    got = list(device_marks(log))
    assert len(got) == len(marks)
    assert all(text.startswith(start) for text, start in zip(got, marks, strict=True))


@pytest.mark.parametrize(
    ("load", "cores", "marked"), [(2.1, 2, True), (2.0, 2, False), (0.0, 1, False), (None, 2, False)]
)
def test_load_marks(load: float | None, cores: int, marked: bool) -> None:
    got = list(load_marks(load, cores))
    assert bool(got) == marked
    assert all("other work was running: load average 2.1 on 2 cores" in text for text in got)


def test_other_marks_and_notes() -> None:
    assert list(spread_marks(Latency(samples_ms=(10,) * 8 + (14.9,) * 2))) == []
    (text,) = spread_marks(Latency(samples_ms=(10,) * 8 + (30,) * 2))
    assert "p90 is 3.0 times p50" in text
    assert list(arithmetic_notes("native")) == []
    assert "says nothing about the device" in next(arithmetic_notes("simulated"))
    assert list(comparison_notes(["64x96", "64x96"])) == []
    assert "64x96, 32x32" in next(comparison_notes(["64x96", "32x32", "64x96"]))
    assert list(stream_notes(1, threads=None, cores=2)) == []
    (text,) = stream_notes(4, threads=None, cores=2)
    assert "each with as many threads as there are cores, shared 2 CPU cores" in text
