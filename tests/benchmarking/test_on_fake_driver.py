"""`benchmark` on plans: the real binding on the fake driver, where a copy or a run takes the GPU half a millisecond."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nrd_trt import optional
from nrd_trt.benchmarking import calls
from nrd_trt.cli.benchmark import table
from nrd_trt.data.synthetic import street_scene
from nrd_trt.errors import RunnerError
from nrd_trt.machine.clocks import ProbedDevice
from tests.artefacts import bundle
from tests.benchmarking.conftest import FakeProbe, HostRunner, Run
from tests.benchmarking.test_benchmark import KEYS
from tests.runtime.bench import Bench, runner
from tests.runtime.fake_cuda import LAYERS, NOT_SUPPORTED, FakeDriver, FakeEngine

IMAGE_BYTES = 64 * 96 * 3
COMPUTE_MS = 0.5


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(monkeypatch, getattr(request, "param", FakeEngine))
    monkeypatch.setattr(calls, "open_cuda", made.cuda.opened)
    yield made
    assert (made.cuda.alive, made.cuda.violation) == ({}, "")


def test_device_run_is_stamped_and_an_absent_instrument_named(run: Run, bench: Bench) -> None:
    probe = FakeProbe()
    row = run(runner(), probe=probe, warmup=2).to_dict()
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
    assert row["energy"] == {"joules": 30.0, "watts": 7.5, "frames_per_joule": 0.1, "source": "a counter"}
    assert probe.closed
    (row,) = run(runner(), probe=None, warmup=2).rows
    assert (row.device, row.energy, row.doubtful, row.notes) == (None, None, False, ("no NVML",))


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("options", [{}, {"copies": False}, {"cuda_graph": False}])
def test_gpu_compute_is_the_engine_alone(options: dict[str, Any], integrated: bool, run: Run, bench: Bench) -> None:
    """Neither copies nor what the host takes to queue the run are in it; the host looks at its clock in turn."""
    bench.cuda.set(integrated=integrated)
    row = run(runner(), probe=FakeProbe(), **{"warmup": 2, **options}).to_dict()
    for name, milliseconds in (("gpu_compute_ms", COMPUTE_MS), ("enqueue_ms", 4.0), ("latency_ms", 12.0)):
        expected = dict.fromkeys(("p50", "p90", "p99", "mean", "min"), milliseconds)
        assert row[name] == pytest.approx(expected), name


def test_a_call_is_that_of_the_image_and_back(run: Run, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back is a mask of the scene; the fake driver holds the order of copies and engine."""
    masks = []
    read = calls.Buffer.read
    monkeypatch.setattr(calls.Buffer, "read", lambda *given: masks.append(read(*given)) or masks[-1])
    run(runner(), probe=FakeProbe(), warmup=2)
    scene = street_scene(0, (64, 96)).image
    assert len(masks) == 2 * (2 + 3)  # mask and mean
    assert all((mask == scene[None, ..., 0]).all() for mask in masks[::2])


def test_copies_left_out_are_those_of_the_device(run: Run, bench: Bench) -> None:
    (row,) = run(runner(), probe=FakeProbe(), copies=False).rows
    assert row.copies == "excluded"
    assert [call[3] for call in bench.cuda.calls if call[0] == "upload"] == [IMAGE_BYTES]  # once, not with every call
    assert "download" not in bench.cuda.names()


@pytest.mark.parametrize(
    ("options", "stated", "note"),
    [
        ({}, True, None),
        ({"cuda_graph": True}, True, None),
        ({"cuda_graph": True, "copies": False}, True, None),
        ({"cuda_graph": False}, False, None),
        ({"warmup": 1}, True, "the CUDA graph is captured on the second call; warm up with 2 calls"),
    ],
)
def test_cuda_graph_is_asked_for_and_stated(
    options: dict[str, Any], stated: bool, note: str | None, run: Run, bench: Bench
) -> None:
    (row,) = run(runner(), probe=FakeProbe(), **{"warmup": 2, **options}).rows
    assert row.cuda_graph == stated == ("launch_graph" in bench.cuda.names())
    assert [text[: len(note or "")] for text in row.notes] == ([note] if note else [])


