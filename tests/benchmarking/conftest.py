"""Runners on the host that only pretend, an instrument that does, and time that moves when it is looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrd_trt
from nrd_trt.benchmarking import benchmark as room
from nrd_trt.benchmarking import calls
from nrd_trt.benchmarking.record import Benchmark
from nrd_trt.engine.bundle import Bundle
from nrd_trt.machine.clocks import ProbedDevice, Reading
from nrd_trt.machine.energy import Energy
from nrd_trt.machine.host import HostFacts
from nrd_trt.runtime.base import BaseRunner, Runner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.select import RunOptions
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import TensorSpec
from tests.artefacts import bundle

Run = Callable[..., Benchmark]


class HostRunner(BaseRunner):
    """Draws nothing."""

    name = "pretender"
    fails: Exception | None = None

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        spec = TensorSpec(name="image", dtype=np.dtype(np.uint8), shape=(None, None, None, 3))
        return {"image": spec}, {}

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.fails is not None:
            raise self.fails
        return {}

    def _close(self) -> None:
        pass


class FakeMeter:
    """Of a device that takes 30 J in `seconds`, whatever it does; it does not tell where that is 0."""

    def __init__(self, seconds: float) -> None:
        self.energy: Energy | None = None
        self._seconds = seconds

    def __enter__(self) -> FakeMeter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._seconds:
            self.energy = Energy(joules=30.0, seconds=self._seconds, source="a counter")


class FakeProbe:
    """An instrument that finds 321 MiB more in use after its first look."""

    def __init__(
        self, *, clock_mhz: float = 1900.0, throttle: tuple[str, ...] = (), energy_seconds: float = 4.0
    ) -> None:
        self.notes: list[str] = []
        self.closed = False
        self._used_mib, self._energy_seconds = 100.0, energy_seconds
        self._reading = Reading(clock_mhz=clock_mhz, clock_max_mhz=2000.0, power_w=70.0, throttle=throttle)

    def device(self) -> ProbedDevice:
        return ProbedDevice(source="nvml", name="NVIDIA L4")

    def read(self) -> Reading:
        used_mib, self._used_mib = self._used_mib, 421.0
        return replace(self._reading, memory_used_mib=used_mib)

    glance = read

    def meter(self) -> FakeMeter:
        return FakeMeter(self._energy_seconds)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that moves 4 ms with every look at it, on an idle host with two cores."""
    now = [0.0]

    def perf_counter() -> float:
        now[0] += 0.004
        return now[0]

    monkeypatch.setattr(time, "perf_counter", perf_counter)
    monkeypatch.setattr(room, "load_average", lambda: 0.5)
    facts = HostFacts(cpu="AMD EPYC", machine="x86_64", cores=2, instructions=("avx2",))
    monkeypatch.setattr(room, "host_facts", lambda _: facts)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `benchmark` on bundles whose runners are these, one for each stream."""

    def benchmark(
        *runners: Runner, probe: Any = None, source: Path | None = None, streams: int = 1, **options: Any
    ) -> Benchmark:
        waiting = list(runners)

        def open_engine(opened: Bundle, run: RunOptions, **_: Any) -> Engine:
            runner = waiting.pop(0)
            if isinstance(runner, TrtRunner):
                runner.cuda_graph = run.cuda_graph
            return Engine(runner, opened.graph, bundle=opened)

        monkeypatch.setattr(room, "open_engine", open_engine)
        monkeypatch.setattr(calls, "open_probe", lambda: (probe, None if probe else "no NVML"))
        sources = [source or bundle()] * (len(runners) // streams)
        given = {"warmup": 1, "runs": 3, "progress": False, "streams": streams, **options}
        return nrd_trt.benchmark(*sources, **given)

    return benchmark
