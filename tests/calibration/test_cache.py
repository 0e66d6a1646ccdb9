"""The file of ranges: written whole or not at all, read back the same, refused for other input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.calibration import cache
from nrd_trt.calibration.cache import Ranges, TensorFigures, load_ranges, model_sha256, save_ranges
from nrd_trt.calibration.coverage import Coverage
from nrd_trt.calibration.recipes import RECIPES
from nrd_trt.errors import CalibrationError
from tests.artefacts import environment, listing
from tests.helpers import small_export

RANGES = Ranges(
    tensors={"a": 1.5, "b": 1.0},
    figures={"a": TensorFigures(largest=2.0, clipped=0.01, error=None)},
    zero=("b",),
    images=3,
    coverage=Coverage(pixel_share={"Sky": 1.0, "Car": 0.0}, images={"Sky": 3, "Car": 0}),
    recipe=replace(RECIPES["mse"], include=("x",)),
    keys={"model": "1" * 64, "data": "2" * 64, "recipe": "3" * 64},
)


def test_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    save_ranges(RANGES, path)
    assert load_ranges(path) == RANGES
    assert load_ranges(path, model="1" * 64, data="2" * 64, recipe="3" * 64) == RANGES
    save_ranges(replace(RANGES, coverage=None, images=4), path)
    assert load_ranges(path) == replace(RANGES, coverage=None, images=4)
    assert listing(tmp_path) == ["ranges.json"]
    assert {"tensors", "images", "coverage"} <= json.loads(path.read_text()).keys()


@pytest.mark.parametrize(("key", "named"), [("model", "the ONNX model"), ("data", "the images"), ("recipe", "recipe")])
def test_mismatch_names_what_differs(key: str, named: str, tmp_path: Path) -> None:
    save_ranges(RANGES, tmp_path / "ranges.json")
    expected = {**RANGES.keys, key: "f" * 64}
    with pytest.raises(
        CalibrationError, match=rf"ranges.json: made for other input, .*{named}: expected ffff"
    ) as found:
        load_ranges(tmp_path / "ranges.json", **expected)
    assert str(found.value).count("expected") == 1  # the two that agree are not named


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "\x80"],
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CalibrationError, match=r"expected ranges of `nrd-trt calibrate`, cannot read them"):
        load_ranges(path)
    with pytest.raises(CalibrationError, match="cannot read them"):
        load_ranges(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"tensors": {"a": 0.0}},
        {"tensors": {"a": -1.0}},
        {"tensors": {"a": float("inf")}},
        {"keys": {"model": "1"}},
        {"recipe": {"name": "mse"}},
    ],
)
def test_damaged_values_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({**RANGES.to_dict(), **change}))
    with pytest.raises(CalibrationError, match="cannot read them"):
        load_ranges(path)


def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ranges.json"
    save_ranges(RANGES, path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_ranges(replace(RANGES, tensors={"a": float("nan")}), path)

    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        with self.open("w") as file:
            file.write("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        save_ranges(replace(RANGES, images=9), path)
    monkeypatch.undo()
    assert load_ranges(path) == RANGES
    assert listing(tmp_path) == ["ranges.json"]


def test_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    save_ranges(RANGES, path)
    code = """
import os, signal, sys
from pathlib import Path
import nrd_trt.files as files
from nrd_trt.calibration.cache import load_ranges, save_ranges
files._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
save_ranges(load_ranges(Path(sys.argv[1])), Path(sys.argv[1]))
"""
    result = subprocess.run([sys.executable, "-c", code, str(path)], env=environment(), capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    assert load_ranges(path) == RANGES
    assert len(listing(tmp_path)) == 2  # the temporary file of the dead process
    save_ranges(RANGES, path)
    assert listing(tmp_path) == ["ranges.json"]


def test_key_of_a_model_is_that_of_its_bytes(tmp_path: Path) -> None:
    model = small_export()
    assert model_sha256(model) == model_sha256(type(model).FromString(model.SerializeToString()))
    other = type(model).FromString(model.SerializeToString())
    other.graph.initializer[0].raw_data = other.graph.initializer[0].raw_data[:-1] + b"\x01"
    assert model_sha256(model) != model_sha256(other)
