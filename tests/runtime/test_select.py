"""Which runner a bundle gets: the plan where this machine can run it, else ONNX Runtime."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from nrd_trt.cli.main import app
from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, Bundle
from nrd_trt.errors import ConfigError, MissingDependencyError, RunnerError
from nrd_trt.machine.gpu import Gpu
from nrd_trt.machine.libcuda import NoDriverError
from nrd_trt.runtime import select
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.select import (
    PlanHost,
    RunOptions,
    check_host,
    host_mismatches,
    make_runner,
    model_note,
    rebuild_call,
    unproven,
)
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import InputShape, Range, RunnerName
from tests.artefacts import bundle, needs_rtx
from tests.engine.records import BUILDER, record
from tests.runtime.bench import SMALL, Bench, image
from tests.runtime.conftest import MakeBench
from tests.runtime.fake_cuda import FakeDriver, MaskEngine

RTX = {**BUILDER, "name": "tensorrt-rtx"}
FILES = {ONNX_FILE: "0", PLAN_FILE: "0"}
PLANNED = Bundle(path=Path("city.nrd"), record=record(decode="onnx", builder=RTX, files=FILES))
UNPLANNED = Bundle(path=Path("city.nrd"), record=record(decode="onnx", files={ONNX_FILE: "0"}))
HERE = PlanHost(os="linux", machine="x86_64", builder="tensorrt-rtx", version="10.13.2", compute_capability="8.6")
NEVER = "for which TensorRT-RTX makes no plan"
STAND_IN = "the plan is not run, ONNX Runtime takes its place"
NO_GPU = "no GPU that could run it was found"
VERSION = "TensorRT version: built for 10.13.2, this is 11.0.0"


@pytest.mark.parametrize(
    ("built", "here", "expected"),
    [
        ({}, {}, []),
        ({}, {"os": "windows"}, ["operating system: built for linux, this is windows"]),
        ({}, {"machine": "aarch64"}, ["machine: built for x86_64, this is aarch64"]),
        ({}, {"builder": "tensorrt"}, ["builder: built for tensorrt-rtx, this is tensorrt"]),
        ({}, {"version": "11.0.0"}, [VERSION]),
        ({"version_compatible": True}, {"version": "11.0.0"}, []),
        ({}, {"compute_capability": None}, [NO_GPU]),
        ({"compute_capabilities": []}, {"compute_capability": None}, [NO_GPU]),
        ({}, {"compute_capability": None, "problem": "CUDA: error 35"}, [f"{NO_GPU}: CUDA: error 35"]),
        *(({"compute_capabilities": []}, {"compute_capability": later}, []) for later in ("8.6", "12.0", "12.1")),
        *(
            (
                {"compute_capabilities": []},
                {"compute_capability": other},
                [f"compute capability: built for 8.0, 8.6, 8.9, 12.0 or later, this is {other}, {NEVER}"],
            )
            for other in ("7.5", "8.7", "9.0")
        ),
        *(
            (
                {**unknown, "name": "tensorrt", "compute_capabilities": []},
                {"builder": "tensorrt"},
                ["compute capability: built for one that was not recorded, this is 8.6"],
            )
            for unknown in ({}, {"hardware_compatible": True})
        ),
        ({}, {"compute_capability": "8.9"}, ["compute capability: built for 8.6, this is 8.9"]),
        ({"compute_capabilities": ["8.6", "8.9"]}, {"compute_capability": "8.9"}, []),
        (
            {"compute_capabilities": ["8.6", "8.9"]},
            {"compute_capability": "12.0"},
            ["compute capability: built for 8.6 or 8.9, this is 12.0"],
        ),
        ({"hardware_compatible": True}, {"compute_capability": "8.6"}, []),
        ({"hardware_compatible": True, "compute_capabilities": ["9.0"]}, {"compute_capability": "12.0"}, []),
        (
            {"hardware_compatible": True, "compute_capabilities": ["10.0"]},
            {"compute_capability": "9.0"},
            [f"compute capability: built for 10.0 or later, this is 9.0, {NEVER}"],
        ),
        (
            {},
            {"os": "windows", "version": "11.0.0", "compute_capability": None},
            ["operating system: built for linux, this is windows", VERSION, NO_GPU],
        ),
    ],
)
def test_what_of_a_machine_does_not_fit(built: dict[str, Any], here: dict[str, Any], expected: list[str]) -> None:
    facts, host = record(builder={**RTX, **built}).builder, replace(HERE, **here)
    assert host_mismatches(facts, host) == expected
    if not expected:
        check_host(facts, host, plan="a.plan", rebuild="the call")
    else:
        with pytest.raises(RunnerError) as caught:
            check_host(facts, host, plan="a.plan", rebuild="the call")
        listed = "; ".join(expected)
        assert str(caught.value) == f"a.plan: this machine cannot run the plan: {listed}. Rebuild it with: the call"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes this machine one of another GPU, with other flavours installed."""

    def put(capability: str | None, flavours: tuple[str, ...] = ("tensorrt-rtx",)) -> None:
        def find_device() -> Gpu:
            if capability is None:
                raise NoDriverError("CUDA: there is no driver.")
            return Gpu(name="RTX", compute_capability=capability)

        monkeypatch.setattr(select, "find_device", find_device)
        monkeypatch.setattr(select, "this_host", lambda flavour: replace(HERE, compute_capability=capability))
        monkeypatch.setattr(select, "installed_flavours", lambda: list(flavours))

    return put


