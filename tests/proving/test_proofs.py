"""What the parts do: each proof holds where it should, and sees what it is there to see."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nrd_trt.building.build import build
from nrd_trt.graph.importer import importer_problems
from nrd_trt.proving import parts
from nrd_trt.proving.network import NETWORKS, fp32_file, small_network
from nrd_trt.proving.parts import Lane, ProofFailedError, all_parts, prove_driver, prove_plan
from nrd_trt.proving.record import DRIVER, RUNS
from nrd_trt.proving.runs import ROUNDS, graph_fault, threads_fault
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.specs import PRECISIONS, TensorSpec
from nrd_trt.zoo import checkpoint_path
from tests.runtime.bench import SMALL, Bench, image, runner
from tests.runtime.fake_cuda import NOT_SUPPORTED, FakeDriver

LANE = Lane("tensorrt-rtx", "small", "function")
FEEDS = [{"image": image(SMALL, seed)} for seed in range(2)]


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_network_gets_every_precision_and_form_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "installed_flavours", lambda: ["tensorrt", "tensorrt-rtx"])
    known = all_parts()
    lanes = [f"tensorrt/{network}/{form}" for network in NETWORKS for form in ("function", "plugin")]
    lanes += [f"tensorrt-rtx/{network}/function" for network in NETWORKS]
    wanted = {f"{lane}/{what}" for lane in lanes for what in (*PRECISIONS, *RUNS)}
    assert {name for name in known if name.count("/") == 3} == wanted
    assert known["tensorrt/small/plugin/int8"].needs == ("tensorrt/plugin",)
    assert known["tensorrt/small/plugin/graph"].needs == ("tensorrt/small/plugin/fp16",)
    order = list(known)
    assert all(order.index(need) < order.index(part.name) for part in known.values() for need in part.needs)
    assert len(known) == 5 + len(wanted)


def test_without_tensorrt_there_are_no_plans_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "installed_flavours", list)
    assert list(all_parts()) == ["driver", "tensorrt", "tensorrt-rtx", "operator"]


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
def test_the_small_network_holds_the_gates_with_room(precision: Any, tmp_path: Path) -> None:
    """Simulated on the CPU: a plan that misses them is at fault, not the network. It shows most of its classes."""
    ranges: dict[str, Any] = {"calibration": "synthetic", "images": 16} if precision == "int8" else {}
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


def test_masks_of_another_runner_prove_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that falls back to ONNX Runtime passes its own gates; the part does not."""

    def other_builder(*arguments: Any, **options: Any) -> Any:
        return build(*arguments, **{**options, "builder": "onnxruntime", "threads": 1})

    monkeypatch.setattr(parts, "build", other_builder)
    with pytest.raises(ProofFailedError, match="masks are those of onnxruntime: the plan was built and not run here"):
        prove_plan(LANE, "fp32", tmp_path)
    assert LANE.bundle(tmp_path, "fp32").is_dir()


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
