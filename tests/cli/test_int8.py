"""int8 as it is typed: build, what it records, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nrd_trt.calibration import stream
from nrd_trt.calibration.sources import Source, open_source
from nrd_trt.engine.bundle import read_bundle
from tests.artefacts import SIZE, checkpoint, onnx_file
from tests.cli.conftest import Invoke, one_object
from tests.pipeline.test_build import needs_rtx

QUICK = ("--min-agreement", 0.8, "--threads", 1, "--images", 3)

pytestmark = pytest.mark.filterwarnings("ignore:classes never predicted:UserWarning")


def refused(result: Any, *expected: str) -> None:
    assert result.exit_code == 2, result.stderr
    error = one_object(result.stdout)["error"]
    assert all(part in error["message"] for part in expected), error["message"]
    assert "Traceback" not in result.stderr


@needs_rtx
def test_one_command_from_checkpoint_to_int8_engine(nrd_trt: Invoke, tmp_path: Path) -> None:
    target = tmp_path / "int8.nrd"
    options = ("--precision", "int8", "--calibration", "synthetic", "--size", SIZE, "--builder", "tensorrt-rtx")
    result = nrd_trt("build", checkpoint(), "-o", target, *options, *QUICK, "--json")
    assert result.exit_code in (0, 1), result.stderr  # 1: parity on pictures this small
    facts = one_object(result.stdout)
    assert facts["precision"]["asked"] == "int8"
    assert facts["precision"]["found"]["int8"] > 60
    assert len(facts["precision"]["int8_layers"]) > 50
    assert len(facts["calibration_sha256"]) == 64
    assert read_bundle(target).graph.precision == "int8"
    assert "--precision int8" in facts["command"] and "--calibration synthetic --images 3" in facts["command"]


def test_ranges_measured_before_build_the_same_file(nrd_trt: Invoke, tmp_path: Path) -> None:
    ranges, options = tmp_path / "ranges.json", ("--precision", "int8", "--builder", "onnxruntime", *QUICK)
    result = nrd_trt("calibrate", onnx_file(), "--data", "synthetic", "--images", 3, "-o", ranges, "--threads", 1)
    assert result.exit_code == 0, result.stderr
    for name, calibration in (("at_once", "synthetic"), ("in_two_steps", ranges)):
        result = nrd_trt("build", onnx_file(), "-o", tmp_path / f"{name}.nrd", "--calibration", calibration, *options)
        assert result.exit_code == 0, result.stderr
    one, two = (read_bundle(tmp_path / f"{name}.nrd") for name in ("at_once", "in_two_steps"))
    assert one.onnx_path.read_bytes() == two.onnx_path.read_bytes()
    assert one.facts["calibration_sha256"] == two.facts["calibration_sha256"]


def test_ranges_of_another_model_are_refused(nrd_trt: Invoke, tmp_path: Path) -> None:
    ranges = tmp_path / "ranges.json"
    result = nrd_trt("calibrate", onnx_file("logits"), "--data", "synthetic", "--images", 3, "-o", ranges)
    assert result.exit_code == 0, result.stderr
    options = ("--precision", "int8", "--builder", "onnxruntime", "--calibration", ranges, "--json")
    refused(nrd_trt("build", onnx_file(), "-o", tmp_path / "a.nrd", *options), "ranges.json", "the ONNX model")
    assert not (tmp_path / "a.nrd").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int8"), "give --calibration"),
        (("--precision", "fp16", "--calibration", "r.json"), "serves --precision int8 only"),
        (("--precision", "int8", "--calibration", "nowhere"), "nowhere"),
        (("--precision", "int8", "--calibration", "synthetic", "--recipe", "best"), "expected one of"),
        (("--precision", "int8", "--calibration", "synthetic", "--quantizer", "other"), "expected one of"),
        (("--precision", "int8", "--calibration", "synthetic", "--exclude", "no_such"), "matches none"),
        (("--precision", "int8", "--calibration", "r.json", "--recipe", "mse"), "fixed in a file"),
        (("--precision", "int8", "--calibration", "r.json", "--quantizer", "modelopt"), "expected images"),
    ],
)
def test_bad_options_are_refused(options: tuple[str, ...], message: str, nrd_trt: Invoke, tmp_path: Path) -> None:
    target = tmp_path / "a.nrd"
    refused(nrd_trt("build", onnx_file(), "-o", target, "--builder", "onnxruntime", *options, "--json"), message)
    assert not target.exists()


def test_images_are_surveyed_once(nrd_trt: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_counted(place: str, **options: Any) -> Source:
        opened.append(place)
        return open_source(place, **options)

    monkeypatch.setattr(stream, "open_source", open_counted)
    options = ("--precision", "int8", "--calibration", data, "--builder", "onnxruntime", *QUICK)
    assert nrd_trt("build", onnx_file(), "-o", tmp_path / "a.nrd", *options).exit_code == 0
    assert opened == [str(data)]


def test_calibration_images_show_what_16_bits_would_lose(nrd_trt: Invoke, tmp_path: Path) -> None:
    """The same file, but for what more images show; every tensor of this network fits, so nothing is kept."""
    options = ("--precision", "fp16", "--builder", "onnxruntime", *QUICK)
    result = nrd_trt("build", onnx_file(), "-o", tmp_path / "a.nrd", "--calibration", "synthetic", *options)
    assert result.exit_code == 0, result.stderr
    assert read_bundle(tmp_path / "a.nrd").facts["precision"]["kept_because"] == {}
