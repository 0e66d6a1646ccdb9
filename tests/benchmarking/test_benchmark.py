"""What `benchmark` reports and refuses, with runners that only pretend: nothing here depends on real time."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrd_trt
from nrd_trt.benchmarking import benchmark as room
from nrd_trt.benchmarking import timing
from nrd_trt.benchmarking.benchmark import Benchmark
from nrd_trt.cli.benchmark import table
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import PLAN_FILE, Bundle
from nrd_trt.errors import ConfigError, RunnerError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.files import sha256_file
from nrd_trt.machine.clocks import ProbedDevice, Reading
from nrd_trt.machine.energy import Energy
from nrd_trt.machine.host import HostFacts
from nrd_trt.runtime.base import BaseRunner, DeviceTensor, Runner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.select import RunOptions
from nrd_trt.specs import InputShape, TensorSpec
from tests import artefacts
from tests.artefacts import bundle, checkpoint, copy_of, onnx_file, read_facts_of, rewrite_facts
from tests.runtime.fake_cuda import FakeDriver

KEYS = {
    *("target", "runner", "arithmetic", "precision", "size", "batch", "warmup", "runs", "threads", "copies"),
    *("cuda_graph", "latency_ms", "throughput_fps", "ratio", "peak_memory_mib", "device_memory_mib", "host", "device"),
    *("doubtful", "notes"),
}


class HostRunner(BaseRunner):
    """Draws nothing."""

    looks = 0

    name = "pretender"
    fails: Exception | None = None

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        spec = TensorSpec(name="image", dtype=np.dtype(np.uint8), shape=(None, None, None, 3))
        return {"image": spec}, {}

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.fails is not None:
            raise self.fails
        for _ in range(self.looks):  # each takes 4 ms of the pretended time
            time.perf_counter()
        return {}

    def _close(self) -> None:
        pass


class DeviceRunner(HostRunner):
    """A plan's runner."""

    name, looks = "tensorrt", 1
    cuda_graph = True

    def infer_device(self, feed: Mapping[str, DeviceTensor], stream: int) -> dict[str, DeviceTensor]:
        if self.fails is not None:
            raise self.fails
        return {}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver(monkeypatch)
    monkeypatch.setattr(timing, "open_cuda", driver.opened)
    return driver


class FakeMeter:
    """Of a device that takes 30 J in 2 s, whatever it does."""

    energy: Energy | None = None

    def __enter__(self) -> FakeMeter:
        return self

    def __exit__(self, *error: object) -> None:
        self.energy = Energy(joules=30.0, seconds=2.0, source="a counter")


class FakeProbe:
    """An instrument that finds 321 MiB more in use after its first look."""

    def __init__(self, *, clock_mhz: float = 1900.0, throttle: tuple[str, ...] = ()) -> None:
        self.notes: list[str] = []
        self.closed = False
        self._used_mib = 100.0
        self._reading = Reading(clock_mhz=clock_mhz, clock_max_mhz=2000.0, power_w=70.0, throttle=throttle)

    def device(self) -> ProbedDevice:
        return ProbedDevice(source="nvml", name="NVIDIA L4")

    def read(self) -> Reading:
        used_mib, self._used_mib = self._used_mib, 421.0
        return replace(self._reading, memory_used_mib=used_mib)

    glance = read

    def meter(self) -> FakeMeter:
        return FakeMeter()

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
    monkeypatch.setattr(room, "host_facts", lambda _: HostFacts(cpu="AMD EPYC", machine="x86_64", cores=2))