@pytest.mark.parametrize(
    ("capability", "flavours", "expected"),
    [
        (None, ("tensorrt-rtx",), OrtRunner),
        ("8.6", ("tensorrt-rtx",), TrtRunner),
        ("8.9", ("tensorrt-rtx",), OrtRunner),
        ("8.6", (), OrtRunner),
    ],
)
def test_auto_takes_the_plan_where_it_runs(
    machine: Any, capability: str | None, flavours: tuple[str, ...], expected: type
) -> None:
    machine(capability, flavours)
    # Where there is a driver nobody expects ONNX Runtime.
    with nullcontext() if expected is TrtRunner or capability is None else pytest.warns(UserWarning, match=STAND_IN):
        runner = make_runner(PLANNED)
    assert type(runner) is expected
    assert runner.name == ("tensorrt-rtx" if expected is TrtRunner else "onnxruntime")
    assert type(make_runner(PLANNED, RunOptions(runner="onnxruntime"))) is OrtRunner
    assert type(make_runner(UNPLANNED)) is OrtRunner


AGX, NANO = {"gpu": "Orin", "multiprocessors": 16}, {"gpu": "Orin", "multiprocessors": 8}


@pytest.mark.parametrize(
    ("built", "here", "said"),
    [
        (AGX, AGX, None),
        (AGX, NANO, "built on Orin with 16 multiprocessors and this is Orin with 8 multiprocessors: speed, and even "),
        ({"gpu": "A100"}, {"gpu": "A30"}, "built on A100 and this is A30"),
        ({"gpu": "Orin"}, NANO, None),  # of a bundle of 0.1.0 their number is not known
        ({"gpu": None}, NANO, None),
        ({**AGX, "hardware_compatible": True}, NANO, None),
        ({**AGX, "builder_options": {"same_compute_capability": "true"}}, NANO, None),
        ({**AGX, "builder_options": {"same_compute_capability": "false"}}, NANO, "with 8 multiprocessors"),
        ({**AGX, "name": "tensorrt-rtx"}, NANO, None),
    ],
)
def test_another_model_of_gpu_is_mentioned(built: dict[str, Any], here: dict[str, Any], said: str | None) -> None:
    note = model_note(record(builder={**BUILDER, **built}).builder, replace(HERE, **here))
    assert note is None if said is None else note is not None and said in note


