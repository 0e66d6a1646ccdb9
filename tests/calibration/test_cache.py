"""The file of ranges: written whole or not at all, read back the same, refused for other input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.calibration.cache import Keys, Ranges, load_ranges, model_sha256, save_ranges
from nrd_trt.calibration.coverage import Coverage, LabelCoverage
from nrd_trt.calibration.histograms import TensorFigures
from nrd_trt.calibration.recipes import RECIPES
from nrd_trt.data.exposure import Exposure
from nrd_trt.errors import CalibrationError
from tests.artefacts import listing
from tests.helpers import small_export

RANGES = Ranges(
    tensors={"a": 1.5, "b": 1.0},
    figures={"a": TensorFigures(largest=2.0, clipped=0.01, error=None)},
    zero=("b",),
    images=3,
    coverage=Coverage(pixel_share={"Sky": 1.0, "Car": 0.0}, images={"Sky": 3, "Car": 0}, never_seen=("Car",)),
    recipe=replace(RECIPES["mse"], include=("x",)),
    keys=Keys(model="1" * 64, data="2" * 64, recipe="3" * 64),
)


def test_file_is_read_back_for_its_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    shown = LabelCoverage(
        pixel_share={"Sky": 0.0, "Car": 1.0},
        images={"Sky": 0, "Car": 2},
        labelled=2,
        never_labelled=("Sky",),
        never_predicted=("Car",),
    )
    assert RANGES.coverage is not None
    surveyed = replace(
        RANGES,
        coverage=replace(RANGES.coverage, labels=shown),
        exposure=Exposure(images=3, brightness=9.5, brightness_spread=0.5, contrast=4.5, contrast_spread=0.25),
        warnings=("few",),
    )
    for ranges in (RANGES, replace(RANGES, coverage=None, images=4), surveyed):
        save_ranges(ranges, path)
        assert load_ranges(path) == ranges
        assert load_ranges(path, model="1" * 64) == ranges
        assert json.loads(path.read_text()) == json.loads(json.dumps(ranges.to_dict()))
    assert listing(tmp_path) == ["ranges.json"]
    order = ("format", "tensors", "images", "coverage", "zero", "recipe", "keys", "figures")
    assert json.loads(path.read_text()).keys() == {*order, "exposure", "warnings"}
    old = RANGES.to_dict()
    del old["coverage"]["labels"]
    old["tensors"]["b"] = 1  # in a file of version 0.1.0 whole numbers stand where a range is one
    path.write_text(json.dumps({key: old[key] for key in order}, indent=1) + "\n")
    assert load_ranges(path) == RANGES
    message = r"ranges.json: made for other input, the ONNX model: expected f{12}…, got 1{12}…\. Calibrate again"
    with pytest.raises(CalibrationError, match=message):
        load_ranges(path, model="f" * 64)


@pytest.mark.parametrize(
    "change",
    [
        *("", "[]", "{}", "null", "\x80"),
        {"format": 2},
        {"tensors": {"a": 0.0}},
        {"tensors": {"a": -1.0}},
        {"tensors": {"a": float("inf")}},
        {"keys": {"model": "1"}},
        {"recipe": {"name": "mse"}},
        {"recipe": {**RANGES.to_dict()["recipe"], "bins": 1000}},
    ],
)
def test_other_and_damaged_files_are_refused(change: str | dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    with pytest.raises(CalibrationError, match="cannot read them"):  # there is none
        load_ranges(path)
    text = change if isinstance(change, str) else json.dumps({**RANGES.to_dict(), **change})
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CalibrationError, match=r"expected ranges of nrd_trt\.calibrate, cannot read them"):
        load_ranges(path)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    save_ranges(RANGES, path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_ranges(replace(RANGES, tensors={"a": float("inf")}), path)
    assert load_ranges(path) == RANGES
    assert listing(tmp_path) == ["ranges.json"]


def test_key_of_a_model_is_that_of_its_bytes(tmp_path: Path) -> None:
    model = small_export()
    assert model_sha256(model) == model_sha256(type(model).FromString(model.SerializeToString()))
    other = type(model).FromString(model.SerializeToString())
    other.graph.initializer[0].raw_data = other.graph.initializer[0].raw_data[:-1] + b"\x01"
    assert model_sha256(model) != model_sha256(other)
