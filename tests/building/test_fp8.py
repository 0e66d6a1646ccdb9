"""fp8 bundles: what they record, and GPUs that have no fp8, refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nrd_trt import open_bundle
from nrd_trt.building import construct
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.errors import ConfigError, RunnerError
from nrd_trt.machine.gpu import Gpu
from nrd_trt.runtime import select
from nrd_trt.runtime.openvino_runner import OpenVinoRunner
from nrd_trt.runtime.select import RunOptions, make_runner, rebuild_call
from tests.artefacts import LENIENT, build, needs_rtx, onnx_file
from tests.building.plugin_machine import ORIN, found, host, install

FP8: dict[str, Any] = {"precision": "fp8", "calibration": "synthetic", "images": 8}
NEEDS = r"^precision='fp8': fp8 needs compute capability 8\.9 or later, "


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a plan where there is TensorRT-RTX."""
    path = tmp_path_factory.mktemp("fp8") / "a.nrd"
    with pytest.warns(UserWarning, match="never predicted on the calibration images"):
        build(onnx_file(), path, builder="auto", **FP8)
    return path


@needs_rtx
def test_one_call_makes_a_validated_bundle_with_a_plan_for_gpus_that_have_fp8(bundle: Path) -> None:
    record = read_bundle(bundle).record
    precision, validation = record.precision, record.validation
    assert (precision.asked, record.model.precision, precision.int8_layers) == ("fp8", "fp8", ())
    assert len(precision.fp8_layers) == 41 and precision.ranges is not None
    assert precision.found is not None and precision.found["fp8"] >= len(precision.ranges)
    assert (record.builder.name, record.builder.compute_capabilities) == ("tensorrt-rtx", ("8.9", "12.0"))
    assert (validation.arithmetic, validation.plan_ran, record.passed) == ("simulated", False, True)
    assert validation.gates.min_agreement == LENIENT
    stored = read_bundle(bundle).references()
    with open_bundle(bundle, runner="onnxruntime", threads=1) as engine:
        mask = engine.predict(stored.images[0])
    assert (mask == stored.masks[0]).mean() > LENIENT, "its twin, which rounds to fp8 alone"
    assert "precision='fp8'" in record.command and "compute_capabilities" not in record.command


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"builder": "tensorrt-rtx", "compute_capabilities": ("8.9", "8.6")}, r"its plan is for 8\.6"),
        ({"builder": "tensorrt-rtx"}, r"this GPU has 8\.7"),
        ({"builder": "tensorrt"}, r"this GPU has 8\.7"),
    ],
)
def test_an_orin_is_refused_before_any_work(
    options: dict[str, Any], got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options["builder"] == "tensorrt":
        install(monkeypatch)
    else:
        pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX: pip install nrd-trt[rtx]")
        monkeypatch.setattr(construct, "find_device", lambda: found(ORIN))
    with pytest.raises(ConfigError, match=f"{NEEDS}{got}; take 'fp16' or 'int8'"):
        build(tmp_path / "absent.pth", tmp_path / "b.nrd", **FP8, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_many_gpus_and_a_bundle_that_is_rebuilt_are_refused_too(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    with pytest.raises(ConfigError, match=rf"{NEEDS}this GPU has 8\.7"):
        build(bundle, tmp_path / "b.nrd", builder="tensorrt", decode="onnx")
    install(monkeypatch, device=replace(ORIN, compute_capability="8.9"))
    with pytest.raises(ConfigError, match=rf"{NEEDS}hardware_compatible=True asks for 8\.0"):
        build(bundle, tmp_path / "b.nrd", builder="tensorrt", decode="onnx", hardware_compatible=True)


@needs_rtx
def test_opening_it_on_an_orin_says_what_to_build_instead(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch)
    remedy = r"precision='fp16', builder='tensorrt', force=True\)"
    with pytest.raises(RunnerError, match=rf"built for 8\.9 or 12\.0, this is 8\.7.*CHECKPOINT.*{remedy}"):
        make_runner(read_bundle(bundle), RunOptions(runner="tensorrt-rtx"))
    ada = Gpu(name="GPU", compute_capability="8.9")
    monkeypatch.setattr(select, "probe_device", lambda: ada)
    assert "precision" not in rebuild_call(bundle, "tensorrt-rtx", "onnx", "fp8")


def test_openvino_does_not_read_it(bundle: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'nrd-trt[openvino]'")
    with (
        pytest.raises(ConfigError, match="runner='openvino': reads no fp8 files; set runner='onnxruntime'"),
        OpenVinoRunner(read_bundle(bundle).onnx_path),
    ):
        pass
