"""What a build says of a plan that it could not run: an error, a warning or a failure, and never nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nrd_trt.building import construct
from nrd_trt.cli.main import app
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.errors import RunnerError
from nrd_trt.machine import libcuda
from nrd_trt.machine.gpu import Gpu
from nrd_trt.optimization import tune as tune_module
from tests.artefacts import SIZE, build, checkpoint, listing, needs_rtx, onnx_file
from tests.building.plugin_machine import ORIN, found, install, show_to_runners
from tests.engine.surface.enterprise import enterprise
from tests.runtime.fake_cuda import FakeDriver

HOPPER = Gpu(name="H200", compute_capability="9.0")
STAND_IN = "^the plan is not run, ONNX Runtime takes its place: "
DOUBT = "the plan did not run, although this machine has a GPU: "


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A machine with enterprise TensorRT and the fake driver."""
    monkeypatch.setitem(sys.modules, "tensorrt", enterprise("10.3.0"))
    return FakeDriver(monkeypatch)


@pytest.mark.parametrize("builder", ["tensorrt", "auto"])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("too old", r"a driver for CUDA 12\.0 or newer, got one for 11\.8; update the NVIDIA driver to branch 525"),
        ("no device", r"cuInit failed with CUDA_ERROR_NO_DEVICE .*; no GPU is visible, check `nvidia-smi`"),
        ("mismatch", r"cuInit failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH .*restart the machine"),
        ("no driver", r"the driver's library cannot be loaded \(.*; install the NVIDIA driver"),
    ],
)
def test_a_binding_that_fails_is_the_error_of_the_build(
    how: str, words: str, builder: str, driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was validated with ONNX Runtime, and passed."""
    driver.set(**{"too old": {"version": 11080}, "no device": {"devices": 0}}.get(how, {}))
    if how == "mismatch":
        driver.fail("cuInit", 803)
    if how == "no driver":
        monkeypatch.setattr(libcuda, "LIBRARY", "libcuda-absent.so.1")
    monkeypatch.setattr(construct, "read_input", lambda request: pytest.fail("it is found too late"))
    with pytest.raises(RunnerError, match=rf"^builder='tensorrt': expected a GPU.*: CUDA: .*{words}.*'onnxruntime'"):
        build(onnx_file(), tmp_path / "a.nrd", builder=builder)
    assert listing(tmp_path) == []


def test_the_command_line_exits_2(driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.set(version=11080)
    monkeypatch.setattr(tune_module, "load_model", lambda *_, **__: pytest.fail("it is found too late"))
    sources = {"build": [str(onnx_file())], "tune": [str(checkpoint()), "--data", str(tmp_path), "--size", SIZE]}
    for verb, source in sources.items():
        output = tmp_path / f"{verb}.nrd"
        done = CliRunner().invoke(app, [verb, *source, "-o", str(output), "--builder", "tensorrt"])
        assert (done.exit_code, output.exists()) == (2, False), done.output
        assert "error: --builder tensorrt: expected a GPU" in done.stderr and "got one for 11.8" in done.stderr


@pytest.mark.parametrize(
    ("options", "device", "why"),
    [
        ({"runner": "onnxruntime"}, ORIN, "runner='onnxruntime' was asked for"),
        ({}, HOPPER, "compute capability: built for 8.7, this is 9.0"),
    ],
)
def test_no_plan_passes_unrun_where_there_is_a_gpu(
    options: dict[str, Any], device: Gpu, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    show_to_runners(monkeypatch, device)
    target = tmp_path / "a.nrd"
    arguments = {"builder": "tensorrt", "decode": "onnx", **options}
    if options:
        facts = build(onnx_file(), target, **arguments)
    else:
        with pytest.warns(UserWarning, match=f"{STAND_IN}{why}"):
            facts = build(onnx_file(), target, **arguments)
    validation = facts["validation"]
    assert (facts["passed"], validation["passed"], validation["plan_ran"]) == (False, False, False)
    assert (validation["runner"], validation["failures"]) == ("onnxruntime", [DOUBT + why])
    assert read_bundle(target).failures == [DOUBT + why]


@needs_rtx
def test_a_plan_for_other_gpus_is_not_expected_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(construct, "find_device", lambda: found(HOPPER))
    show_to_runners(monkeypatch, HOPPER)
    with pytest.warns(UserWarning, match=f"{STAND_IN}compute capability: built for 8.9, this is 9.0"):
        facts = build(onnx_file(), tmp_path / "a.nrd", builder="tensorrt-rtx", compute_capabilities=("8.9",))
    assert (facts["passed"], facts["validation"]["plan_ran"]) == (True, False)


def test_the_plan_can_be_insisted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(RunnerError, match="no GPU that could run it was found"):
        build(onnx_file(), tmp_path / "a.nrd", builder="tensorrt", decode="onnx", runner="tensorrt")
    assert listing(tmp_path) == []
