"""What the parts do: each proof holds where it should, and sees what it is there to see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest

from nrd_trt import gates
from nrd_trt.benchmarking.benchmark import benchmark
from nrd_trt.benchmarking.record import Benchmark, BenchmarkRow
from nrd_trt.benchmarking.timing import Latency
from nrd_trt.building.build import build
from nrd_trt.gates import Gates
from nrd_trt.graph.importer import importer_problems
from nrd_trt.machine.energy import Energy
from nrd_trt.machine.gpu import Gpu
from nrd_trt.proving import parts
from nrd_trt.proving.network import NETWORKS, fp32_file, small_network
from nrd_trt.proving.parts import (
    Lane,
    NotRunError,
    ProofFailedError,
    all_parts,
    measure_times,
    prove_driver,
    prove_graph,
    prove_plan,
    prove_threads,
)
from nrd_trt.proving.record import DRIVER, RUNS
from nrd_trt.proving.runs import ROUNDS, graph_fault, threads_fault
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.specs import PRECISIONS, TensorSpec
from nrd_trt.zoo import checkpoint_path
from tests.artefacts import environment, needs_rtx
from tests.runtime.bench import SMALL, Bench, image, runner
from tests.runtime.fake_cuda import NOT_SUPPORTED, FakeDriver

LANE = Lane("tensorrt-rtx", "small", "function")
FEEDS = [{"image": image(SMALL, seed)} for seed in range(2)]


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_network_gets_every_precision_and_form_and_run() -> None:
    known = all_parts()
    lanes = [f"tensorrt/{network}/{form}" for network in NETWORKS for form in ("function", "plugin")]
    lanes += [f"tensorrt-rtx/{network}/function" for network in NETWORKS]
    wanted = {f"{lane}/{what}" for lane in lanes for what in (*PRECISIONS, *RUNS)}
    assert {name for name in known if name.count("/") == 3} == wanted
    assert known["tensorrt/small/plugin/int8"].needs == ("tensorrt/plugin",)
    assert known["tensorrt/small/plugin/graph"].needs == ("tensorrt/small/plugin/fp16",)
    assert known["tensorrt/runtime-library"].needs == ("tensorrt/small/function/fp16",)
    order = list(known)
    assert all(order.index(need) < order.index(part.name) for part in known.values() for need in part.needs)
    assert len(known) == 6 + len(wanted)


def test_without_tensorrt_there_are_no_plans_and_it_is_said() -> None:
    assert list(all_parts([])) == ["driver", "tensorrt", "tensorrt-rtx", "operator"]


# --- networks --------------------------------------------------------------------------------------------------------


def test_the_small_network_is_always_the_same_and_tensorrts_parser_takes_it(tmp_path: Path) -> None:
    model = small_network()
    onnx.checker.check_model(model, full_check=True)
    assert importer_problems(model) == []
    assert onnx.load(fp32_file("small", tmp_path)) == model
    assert len(checkpoint_path(NETWORKS[1]).name) and set(NETWORKS[1:]) == {
        path.stem for path in checkpoint_path(NETWORKS[1]).parent.glob("*.safetensors")
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16", pytest.param("int8", marks=pytest.mark.all_combinations)])
@pytest.mark.filterwarnings("ignore:classes never predicted")  # it was never trained to show them
def test_the_small_network_holds_the_gates_with_room(precision: Any, tmp_path: Path) -> None:
    """Simulated on the CPU: a plan that misses them is at fault, not the network. It shows most of its classes."""
    ranges: dict[str, Any] = (
        {"calibration": "synthetic", "images": parts.CALIBRATION_IMAGES} if precision == "int8" else {}
    )
    bundle = build(
        fp32_file("small", tmp_path),
        tmp_path / "a.nrd",
        precision=precision,
        builder="onnxruntime",
        threads=1,
        **ranges,
    )
    agreement, gate = bundle.record.validation.pixel_agreement, bundle.record.validation.gates.min_agreement
    assert agreement is not None and 1 - agreement < (1 - gate) / 2
    assert len(np.unique(bundle.references().masks)) == 5


# --- plans -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let bundles be built and run by ONNX Runtime; the fixture's function says who is to be told as the runner."""

    def fall_back(plan: str) -> None:
        def other_builder(*arguments: Any, **options: Any) -> Any:
            bundle = build(*arguments, **{**options, "builder": "onnxruntime", "threads": 1})
            validation = replace(bundle.record.validation, plan_ran=plan == "run")
            return replace(bundle, record=replace(bundle.record, validation=validation))

        monkeypatch.setattr(parts, "build", other_builder)

    return fall_back