def test_a_refused_graph_is_said(run: Run, bench: Bench) -> None:
    bench.cuda.fail("cuStreamBeginCapture_v2", NOT_SUPPORTED)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        (row,) = run(runner(), probe=FakeProbe(), warmup=2, cuda_graph=True).rows
    assert (row.cuda_graph, row.notes) == (False, ("no CUDA graph was used: tensorrt captured none",))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"throttle": ("power cap",)}, "throttled: power cap"), ({"clock_mhz": 300}, "low clocks")],
)
def test_disturbed_device_is_marked_in_notes_and_table(
    settings: dict[str, Any], words: str, run: Run, bench: Bench
) -> None:
    rows = run(runner(), HostRunner(), probe=FakeProbe(**settings), warmup=2).rows
    assert [row.doubtful for row in rows] == [True, False]
    assert rows[0].notes[0].startswith(words)
    assert (rows[1].device, rows[1].log, rows[1].notes) == (None, None, ())
    lines = table(rows)
    assert lines[1].startswith("!") and words in lines[4]
    assert "NVIDIA L4" in "\n".join(lines) and "2000.0 MHz, 70.0 W, – °C" in "\n".join(lines)


def test_comparison(run: Run, bench: Bench, tmp_path: Path) -> None:
    found = run(HostRunner(), runner(), probe=FakeProbe(), warmup=2, plot=tmp_path / "p.png")
    rows = found.to_dict()["results"]
    assert [row["ratio"] for row in rows] == pytest.approx([1.0, 1 / 3])
    assert [row["peak_memory_mib"] for row in rows] == [None, None]
    assert [row["energy"] for row in rows] == [None, None]
    header, first, second, compute, enqueue, shared, conditions, device = table(found.rows)
    names = "target runner types size p50 ms p90 ms p99 ms mean ms min ms fps ratio"
    assert header.split() == names.split()
    assert first.split()[1:] == ["pretender", "fp32", "64x96", *["4.000"] * 5, "250.000", "1.00"]
    assert second.split()[1:] == ["tensorrt", "fp32", "64x96", *["12.000"] * 5, "83.333", "0.33"]
    assert compute.split() == ["GPU", "compute", *["0.500"] * 5] and enqueue.split() == ["enqueue", *["4.000"] * 5]
    assert {compute.index("0.500"), enqueue.index("4.000")} == {second.index("12.000") + 1}  # below each other
    assert "energy is not told of several sources" in shared
    assert "3 calls each" in conditions and "load 0.5 before" in conditions
    assert "copies included, with a CUDA graph" in device
    assert (tmp_path / "p.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("seconds", "note"),
    [(4.0, None), (0.5, "energy is a rough figure, taken over 0.5 s only"), (0.0, "energy was not read")],
)
def test_energy_is_shown_or_its_absence_said(seconds: float, note: str | None, run: Run, bench: Bench) -> None:
    (row,) = run(runner(), probe=FakeProbe(energy_seconds=seconds), warmup=2).rows
    assert [text[: len(note or "")] for text in row.notes] == ([note] if note else [])
    lines = [line for line in table([row]) if line.startswith("energy: ")]
    watts = {4.0: "7.5", 0.5: "60.0"}.get(seconds)
    shown = f"energy: 30.0 J in {seconds} s, {watts} W on average, 0.10 frames per joule (a counter; idle power is not"
    assert [line[: len(shown)] for line in lines] == ([shown] if watts else [])


