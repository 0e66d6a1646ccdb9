"""Which runner a bundle gets: the plan where this machine can run it, else ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from nrd_trt.engine.bundle import PLAN_FILE, Bundle, read_bundle
from nrd_trt.errors import ConfigError, MissingDependencyError, RunnerError
from nrd_trt.machine.gpu import Gpu
from nrd_trt.runtime import select
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.select import make_runner
from nrd_trt.runtime.trt_runner import TrtRunner
from tests.artefacts import bundle, copy_of, rewrite_facts, run_process

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="no TensorRT-RTX: pip install nrd-trt[rtx]"
)


def device(monkeypatch: pytest.MonkeyPatch, capability: str | None) -> None:
    """Let this machine have a GPU of a compute capability, or none."""
    facts = capability and Gpu(
        name="Fake", compute_capability=capability, cuda="13.0", integrated=False, memory_bytes=2, free_bytes=1
    )
    monkeypatch.setattr(select, "probe_device", lambda: facts or None)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose plan is for compute capability 8.6."""
    path = copy_of(bundle("fp16", "tensorrt-rtx"), tmp_path_factory.mktemp("select") / "planned.nrd")
    rewrite_facts(path, builder={**read_bundle(path).record.to_dict()["builder"], "compute_capabilities": ["8.6"]})
    return read_bundle(path)


@needs_rtx
@pytest.mark.parametrize(("capability", "expected"), [(None, OrtRunner), ("8.6", TrtRunner), ("8.9", OrtRunner)])
def test_auto_takes_the_plan_where_it_runs(
    planned: Bundle, monkeypatch: pytest.MonkeyPatch, capability: str | None, expected: type
) -> None:
    device(monkeypatch, capability)
    runner = make_runner(planned, "auto")
    assert type(runner) is expected
    assert runner.name == ("tensorrt-rtx" if expected is TrtRunner else "onnxruntime")


@needs_rtx
def test_plan_by_name(planned: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, "8.6")
    assert type(make_runner(planned, "tensorrt-rtx")) is TrtRunner
    device(monkeypatch, "8.9")
    with pytest.raises(RunnerError) as caught:
        make_runner(planned, "tensorrt-rtx")
    path = planned.path
    assert str(caught.value) == (
        f"{path / PLAN_FILE}: this machine cannot run the plan: compute capability: built for 8.6, this is 8.9. "
        f"Rebuild it with: nrd-trt build {path} -o {path} --builder tensorrt-rtx --force"
    )
    device(monkeypatch, None)
    with pytest.raises(RunnerError, match=r"no GPU that could run it was found\. Rebuild it with: nrd-trt build"):
        make_runner(planned, "tensorrt-rtx")


@needs_rtx
def test_onnxruntime_by_name_in_spite_of_a_plan(planned: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, "8.6")
    assert type(make_runner(planned, "onnxruntime")) is OrtRunner


@needs_rtx
def test_a_flavour_that_is_not_installed(planned: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, "8.6")
    monkeypatch.setattr(select, "installed_flavours", list)
    assert type(make_runner(planned, "auto")) is OrtRunner
    if importlib.util.find_spec("tensorrt") is None:
        with pytest.raises(MissingDependencyError, match=r"running tensorrt engines needs .*nrd-trt\[trt\]"):
            make_runner(planned, "tensorrt")


@needs_rtx
def test_plan_by_name_without_a_gpu_exits_2(planned: Bundle, tmp_path: Path) -> None:
    """A process of its own that sees no GPU, on any machine."""
    result = run_process("validate", planned.path, "--runner", "tensorrt-rtx", "--json", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2, result.stderr
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "RunnerError"
    assert "no GPU" in error["message"] and "--builder tensorrt-rtx --force" in error["message"]


def test_bundle_without_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, "8.6")
    opened = read_bundle(bundle())
    assert type(make_runner(opened, "auto")) is OrtRunner
    with pytest.raises(
        RunnerError, match=r"holds no plan; build one with: nrd-trt build .* --builder tensorrt --force"
    ):
        make_runner(opened, "tensorrt")


@pytest.mark.parametrize(
    ("name", "message"), [("torch", "give the checkpoint"), ("tvm", "expected one of auto, torch")]
)
def test_other_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_runner(read_bundle(bundle()), name)


@pytest.mark.parametrize("host_code", [False, True])
def test_only_version_compatible_plans_run_host_code(host_code: bool) -> None:
    runner = select.plan_runner(b"", {"name": "tensorrt", "version_compatible": host_code}, "rebuild")
    assert runner._host_code is host_code