def test_masks_of_another_runner_prove_nothing(tmp_path: Path, built: Any) -> None:
    """A build that falls back to ONNX Runtime passes its own gates; the part does not."""
    built("not run")
    with pytest.raises(ProofFailedError, match="masks are those of onnxruntime: the plan was built and not run here"):
        prove_plan(LANE, "fp32", tmp_path)


def test_bf16_is_not_run_on_a_gpu_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "probe_device", lambda: Gpu(name="T4", compute_capability="7.5"))
    monkeypatch.setattr(parts, "build", lambda *_, **__: pytest.fail("it is built"))
    with pytest.raises(NotRunError, match=r"bf16 needs compute capability 8\.0 or later, this GPU has 7\.5"):
        prove_plan(LANE, "bf16", tmp_path)


def test_a_plan_passes_by_its_gate(tmp_path: Path, built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the plan had drawn them; only the bundle that others need stays."""
    built("run")
    assert prove_plan(LANE, "fp32", tmp_path) == {"pixel_agreement": 1.0, "gate": 0.9999, "reference": "onnx"}
    assert not LANE.bundle(tmp_path, "fp32").exists()
    monkeypatch.setitem(gates._DEFAULTS, "fp16", replace(Gates.of("fp16"), min_agreement=1.0))
    with pytest.raises(ProofFailedError, match=r"pixel agreement 0\.999\d+, at least 1\.0 needed"):
        prove_plan(LANE, "fp16", tmp_path)


def test_runs_are_those_of_the_bundle_that_was_built(
    tmp_path: Path, built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On ONNX Runtime, which has threads and times, and no CUDA graph."""
    built("run")
    lane = Lane(cast(Any, "onnxruntime"), "small", "function")
    prove_plan(lane, "fp16", tmp_path)
    assert prove_threads(lane, tmp_path) == {}
    rows: list[BenchmarkRow] = []
    monkeypatch.setattr(parts, "benchmark", lambda *given, **named: noted(benchmark(*given, **named), rows))
    times = measure_times(lane, tmp_path)
    assert "gpu_compute_p50_ms" not in times and "watts" not in times
    on_gpu = replace(rows[0].timing, gpu_compute=Latency(samples_ms=(1.5,)), enqueue=Latency(samples_ms=(0.25,)))
    row = replace(rows[0], timing=on_gpu, energy=Energy(joules=30.0, seconds=2.0, source="NVML"))
    monkeypatch.setattr(parts, "benchmark", lambda *_, **__: Benchmark(rows=(row,)))
    assert measure_times(lane, tmp_path) == {
        **times,
        "gpu_compute_p50_ms": 1.5,
        "enqueue_p50_ms": 0.25,
        "watts": 15.0,
        "frames_per_joule": row.runs / 30,
    }
    assert 0 < times["p50_ms"] <= times["p99_ms"] and "executed in fp32" in str(times["notes"])  # type: ignore[operator]
    with pytest.raises(ProofFailedError, match="expected the runner of a plan, got onnxruntime"):
        prove_graph(lane, tmp_path)


def noted(result: Benchmark, rows: list[BenchmarkRow]) -> Benchmark:
    rows.extend(result.rows)
    return result


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from nrd_trt import figures
from nrd_trt.building.build import build
from nrd_trt.proving import child, parts
parts.build = lambda *given, **named: build(*given, **{**named, "builder": "onnxruntime", "threads": 1})
for network in ("small", "nrd_r18_camvid"):
    child.main(f"tensorrt-rtx/{network}/function/fp32", sys.argv[1], f"{sys.argv[1]}/{network}.json")
child.main("operator", sys.argv[1], f"{sys.argv[1]}/operator.json")
"""


@needs_rtx
def test_without_pytorch_the_small_network_is_built_and_the_zoo_is_not_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert told["small"]["why"].startswith("the masks are those of onnxruntime")  # so it was built and judged
    for name in ("nrd_r18_camvid", "operator"):
        assert told[name]["result"] == "not run"
        assert "pip install 'nrd-trt[torch]'" in told[name]["why"]


# --- driver ----------------------------------------------------------------------------------------------------------


def test_the_driver_copies_plainly_and_in_a_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = FakeDriver(monkeypatch)
    assert prove_driver(tmp_path)["compute_capability"] == "8.7"
    assert (driver.alive, driver.violation) == ({}, "")


@pytest.mark.parametrize("call", ["upload", "launch_graph"])
def test_bytes_that_change_on_their_way_are_seen(call: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeDriver(monkeypatch)
    monkeypatch.setattr(f"nrd_trt.machine.cuda.Cuda.{call}", lambda *_: None)
    with pytest.raises(ProofFailedError, match=r"% of the bytes came back changed from the GPU"):
        prove_driver(tmp_path)


# --- graphs and threads ----------------------------------------------------------------------------------------------


def graph_runner(cuda_graph: bool) -> Any:
    return runner(cuda_graph=cuda_graph)


def test_graphs_that_change_nothing_are_captured_and_replayed(bench: Bench) -> None:
    assert graph_fault(graph_runner, FEEDS) is None
    assert bench.cuda.names().count("launch_graph") >= ROUNDS


def test_a_refused_capture_is_a_fault_that_says_why(bench: Bench) -> None:
    bench.cuda.fail("cuStreamBeginCapture_v2", NOT_SUPPORTED)
    fault = graph_fault(graph_runner, FEEDS)
    assert fault is not None
    assert fault.startswith("no CUDA graph was used: tensorrt: runs go on without a CUDA graph")


def test_a_graph_that_draws_something_else_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays that do nothing leave the outputs of the run before."""
    monkeypatch.setattr("tests.runtime.fake_cuda.NotedCuda.launch_graph", lambda *_: None)
    fault = graph_fault(graph_runner, FEEDS)
    assert fault is not None and "with a CUDA graph" in fault and "differ from a plain run alone" in fault


def test_the_part_runs_the_plan_of_its_bundle_both_ways(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a runner of plans, which is asked for its kind before it is entered."""
    opened = lambda lane, folder, cuda_graph=True: SimpleNamespace(runner=runner(cuda_graph=cuda_graph))  # noqa: E731
    monkeypatch.setattr(Lane, "open", opened)
    monkeypatch.setattr(parts, "_feeds", lambda lane, folder: FEEDS)
    assert prove_graph(LANE, Path()) == {}
    assert bench.cuda.names().count("launch_graph") >= ROUNDS
    assert prove_threads(LANE, Path()) == {}


class Forgetful(BaseRunner):
    """Its mask is the red channel, in all but one run of the class."""

    name = "forgetful"
    runs = 0

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        return {"image": TensorSpec(name="image", dtype=np.dtype(np.uint8), shape=(None, None, None, 3))}, {}

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        type(self).runs += 1
        return {"mask": feed["image"][..., 0] + (self.runs == self.wrong)}

    def _close(self) -> None:
        pass


@pytest.mark.parametrize("wrong", [0, 9])
def test_threads_are_held_against_one_that_worked_alone(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forgetful, "runs", 0)
    fault = threads_fault(lambda: Forgetful(wrong), FEEDS)
    assert Forgetful.runs == len(FEEDS) * (1 + 2 * ROUNDS)
    if wrong:
        assert fault is not None and "beside another thread: 100.00% of mask differ from a plain run alone" in fault
    else:
        assert fault is None


def test_plans_in_two_threads_on_the_fake_driver(bench: Bench) -> None:
    assert threads_fault(runner, FEEDS) is None
    assert len(bench.asked) == 3


def test_the_driver_is_what_all_others_need_in_the_end() -> None:
    known = all_parts()
    for part in known.values():
        while part.needs:
            part = known[part.needs[0]]
        assert part.name == DRIVER
