"""int8 as it is typed: build, what it records, and building it again. What is refused: tests/calibration."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import onnx
import pytest

from nrd_trt.calibration.stream import CalibrationStream
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.graph.metadata import read_facts
from tests.artefacts import SIZE, checkpoint, needs_rtx, onnx_file
from tests.cli.conftest import Invoke, one_object

QUICK = ("--min-agreement", 0.8, "--threads", 1, "--images", 3)

pytestmark = [
    pytest.mark.filterwarnings("ignore:classes never:UserWarning"),
    pytest.mark.filterwarnings("ignore:calibration set. . images, fewer:UserWarning"),
]


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
    assert facts["command"].startswith(f"nrd-trt build {checkpoint().name} -o NAME.nrd --precision int8 --builder")
    assert f"--size {SIZE}" in facts["command"] and "--calibration synthetic --images 3" in facts["command"]


def test_ranges_measured_before_build_the_same_file(nrd_trt: Invoke, tmp_path: Path) -> None:
    ranges, options = tmp_path / "ranges.json", ("--precision", "int8", "--builder", "onnxruntime", *QUICK[:-2])
    result = nrd_trt("calibrate", onnx_file(), "--data", "synthetic", "--images", 3, "-o", ranges, "--threads", 1)
    assert result.exit_code == 0, result.stderr
    for name, calibration in (("at_once", ("synthetic", "--images", 3)), ("in_two_steps", (ranges,))):
        result = nrd_trt("build", onnx_file(), "-o", tmp_path / f"{name}.nrd", "--calibration", *calibration, *options)
        assert result.exit_code == 0, result.stderr
    one, two = (read_bundle(tmp_path / f"{name}.nrd") for name in ("at_once", "in_two_steps"))
    assert one.onnx_path.read_bytes() == two.onnx_path.read_bytes()
    assert one.record.calibration_sha256 == two.record.calibration_sha256
    again = nrd_trt("build", tmp_path / "at_once.nrd", "-o", tmp_path / "b.nrd", *options)  # without its images
    assert again.exit_code == 0, again.stderr
    three = read_bundle(tmp_path / "b.nrd")
    assert three.onnx_path.read_bytes() == one.onnx_path.read_bytes()
    assert three.record.calibration_sha256 == one.record.calibration_sha256 is not None


@pytest.mark.filterwarnings("default:the ranges are measured on:UserWarning")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_recorded_command_builds_the_same_bundle(
    precision: str, nrd_trt: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that was calibrated on; the command names no folders, so it is run where they lie."""
    monkeypatch.chdir(data.parent)
    shutil.copy(onnx_file(), "m.onnx")
    options = ("--precision", precision, "--builder", "onnxruntime", "--calibration", data, "--seed", 3, *QUICK)
    options += ("--exclude", "^decode_head", "--exclude", "layer7", "--data", data) if precision == "int8" else ()
    result = nrd_trt("build", "m.onnx", "-o", "NAME.nrd", *options)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("the figures flatter int8; give others as --calibration.") == (precision == "int8")
    record = read_bundle(Path("NAME.nrd")).record
    assert f"--calibration {data.name} --images 3 --seed 3" in record.command
    assert record.calibration_sha256 == CalibrationStream(data, read_facts(onnx.load("m.onnx"))).sha256
    assert record.precision.kept_because == {}  # every tensor of this network fits 16 bits
    again = shlex.split(record.command)
    assert nrd_trt(*again[1:], "--threads", 1).exit_code == 0
    assert read_bundle(Path("NAME.nrd")).record == record