def test_energy_is_that_of_the_timed_calls(run: Run, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meter runs from after the warm-up to before the profile."""
    seen: list[str] = []
    probe = FakeProbe()
    meter = probe.meter()
    monkeypatch.setattr(probe, "meter", lambda: meter)
    kind = type(meter)
    enter, leave = kind.__enter__, kind.__exit__
    count = lambda: str(bench.cuda.names().count("synchronize"))  # noqa: E731
    monkeypatch.setattr(kind, "__enter__", lambda self: (seen.append(count()), enter(self))[1])
    monkeypatch.setattr(kind, "__exit__", lambda self, *error: (seen.append(count()), leave(self, *error))[1])
    run(runner(cuda_graph=False), probe=probe, warmup=4, runs=5, profile=True, cuda_graph=False)
    assert int(seen[1]) - int(seen[0]) == 5


@pytest.mark.parametrize("copies", [True, False])
def test_streams_run_at_once_in_contexts_of_their_own(copies: bool, run: Run, bench: Bench) -> None:
    (row,) = run(runner(), runner(), runner(), streams=3, probe=FakeProbe(), warmup=2, runs=5, copies=copies).rows
    streams = {call[-1] for call in bench.cuda.calls if call[0] == "launch_graph"}  # recorded on others
    assert (row.streams, len(streams), len(bench.engines)) == (3, 3, 3)
    assert row.runs >= 3 * 5
    assert row.runs == len(row.timing.enqueue.samples_ms)
    assert len(row.timing.gpu_compute.samples_ms) >= 3 * 5
    assert row.throughput_fps == row.runs / row.timing.seconds
    assert {name.split("_")[0] for name in bench.cuda.threads} == {"MainThread", "stream"}
    text = "\n".join(table([row]))
    assert f"{row.runs} calls in 3 streams at once" in text and "NVIDIA L4: 1900.0 of 2000.0 MHz" in text
    assert row.to_dict()["energy"]["frames_per_joule"] == row.runs / 30


@pytest.mark.parametrize("streams", [1, 2])
def test_layers_are_told_in_full_and_the_timed_calls_are_as_without(streams: int, run: Run, bench: Bench) -> None:
    runners = [runner() for _ in range(streams)]
    (row,) = run(*runners, streams=streams, probe=FakeProbe(), warmup=2, runs=3, profile=True).rows
    assert row.cuda_graph is True
    assert row.to_dict()["layers"] == [
        {"name": name, "ms": milliseconds, "share": milliseconds, "type": None} for name, milliseconds in LAYERS.items()
    ]
    names = bench.cuda.names()
    last = len(names) - 1 - names[::-1].index("launch_graph")
    assert names[last:].count("enqueue") == 1 + 3  # afterwards, without a graph; the first does not count
    text = table([row])
    first = next(index for index, line in enumerate(text) if "2 of 2 layers, which take 1.000 ms in all" in line)
    assert "no CUDA graph" in text[first]
    assert text[first + 1].split() == ["75.0%", "0.750", "ms", "encoder"]


def test_text_shows_the_ten_longest_layers(run: Run, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"layer {'x' * 90} {index}": float(index) for index in range(1, 13)}
    monkeypatch.setattr("tests.runtime.fake_cuda.LAYERS", many)
    (row,) = run(runner(), probe=FakeProbe(), warmup=2, profile=True).rows
    assert [layer["name"] for layer in row.to_dict()["layers"]] == list(many)
    shown = [line for line in table([row]) if "ms  layer" in line]
    assert [float(line.split()[1]) for line in shown] == list(range(12, 2, -1))
    assert max(map(len, shown)) < 110 and all(line.endswith("…") for line in shown)


def test_a_runtime_that_tells_no_layer_is_said(run: Run, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.runtime.fake_cuda.LAYERS", {})
    (row,) = run(runner(), probe=FakeProbe(), warmup=2, profile=True).rows
    assert (row.layers, row.notes) == ((), ("no layer was told: tensorrt does not profile this plan",))
    assert "layers" not in "\n".join(table([row]))


class Failing(FakeEngine):
    """Its second run fails."""

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__(driver)
        self.fail_at = 2


@pytest.mark.parametrize("bench", [Failing], indirect=True)
@pytest.mark.parametrize("copies", [None, False])
def test_failed_run_on_a_device_leaves_nothing_behind(copies: bool | None, run: Run, bench: Bench) -> None:
    probe = FakeProbe()
    with pytest.raises(RunnerError, match=rf"{bundle().name}: a run failed while it was timed .*could not start"):
        run(runner(cuda_graph=False), probe=probe, copies=copies, cuda_graph=False)
    assert probe.closed


def test_parts_of_a_call_are_ranges_where_nvtx_is_installed(
    run: Run, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[tuple[str, str]] = []

    @contextmanager
    def annotate(message: str, *, domain: str) -> Iterator[None]:
        ranges.append((domain, message))
        yield

    optional._annotation.cache_clear()
    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    run(runner(), probe=FakeProbe(), warmup=0, runs=1)
    run(HostRunner(), warmup=0, runs=1)
    assert ranges == [("nrd_trt", name) for name in ("upload", "enqueue", "download", "wait", "alone", "infer")]
    optional._annotation.cache_clear()
    monkeypatch.setitem(sys.modules, "nvtx", None)
    assert optional.nvtx_range("a") is optional.nvtx_range("b")  # nothing is made where there is nothing to show it
    optional._annotation.cache_clear()
