"""What `benchmark` reports and refuses, with runners that only pretend: nothing here depends on real time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nrd_trt
from nrd_trt.benchmarking import benchmark as room
from nrd_trt.benchmarking import record
from nrd_trt.cli.benchmark import table
from nrd_trt.engine.bundle import PLAN_FILE
from nrd_trt.errors import CheckpointError, ConfigError, RunnerError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.files import sha256_file
from nrd_trt.specs import InputShape
from tests import artefacts
from tests.artefacts import bundle, checkpoint, copy_of, onnx_file, read_facts_of, rewrite_facts
from tests.benchmarking.conftest import HostRunner, Run

KEYS = {
    *("target", "runner", "arithmetic", "plan_ran", "precision", "size", "batch", "warmup", "runs", "duration_s"),
    *("streams", "threads", "copies", "cuda_graph", "latency_ms", "gpu_compute_ms", "enqueue_ms", "timed_s"),
    *("throughput_fps", "ratio", "energy", "layers", "peak_memory_mib", "device_memory_mib", "host", "device"),
    *("doubtful", "notes", "executed", "stages", "onnx_sha256", "checkpoint_sha256"),
}
"""The documented ones: other programs read them."""


@pytest.mark.slow
def test_keys_and_figures_of_a_host_run(run: Run) -> None:
    row = run(HostRunner(), threads=2).to_dict()
    assert row.keys() == KEYS
    assert row["latency_ms"] == pytest.approx({"p50": 4.0, "p90": 4.0, "p99": 4.0, "mean": 4.0, "min": 4.0})
    assert row["throughput_fps"] == pytest.approx(250.0) and isinstance(row["throughput_fps"], float)
    assert (row["runner"], row["arithmetic"], row["precision"]) == ("pretender", "native", "fp32")
    assert row["plan_ran"] is None
    assert (row["size"], row["batch"], row["warmup"], row["runs"], row["threads"]) == ("64x96", 1, 1, 3, 2)
    assert (row["streams"], row["duration_s"], row["timed_s"]) == (1, None, pytest.approx(0.012))
    assert row["copies"] == "host arrays"
    absent = (
        "cuda_graph",
        "device",
        "device_memory_mib",
        "gpu_compute_ms",
        "enqueue_ms",
        "energy",
        "layers",
        "stages",
        "executed",
    )
    assert [row[name] for name in absent] == [None] * len(absent)
    host = {"cpu": "AMD EPYC", "machine": "x86_64", "cores": 2, "instructions": ("avx2",)}
    assert row["host"] == {**host, "load_before": 0.5, "load_after": 0.5}
    assert (row["doubtful"], row["notes"], row["ratio"]) == (False, [], 1.0)
    assert row["peak_memory_mib"] > 10


def test_every_key_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for text in (str(record.__doc__), page[page.index("The JSON object is") : page.index("## ONNX Runtime")]):
        assert set(text.replace("`", " ").split()) >= KEYS


@pytest.mark.parametrize(
    ("options", "calls"), [({"duration": 0.1}, 25), ({"duration": 0.1, "runs": 40}, 40), ({"duration": 0}, 3)]
)
def test_a_run_goes_on_for_its_duration_and_its_calls(run: Run, options: dict[str, Any], calls: int) -> None:
    """Each call takes 4 ms."""
    row = run(HostRunner(), **options).to_dict()
    assert (row["runs"], row["duration_s"]) == (calls, options["duration"])
    assert row["timed_s"] == pytest.approx(calls * 0.004)


def test_several_sources_go_on_until_each_has_its_duration(run: Run) -> None:
    rows = run(HostRunner(), HostRunner(), duration=0.1).rows
    assert [row.runs for row in rows] == [25, 25]


def test_busy_host_and_simulated_arithmetic_are_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "load_average", lambda: 3.5)
    runner = HostRunner()
    runner.arithmetic = "simulated"
    (row,) = run(runner).rows
    assert row.doubtful
    busy, simulated = row.notes
    assert "other work was running" in busy and "says nothing about the device" in simulated


def test_a_plan_that_did_not_run_is_said(run: Run, tmp_path: Path) -> None:
    path = copy_of(bundle(), tmp_path / "a.nrd")
    (path / PLAN_FILE).write_bytes(b"a plan")
    rewrite_facts(path, files={**read_facts_of(path)["files"], PLAN_FILE: sha256_file(path / PLAN_FILE)})
    (row,) = run(HostRunner(), source=path).rows
    assert row.notes == ("the plan was built but not run here: these are pretender's figures",)


def test_a_graph_is_asked_for_where_there_is_none(run: Run) -> None:
    (row,) = run(HostRunner(), cuda_graph=True, copies=False).rows
    assert (row.cuda_graph, row.copies) == (None, "host arrays")
    assert row.notes == ("no CUDA graph was used: pretender runs on the CPU",)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("error", [RunnerError("no room"), RuntimeError("out of memory"), MemoryError("no")])
def test_failed_run_names_the_target(error: Exception, streams: int, run: Run, tmp_path: Path) -> None:
    runners = [HostRunner() for _ in range(streams)]
    runners[-1].fails = error
    with pytest.raises(RunnerError, match=rf"{bundle().name}: a run failed while it was timed .*{error}"):
        run(*runners, streams=streams, warmup=0, plot=tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []
    for runner in runners:
        with pytest.raises(RunnerError, match="not entered"):
            runner.infer({})
    runners[-1].fails = KeyError("an error in our own code")
    with pytest.raises(KeyError):
        run(*runners, streams=streams, warmup=0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": (96, 96)}, "^size=96x96: .* was built for 64x96 to 64x96"),
        ({"batch": 2}, "^batch=2: .* was built for 1 to 1"),
        ({"runs": 0}, "^runs=0: expected a whole number, 1 or more"),
        ({"warmup": -1}, "^warmup=-1: expected a whole number, 0 or more"),
        ({"duration": -0.5}, "^duration=-0.5: expected a number, 0 or more"),
        ({"plot": "a.jpg"}, "^plot=a.jpg: .*png"),
        ({"profile": True}, "^profile=True: expected a bundle or an ONNX file, got .*, which runs by pretender"),
    ],
)
def test_refused(options: dict[str, Any], match: str, run: Run) -> None:
    with pytest.raises(ConfigError, match=match):
        run(HostRunner(), **options)


def test_number_of_sources_is_checked() -> None:
    for sources, streams, match in (((), 1, "got none"), (("a", "b"), 2, "^streams=2: expected one source, got 2")):
        with pytest.raises(ConfigError, match=match):
            nrd_trt.benchmark(*sources, streams=streams)
    with pytest.raises(ConfigError, match=r"^streams=0: expected a whole number, 1 or more"):
        nrd_trt.benchmark("a", streams=0)


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


def test_layers_stages_and_executed_types_of_runners_on_a_cpu() -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'nrd-trt[openvino]'")
    sources = [onnx_file(), f"{onnx_file()}@openvino"]
    once: dict[str, Any] = {"warmup": 0, "runs": 2, "threads": 1, "progress": False}
    rows = nrd_trt.benchmark(*sources, profile=True, **once).rows
    assert [row.runner for row in rows] == ["onnxruntime", "openvino"]
    for row in rows:
        layers, stages = row.layers or (), row.stages or {}
        assert sum(layer.share for layer in layers) == pytest.approx(sum(stages.values())) == pytest.approx(1.0)
        assert min(stages.values()) > 0 and list(stages) == ["network", "decode", "resize", "argmax"]
        assert {layer.type for layer in layers} & {"fp32", "bf16"}
    assert rows[0].executed is None and sum((rows[1].executed or {}).values()) == 64 + 4, (
        "convolutions and the decode's"
    )
    printed = "\n".join(table(rows))
    kind = "bf16" if rows[1].arithmetic == "bf16" else "fp32"
    assert f"products executed in {kind} 68" in printed
    assert "by onnxruntime)" in printed and "network " in printed
    assert "AMD EPYC with avx2, 2 cores" in printed


def test_a_runner_that_is_no_ending_of_a_name(tmp_path: Path) -> None:
    odd = tmp_path / "a@openvino"
    odd.write_bytes(b"")
    with pytest.raises(CheckpointError, match="a@openvino"):
        nrd_trt.benchmark(odd)
    with pytest.raises(CheckpointError, match="a@nothing"):
        nrd_trt.benchmark(tmp_path / "a@nothing")


def test_streams_on_a_cpu_run_by_sessions_of_their_own() -> None:
    """For real: two sessions of ONNX Runtime on two threads."""
    (row,) = nrd_trt.benchmark(onnx_file(), streams=2, warmup=1, runs=2, threads=1, progress=False).rows
    assert (row.runner, row.streams) == ("onnxruntime", 2) and row.runs >= 2 * 2
    assert row.throughput_fps == row.runs / row.timing.seconds
    assert row.notes[-1] == "2 streams, each with threads=1, shared 2 CPU cores"
    assert f"latency from image to mask, batch 1, {row.runs} calls in 2 streams at once" in "\n".join(table([row]))