Run = Callable[..., Benchmark]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `benchmark` on bundles whose runners are these."""

    def benchmark(*runners: Runner, probe: Any = None, source: Path | None = None, **options: Any) -> Benchmark:
        waiting = list(runners)

        def open_engine(opened: Bundle, run: RunOptions, **_: Any) -> Engine:
            runner = waiting.pop(0)
            if isinstance(runner, DeviceRunner):
                runner.cuda_graph = run.cuda_graph
            return Engine(runner, opened.graph, bundle=opened)

        monkeypatch.setattr(room, "open_engine", open_engine)
        monkeypatch.setattr(timing, "open_probe", lambda: (probe, None if probe else "no NVML"))
        sources = [source or bundle()] * len(runners)
        return nrd_trt.benchmark(*sources, **{"warmup": 1, "runs": 3, "progress": False, **options})

    return benchmark


@pytest.mark.slow
def test_keys_and_figures_of_a_host_run(run: Run) -> None:
    row = run(HostRunner(), threads=2).to_dict()
    assert row.keys() == KEYS
    assert row["latency_ms"] == pytest.approx({"p50": 4.0, "p90": 4.0, "p99": 4.0, "mean": 4.0, "min": 4.0})
    assert row["throughput_fps"] == pytest.approx(250.0) and isinstance(row["throughput_fps"], float)
    assert (row["runner"], row["arithmetic"], row["precision"]) == ("pretender", "native", "fp32")
    assert (row["size"], row["batch"], row["warmup"], row["runs"], row["threads"]) == ("64x96", 1, 1, 3, 2)
    assert (row["copies"], row["cuda_graph"], row["device"], row["device_memory_mib"]) == ("host arrays", *[None] * 3)
    assert row["host"] == {"cpu": "AMD EPYC", "machine": "x86_64", "cores": 2, "load_before": 0.5, "load_after": 0.5}
    assert (row["doubtful"], row["notes"], row["ratio"]) == (False, [], 1.0)
    assert row["peak_memory_mib"] > 10


def test_device_run_is_stamped_and_an_absent_instrument_named(run: Run) -> None:
    probe = FakeProbe()
    row = run(DeviceRunner(), probe=probe, warmup=2).to_dict()
    assert row.keys() == KEYS
    assert row["device"] == {
        **asdict(ProbedDevice(source="nvml", name="NVIDIA L4")),
        "clock_mhz": {"before": 1900, "during": 1900, "after": 1900, "max": 2000},
        "power_w": {"before": 70, "during": 70, "after": 70},
        "temperature_c": {"before": None, "during": None, "after": None},
        "throttle": [],
    }
    assert (row["copies"], row["cuda_graph"], row["device_memory_mib"]) == ("included", True, 321)
    assert (row["doubtful"], row["notes"]) == (False, [])
    assert probe.closed
    (row,) = run(DeviceRunner(), probe=None, warmup=2).rows
    assert (row.device, row.doubtful, row.notes) == (None, False, ("no NVML",))


def test_copies_left_out_are_those_of_the_device(run: Run, cuda: FakeDriver) -> None:
    seen: list[tuple[Any, ...]] = []

    class Reader(DeviceRunner):
        def infer_device(self, feed: Mapping[str, DeviceTensor], stream: int) -> dict[str, DeviceTensor]:
            tensor = feed["image"]
            seen.append((tensor.shape, tensor.dtype, ctypes.string_at(tensor.address, 64 * 96 * 3)))
            return {}

    (row,) = run(Reader(), probe=FakeProbe(), copies=False).rows
    assert row.copies == "excluded"
    assert seen == [((1, 64, 96, 3), np.uint8, street_scene(0, (64, 96)).image.tobytes())] * (1 + 3)
    assert [call[3] for call in cuda.calls if call[0] == "upload"] == [64 * 96 * 3]  # once, not with every call
    assert cuda.names().count("synchronize") == 1 + 1 + 3  # the upload, the warm-up and each timed call
    assert (cuda.alive, cuda.violation) == ({}, "")
    (row,) = run(HostRunner(), copies=False).rows
    assert row.copies == "host arrays"


class Refusing(DeviceRunner):
    """Captures no graph."""

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        self.cuda_graph = False
        return super()._open()


@pytest.mark.parametrize(
    ("runner", "options", "stated", "note"),
    [
        (DeviceRunner, {}, True, None),
        (DeviceRunner, {"cuda_graph": True}, True, None),
        (DeviceRunner, {"cuda_graph": True, "copies": False}, True, None),
        (DeviceRunner, {"cuda_graph": False}, False, None),
        (DeviceRunner, {"warmup": 1}, True, "the CUDA graph is captured on the second call; warm up with 2 calls"),
        (Refusing, {"cuda_graph": True}, False, "no CUDA graph was used: tensorrt captured none"),
        (HostRunner, {"cuda_graph": True}, None, "no CUDA graph was used: pretender runs on the CPU"),
    ],
)
def test_cuda_graph_is_asked_for_and_stated(
    runner: type[HostRunner], options: dict[str, Any], stated: bool | None, note: str | None, run: Run, cuda: FakeDriver
) -> None:
    (row,) = run(runner(), probe=FakeProbe(), **{"warmup": 2, **options}).rows
    assert row.cuda_graph == stated
    assert [text[: len(note or "")] for text in row.notes] == ([note] if note else [])


@pytest.mark.parametrize(
    ("probe", "words"),
    [(FakeProbe(throttle=("power cap",)), "throttled: power cap"), (FakeProbe(clock_mhz=300), "low clocks")],
)
def test_disturbed_device_is_marked_in_notes_and_table(probe: FakeProbe, words: str, run: Run) -> None:
    rows = run(DeviceRunner(), HostRunner(), probe=probe).rows
    assert [row.doubtful for row in rows] == [True, False]
    assert rows[0].notes[0].startswith(words)
    assert (rows[1].device, rows[1].log, rows[1].notes) == (None, None, ())
    lines = table(rows)
    assert [line[0] for line in lines[1:4]] == ["!", " ", " "]
    assert words in lines[2]
    assert "NVIDIA L4" in "\n".join(lines) and "2000.0 MHz, 70.0 W, – °C" in "\n".join(lines)


def test_comparison(run: Run, tmp_path: Path) -> None:
    found = run(HostRunner(), DeviceRunner(), probe=FakeProbe(), warmup=2, plot=tmp_path / "p.png")
    rows = found.to_dict()["results"]
    assert [row["ratio"] for row in rows] == pytest.approx([1.0, 0.5])
    assert [row["peak_memory_mib"] for row in rows] == [None, None]
    header, first, second, conditions, device = table(found.rows)
    assert header.split() == "target runner types size p50 ms p90 ms p99 ms fps ratio".split()
    assert first.split()[1:] == "pretender fp32 64x96 4.000 4.000 4.000 250.000 1.00".split()
    assert second.split()[1:] == "tensorrt fp32 64x96 8.000 8.000 8.000 125.000 0.50".split()
    assert "3 calls each" in conditions and "load 0.5 before" in conditions
    assert "copies included, with a CUDA graph" in device
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_busy_host_and_simulated_arithmetic_are_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "load_average", lambda: 3.5)
    runner = HostRunner()
    runner.arithmetic = "simulated"
    (row,) = run(runner).rows
    assert row.doubtful
    busy, simulated = row.notes
    assert "other work was running" in busy and "says nothing about the device" in simulated


@pytest.mark.parametrize(("runner", "said"), [(HostRunner, True), (DeviceRunner, False)])
def test_a_plan_that_did_not_run_is_said(runner: type[HostRunner], said: bool, run: Run, tmp_path: Path) -> None:
    path = copy_of(bundle(), tmp_path / "a.nrd")
    (path / PLAN_FILE).write_bytes(b"a plan")
    rewrite_facts(path, files={**read_facts_of(path)["files"], PLAN_FILE: sha256_file(path / PLAN_FILE)})
    (row,) = run(runner(), probe=FakeProbe(), warmup=2, source=path).rows
    assert row.notes == (("the plan was built but not run here: these are pretender's figures",) if said else ())


@pytest.mark.parametrize(
    ("error", "copies"),
    [(RunnerError("CUDA error 2"), None), (RuntimeError("out of memory"), False), (MemoryError("no"), None)],
)
def test_failed_run_names_the_target(
    error: Exception, copies: bool | None, run: Run, cuda: FakeDriver, tmp_path: Path
) -> None:
    runner, probe = DeviceRunner(), FakeProbe()
    runner.fails = error
    with pytest.raises(RunnerError, match=rf"{bundle().name}: a run failed while it was timed .*{error}"):
        run(runner, probe=probe, copies=copies, plot=tmp_path / "p.png")
    assert probe.closed and cuda.alive == {}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunnerError, match="not entered"):
        runner.infer({})
    runner.fails = KeyError("an error in our own code")
    with pytest.raises(KeyError):
        run(runner, copies=copies)


@pytest.mark.parametrize(
    ("runner", "options", "match"),
    [
        (HostRunner, {"size": (96, 96)}, "^size=96x96: .* was built for 64x96 to 64x96"),
        (HostRunner, {"batch": 2}, "^batch=2: .* was built for 1 to 1"),
        (HostRunner, {"runs": 0}, "^runs=0: expected at least 1"),
        (HostRunner, {"warmup": -1}, "^warmup=-1: expected at least 0"),
        (HostRunner, {"plot": "a.jpg"}, "^plot=a.jpg: .*png"),
        (None, {}, "got none"),
    ],
)
def test_refused(runner: type[HostRunner] | None, options: dict[str, Any], match: str, run: Run) -> None:
    with pytest.raises(ConfigError, match=match):
        run(*([runner()] if runner else []), probe=FakeProbe(), **options)


def test_a_checkpoint_takes_the_bundles_size_and_an_onnx_file_its_own() -> None:
    once: dict[str, Any] = {"warmup": 0, "runs": 1, "threads": 1, "progress": False}
    rows = nrd_trt.benchmark(checkpoint(), bundle(), str(onnx_file()), **once).rows
    assert [(row.runner, row.size) for row in rows] == [(name, (64, 96)) for name in ("torch", *["onnxruntime"] * 2)]
    (row,) = nrd_trt.benchmark(checkpoint(), size=(32, 64), batch=2, **once).rows
    assert (row.size, row.batch) == ((32, 64), 2)
    pairs = ExportOptions(shape=InputShape.static((64, 96), batch=2))
    path = artefacts.write_model(export_onnx(artefacts.trained_model(), pairs), "pairs.onnx")
    (row,) = nrd_trt.benchmark(path, batch=2, **once).rows
    assert (row.size, row.batch) == ((64, 96), 2)
