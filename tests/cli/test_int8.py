"""int8 as it is typed: build, what it records, and what it refuses."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from nrd_trt.calibration import stream
from nrd_trt.calibration.sources import Source, open_source
from nrd_trt.calibration.stream import CalibrationStream
from nrd_trt.engine.bundle import ONNX_FILE, read_bundle
from nrd_trt.graph.metadata import read_facts
from tests.artefacts import SIZE, bundle, checkpoint, onnx_file
from tests.building.test_build import needs_rtx
from tests.cli.conftest import Invoke, one_object

QUICK = ("--min-agreement", 0.8, "--threads", 1, "--images", 3)
OPTIONS = (
    ("--recipe", "mse"), ("--images", 100), ("--seed", 0), ("--memory-mb", 2048), ("--include", "backbone"),
    ("--exclude", "backbone"), ("--quantizer", "own"),
)  # fmt: skip

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
    ranges, options = tmp_path / "ranges.json", ("--precision", "int8", "--builder", "onnxruntime", *QUICK[:-2])
    result = nrd_trt("calibrate", onnx_file(), "--data", "synthetic", "--images", 3, "-o", ranges, "--threads", 1)
    assert result.exit_code == 0, result.stderr
    for name, calibration in (("at_once", ("synthetic", "--images", 3)), ("in_two_steps", (ranges,))):
        result = nrd_trt("build", onnx_file(), "-o", tmp_path / f"{name}.nrd", "--calibration", *calibration, *options)
        assert result.exit_code == 0, result.stderr
    one, two = (read_bundle(tmp_path / f"{name}.nrd") for name in ("at_once", "in_two_steps"))
    assert one.onnx_path.read_bytes() == two.onnx_path.read_bytes()
    assert one.record.to_dict()["calibration_sha256"] == two.record.to_dict()["calibration_sha256"]


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
        (("--precision", "int8", "--calibration", "r.json", "--seed", 0, "--images", 9), "--images, --seed: fixed in"),
        (("--precision", "int8", "--calibration", "r.json", "--quantizer", "modelopt"), "expected images"),
        (
            ("--precision", "int8", "--calibration", "synthetic", "--quantizer", "modelopt", "--recipe", "mse"),
            "--recipe: ",
        ),
        *((option, f"{option[0]}: expected together with --calibration, got none") for option in OPTIONS),
        *(
            (("--calibration", "synthetic", *option), f"{option[0]}: expected --precision int8, got none")
            for option in OPTIONS
            if option[0] not in ("--images", "--seed")
        ),
    ],
)
def test_bad_options_are_refused(options: tuple[object, ...], message: str, nrd_trt: Invoke, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_recorded_command_builds_the_same_bundle(
    precision: str, nrd_trt: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that was calibrated on; the command names no folders, so it is run where they lie."""
    monkeypatch.chdir(data.parent)
    shutil.copy(onnx_file(), "m.onnx")
    options = ("--precision", precision, "--builder", "onnxruntime", "--calibration", data, "--seed", 3, *QUICK)
    assert nrd_trt("build", "m.onnx", "-o", "NAME.nrd", *options).exit_code == 0
    facts = read_bundle(Path("NAME.nrd")).record.to_dict()
    assert f"--calibration {data.name} --images 3 --seed 3" in facts["command"]
    assert facts["calibration_sha256"] == CalibrationStream(data, read_facts(onnx.load("m.onnx"))).sha256
    again = shlex.split(facts["command"])
    assert nrd_trt(*again[1:], "--threads", 1).exit_code == 0
    assert read_bundle(Path("NAME.nrd")).record.to_dict() == facts


def test_an_int8_bundle_is_rebuilt_without_its_images(nrd_trt: Invoke, tmp_path: Path) -> None:
    first, second = tmp_path / "a.nrd", tmp_path / "b.nrd"
    options = ("--builder", "onnxruntime", *QUICK)
    made = ("--precision", "int8", "--calibration", "synthetic")
    assert nrd_trt("build", onnx_file(), "-o", first, *made, *options).exit_code == 0
    result = nrd_trt("build", first, "-o", second, "--precision", "int8", *options[:-2])
    assert result.exit_code == 0, result.stderr
    one, two = read_bundle(first), read_bundle(second)
    assert one.record.to_dict()["calibration_sha256"] == two.record.to_dict()["calibration_sha256"] is not None
    assert one.onnx_path.read_bytes() == two.onnx_path.read_bytes()


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (onnx_file, ("--precision", "fp32")),
        (lambda: bundle("fp16"), ()),
        (lambda: bundle("fp16").joinpath(ONNX_FILE), ("--checkpoint", "c.safetensors")),
    ],
)
def test_a_calibration_that_serves_nothing_is_refused(
    source: Callable[[], Path], options: tuple[str, ...], nrd_trt: Invoke, tmp_path: Path
) -> None:
    target = tmp_path / "a.nrd"
    result = nrd_trt("build", source(), "-o", target, "--calibration", "synthetic", *options, "--json")
    refused(result, "--calibration: expected fp16, bf16 or int8", "leave it out")
    assert not target.exists()


def test_calibration_images_show_what_16_bits_would_lose(nrd_trt: Invoke, tmp_path: Path) -> None:
    """The same file, but for what more images show; every tensor of this network fits, so nothing is kept."""
    options = ("--precision", "fp16", "--builder", "onnxruntime", *QUICK)
    result = nrd_trt("build", onnx_file(), "-o", tmp_path / "a.nrd", "--calibration", "synthetic", *options)
    assert result.exit_code == 0, result.stderr
    assert read_bundle(tmp_path / "a.nrd").record.to_dict()["precision"]["kept_because"] == {}
