"""`nrd-trt calibrate` as its user calls it, and `nrd_trt.calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from nrd_trt import calibrate
from nrd_trt.calibration.cache import load_ranges, model_sha256
from nrd_trt.calibration.ranges import tensors_to_calibrate
from nrd_trt.calibration.recipes import RECIPES
from nrd_trt.data.classes import CAMVID_CLASSES
from nrd_trt.errors import NrdTrtError
from nrd_trt.graph.precision import to_precision
from tests.artefacts import REPOSITORY, SIZE, SIZE_HW, bundle, checkpoint, onnx_file, workspace, write_model
from tests.cli.conftest import Invoke, printed

# Two small scenes do not show every class.
pytestmark = [
    pytest.mark.filterwarnings("always:classes never:UserWarning"),
    pytest.mark.filterwarnings("always:calibration set. . images, fewer:UserWarning"),
]
QUICK = ("--threads", 1, "-q", "--images", 2)


def test_ranges_of_an_onnx_file(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    result = nrd_trt("calibrate", onnx_file(), "--data", data, "-o", path, *QUICK, "--json")
    found = printed(result)
    assert {"tensors", "images", "coverage"} <= found.keys()
    assert {**json.loads(path.read_text()), "path": str(path)} == found
    ranges = load_ranges(path, model=model_sha256(onnx.load(onnx_file())))
    assert set(ranges.tensors) == set(tensors_to_calibrate(onnx.load(onnx_file()), RECIPES["mse"]))
    assert found["images"] == 2
    assert list(found["coverage"]["pixel_share"]) == list(CAMVID_CLASSES)
    assert sum(found["coverage"]["pixel_share"].values()) == pytest.approx(1)
    unseen = found["coverage"]["never_seen"]
    labels = found["coverage"]["labels"]
    assert (labels["labelled"], sum(labels["pixel_share"].values())) == (2, pytest.approx(1))
    assert unseen and labels["never_predicted"] == unseen  # though the labels of the two scenes show every class
    assert labels["never_labelled"] == [] and labels["images"][unseen[0]] > 0
    expected = f"although their labels show them: {unseen[0]}, labelled on {labels['images'][unseen[0]]} of 2 images"
    assert f"warning: classes never predicted on the calibration images {expected}" in result.stderr
    assert "see with `nrd-trt evaluate` whether" in result.stderr
    said = found["warnings"]
    assert result.stderr.count("warning: ") == len(said) == 2
    assert "2 images, fewer than 8" in said[0] and "never predicted" in said[1]
    text = " ".join(nrd_trt("calibrate", "--help").stdout.split())
    assert f"(default {ranges.recipe.name})" in text


def test_ranges_of_a_checkpoint_are_those_of_its_export(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    arguments = ("--data", data, "--recipe", "minmax", *QUICK)
    result = nrd_trt("calibrate", checkpoint(), "--size", SIZE, "-o", path, *arguments)
    assert result.exit_code == 0, result.stderr
    assert "from 2 images" in result.stdout and "beside it by the labels of 2 images" in result.stdout
    (sky,) = [line.split() for line in result.stdout.splitlines() if line.startswith("  Sky ")]
    assert len(sky) == 5 and sky[2] == "2" and 0 < float(sky[3]) < 1
    with pytest.warns(UserWarning, match="fewer than 8"):
        found = calibrate(onnx_file(), data, recipe="minmax", images=2, threads=1, progress=False)
    assert found.to_dict() == {**load_ranges(path).to_dict(), "path": None}
    assert (found.images, len(found.tensors) > 40, found.path) == (2, True, None)
    assert found.coverage is not None and found.coverage.images["Sky"] == 2


def test_options_reach_the_recipe_and_an_existing_file_needs_force(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(mine := '{"format": 1, "tensors": {}, "note": "mine"}')
    patterns = ("--include", "^decode_head", "--include", "layer7", "--exclude", "aspp")
    options = ("--data", data, "-o", path, "--recipe", "percentile", *patterns, *QUICK, "--fit", "pad")
    result = nrd_trt("calibrate", onnx_file(), *options)
    assert result.exit_code == 2 and "already exists; give --force" in result.stderr
    assert path.read_text() == mine
    result = nrd_trt("calibrate", onnx_file(), *options, "--force")
    assert result.exit_code == 0, result.stderr
    ranges = load_ranges(path)
    assert (ranges.recipe.name, ranges.recipe.include, ranges.recipe.exclude) == (
        "percentile", ("^decode_head", "layer7"), ("aspp",),
    )  # fmt: skip
    assert "pixels" not in ranges.tensors
    keys = []
    for seed in (0, 1):
        with pytest.warns(UserWarning, match="never predicted"):
            found = calibrate(onnx_file(), "synthetic", seed=seed, recipe="minmax", images=2, progress=False)
        keys.append(found.keys.data)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "max"}, "recipe='max': expected one of 'minmax', 'percentile', 'entropy', 'mse'"),
        ({"include": ["layer99"]}, "layer pattern 'layer99': matches none of"),
        ({"data": "nowhere"}, "nowhere: expected a folder of images"),
        ({"size": SIZE_HW}, "size= .* fixed in an ONNX file"),
        ({"num_classes": 11}, "fixed in an ONNX file"),
        ({"images": 1}, "expected different images, got one image"),
        ({"images": 0}, "images=0: expected a whole number, 1 or more"),
        ({"seed": -1}, "seed=-1: expected a whole number, 0 or more"),
        ({"fit": "crop"}, "fit='crop': expected one of"),
        ({"resample": "lanczos"}, "resample='lanczos': expected one of 'cv2', 'pillow'"),
        ({"memory_mb": 0}, "memory_mb=0: expected a number, 1 or more"),
        ({"threads": 0}, "threads=0: expected a whole number, 1 or more"),
        ({"source": bundle}, "expected a checkpoint or an ONNX file, found none"),
        ({"source": lambda: write_model(to_precision(onnx.load(onnx_file()), "fp16"), "16.onnx")}, "got fp16; ranges"),
        ({"source": lambda: REPOSITORY / "README.md"}, "README"),
        ({"source": lambda: broken()}, r"broken\.onnx: expected an ONNX file"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"source": onnx_file, "data": data, "images": 2, "progress": False, **changes}
    source, place = given.pop("source"), given.pop("data")
    with pytest.raises(NrdTrtError, match=message):
        calibrate(source() if callable(source) else source, place, output=tmp_path / "ranges.json", **given)
    assert not (tmp_path / "ranges.json").exists()


def broken() -> Path:
    (path := workspace() / "broken.onnx").write_bytes(b"no model")
    return path