def test_a_plan_of_another_model_of_gpu_runs_with_a_warning(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("8.6")
    orin = replace(PLANNED.record.builder, name="tensorrt", **AGX)
    planned = replace(PLANNED, record=replace(PLANNED.record, builder=orin))
    here = replace(HERE, builder="tensorrt", **NANO)
    monkeypatch.setattr(select, "this_host", lambda flavour: here)
    monkeypatch.setattr(select, "installed_flavours", lambda: ["tensorrt"])
    words = r"^city\.nrd: the plan was built on Orin .* Or rebuild it here: nrd_trt\.build"
    with pytest.warns(UserWarning, match=words):
        assert type(make_runner(planned)) is TrtRunner


def test_a_driver_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no machine without a GPU."""
    FakeDriver(monkeypatch).set(version=11080)
    monkeypatch.setattr(select, "installed_flavours", lambda: ["tensorrt-rtx"])
    monkeypatch.setattr(select, "load_tensorrt", lambda flavour: SimpleNamespace(version="10.13.2"))
    words = "no GPU that could run it was found: CUDA: expected a driver for CUDA 12.0 or newer, got one for 11.8"
    with pytest.warns(UserWarning, match=f"^{STAND_IN}: {words}"):
        assert type(make_runner(PLANNED)) is OrtRunner
    with pytest.raises(RunnerError, match=words):
        make_runner(PLANNED, RunOptions(runner="tensorrt-rtx"))


def test_a_tensorrt_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime takes its place; one that was asked for by name is an error."""
    FakeDriver(monkeypatch)
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    built = replace(PLANNED.record.builder, name="tensorrt")
    planned = replace(PLANNED, record=replace(PLANNED.record, builder=built))
    words = r"needs the package 'tensorrt', which cannot be imported \(libnvinfer\.so\.10: "
    with pytest.warns(UserWarning, match=f"^{STAND_IN}: .* {words}"):
        assert type(make_runner(planned)) is OrtRunner
    assert "cannot be imported" in str(unproven(built, "auto"))
    with pytest.raises(MissingDependencyError, match=words):
        make_runner(planned, RunOptions(runner="tensorrt"))


def test_plan_by_name(machine: Any) -> None:
    machine("8.6")
    assert type(make_runner(PLANNED, RunOptions(runner="tensorrt-rtx"))) is TrtRunner
    machine("8.9")
    with pytest.raises(RunnerError) as caught:
        make_runner(PLANNED, RunOptions(runner="tensorrt-rtx"))
    assert str(caught.value) == (
        f"city.nrd/{PLAN_FILE}: this machine cannot run the plan: compute capability: built for 8.6, this is 8.9. "
        "Rebuild it with: nrd_trt.build('city.nrd', 'city.nrd', builder='tensorrt-rtx', force=True)"
    )
    machine(None)
    with pytest.raises(RunnerError, match=rf"{NO_GPU}\. Rebuild it with: nrd_trt\.build"):
        make_runner(PLANNED, RunOptions(runner="tensorrt-rtx"))


@needs_rtx
def test_plan_by_name_without_a_gpu_exits_2(machine: Any) -> None:
    path = bundle("fp16", "tensorrt-rtx")
    machine(None)
    result = CliRunner().invoke(app, ["validate", str(path), "--runner", "tensorrt-rtx", "--json"])
    assert result.exit_code == 2, result.output
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "RunnerError"
    assert NO_GPU in error["message"] and "--builder tensorrt-rtx --force" in error["message"]


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("torch", ConfigError, "runner='torch': .*give the checkpoint"),
        ("tvm", ConfigError, "runner='tvm': expected one of 'auto', 'torch'"),
        ("tensorrt", RunnerError, r"runner='tensorrt': city\.nrd holds no plan; build one with: nrd_trt\.build\(.*"),
        ("tensorrt-rtx", RunnerError, r"holds no plan; .*builder='tensorrt-rtx', force=True\)"),
    ],
)
def test_runners_that_a_bundle_without_a_plan_has_not(name: RunnerName, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_runner(UNPLANNED, RunOptions(runner=name))


def test_a_library_for_a_bundle_that_needs_none() -> None:
    for runner in ("auto", "onnxruntime"):
        with pytest.raises(ConfigError, match=r"plugin=a\.so: expected a bundle whose plan needs it .*leave it out"):
            make_runner(PLANNED, RunOptions(runner=runner, plugin=Path("a.so")))


MASKS = replace(
    record().model,
    shape=InputShape(
        batch=Range(min=1, opt=1, max=2), height=Range(min=4, opt=4, max=8), width=Range(min=8, opt=8, max=9)
    ),
    output="mask",
    mask_encoding="uint8",
)


class PlanOfMasks(MaskEngine):
    """A plan of `MASKS`."""

    sizes = MASKS.image_range


def test_a_plan_is_held_against_the_facts_of_its_bundle(make_bench: MakeBench) -> None:
    bench = make_bench(engine=PlanOfMasks)
    other = replace(MASKS, shape=replace(MASKS.shape, height=Range(min=4, opt=4, max=16)))
    with pytest.raises(RunnerError, match=r"sizes from 1×4×8×3 to 2×8×9×3, expected 1×4×8×3 to 2×16×9×3\. Rebuild"):
        select.plan_runner(b"plan", record().builder, "rebuild", graph=other).__enter__()
    assert bench.cuda.alive == {}


@pytest.mark.parametrize("host_code", [False, True])
def test_only_version_compatible_plans_run_host_code(host_code: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, PlanOfMasks)
    built = record(builder={**BUILDER, "version_compatible": host_code}).builder
    with select.plan_runner(b"plan", built, "rebuild", graph=MASKS):
        assert bench.asked == [(b"plan", {"host_code": host_code, "rebuild": "rebuild"})]


@pytest.mark.parametrize("wanted", [True, False])
def test_graphs_are_left_out_where_none_are_wanted(wanted: bool, make_bench: MakeBench) -> None:
    bench = make_bench(engine=PlanOfMasks)
    with select.plan_runner(b"plan", record().builder, "rebuild", RunOptions(cuda_graph=wanted), graph=MASKS) as runner:
        for seed in range(3):
            pixels = image(SMALL, seed)
            assert (runner.infer({"image": pixels})["mask"] == pixels[..., 0]).all()
    assert ("begin_capture" in bench.cuda.names()) is wanted


@pytest.mark.parametrize(
    ("capability", "builder"),
    [("7.5", "tensorrt"), ("9.0", "tensorrt"), ("8.9", "tensorrt-rtx"), (None, "tensorrt-rtx")],
)
def test_a_rebuild_is_with_what_makes_plans_for_this_gpu(
    capability: str | None, builder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TensorRT-RTX makes none, its plan built again would not run either."""
    monkeypatch.setattr(select, "probe_device", lambda: Gpu(name="GPU", compute_capability=capability))
    assert f"builder='{builder}', force" in rebuild_call(Path("a.nrd"), "tensorrt-rtx", "onnx")
    assert "builder='tensorrt'" in rebuild_call(Path("a.nrd"), "tensorrt", "onnx")
