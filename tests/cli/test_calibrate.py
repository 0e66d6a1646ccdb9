"""`nrd-trt calibrate` as its user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from nrd_trt.calibration.cache import load_ranges, model_sha256
from nrd_trt.calibration.recipes import RECIPES
from nrd_trt.calibration.selection import tensors_to_calibrate
from nrd_trt.data.classes import CAMVID_CLASSES
from nrd_trt.graph.precision import to_precision
from tests.artefacts import REPOSITORY, SIZE, bundle, checkpoint, environment, listing, onnx_file, write_model
from tests.cli.conftest import Invoke, one_object

# Two small scenes do not show every class.
pytestmark = pytest.mark.filterwarnings("always:classes never predicted:UserWarning")
QUICK = ("--threads", 1, "-q", "--images", 2)


def test_ranges_of_an_onnx_file(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    result = nrd_trt("calibrate", onnx_file(), "--data", data, "-o", path, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    printed = one_object(result.stdout)
    assert {"tensors", "images", "coverage"} <= printed.keys()
    assert {**json.loads(path.read_text()), "path": str(path)} == printed
    ranges = load_ranges(path, model=model_sha256(onnx.load(onnx_file())))
    assert set(ranges.tensors) == set(tensors_to_calibrate(onnx.load(onnx_file()), RECIPES["mse"]))
    assert printed["images"] == 2
    assert list(printed["coverage"]["pixel_share"]) == list(CAMVID_CLASSES)
    assert sum(printed["coverage"]["pixel_share"].values()) == pytest.approx(1)


def test_ranges_of_a_checkpoint_are_those_of_its_export(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "checkpoint.json", tmp_path / "onnx.json"
    arguments = ("--data", data, "--recipe", "minmax", *QUICK)
    result = nrd_trt("calibrate", checkpoint(), "--size", SIZE, "-o", first, *arguments)
    assert result.exit_code == 0, result.stderr
    assert nrd_trt("calibrate", onnx_file(), "-o", second, *arguments).exit_code == 0
    assert load_ranges(first) == load_ranges(second)
    assert "from 2 images" in result.stdout and "Sky" in result.stdout


def test_options_reach_the_recipe(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    patterns = ("--include", "^decode_head", "--include", "layer7", "--exclude", "aspp")
    result = nrd_trt(
        "calibrate",
        onnx_file(),
        "--data",
        data,
        "-o",
        path,
        "--recipe",
        "percentile",
        *patterns,
        *QUICK,
        "--fit",
        "pad",
    )
    assert result.exit_code == 0, result.stderr
    ranges = load_ranges(path)
    assert (ranges.recipe.name, ranges.recipe.include, ranges.recipe.exclude) == (
        "percentile", ("^decode_head", "layer7"), ("aspp",),
    )  # fmt: skip
    assert "pixels" not in ranges.tensors


def test_scenes_without_images(nrd_trt: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    keys = []
    for seed in (0, 1):
        arguments = ("--data", "synthetic", "--seed", seed, "--recipe", "minmax", "--force", *QUICK)
        assert nrd_trt("calibrate", onnx_file(), "-o", path, *arguments).exit_code == 0
        keys.append(load_ranges(path).keys["data"])
    assert keys[0] != keys[1]


def test_classes_never_seen_are_warned_of(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    result = nrd_trt("calibrate", onnx_file(), "--data", data, "-o", path, *QUICK, "--json")
    unseen = one_object(result.stdout)["coverage"]["never_seen"]
    assert unseen  # two scenes of 50x70 pixels do not show everything
    assert f"warning: classes never predicted on the calibration images: {unseen[0]}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "max"), "--recipe 'max': expected one of minmax, percentile, entropy, mse"),
        (("--include", "layer99"), "layer pattern 'layer99': matches none of"),
        (("--exclude", "a["), "layer pattern 'a[': expected a regular expression"),
        (("--data", "nowhere"), "nowhere: expected a folder of images"),
        (("--size", SIZE), "fixed in an ONNX file"),
        (("--images", "1"), "expected different images, got one image"),
        (("--fit", "crop"), "--fit 'crop': expected one of"),
        (("--memory-mb", "0"), "memory-mb"),
    ],
)
def test_bad_input_exits_2(
    arguments: tuple[str, ...], message: str, nrd_trt: Invoke, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ranges.json"
    result = nrd_trt("calibrate", onnx_file(), "--data", data, "-o", path, *QUICK, *arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert listing(tmp_path) == listing(tmp_path / "data") or not path.exists()


def test_bad_sources_exit_2(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    half = write_model(to_precision(onnx.load(onnx_file()), "fp16"), "half.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    for source, message in (
        (half, "expected an fp32 file, got fp16"),
        (broken, "not a valid ONNX file"),
        (bundle(), "expected a checkpoint or an ONNX file, found none"),
        (tmp_path / "missing.pth", "missing.pth: expected a checkpoint or an ONNX file"),
    ):
        result = nrd_trt("calibrate", source, "--data", data, "-o", tmp_path / "ranges.json", *QUICK)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
        assert not (tmp_path / "ranges.json").exists()


def test_existing_file_needs_force(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text("mine")
    arguments = ("calibrate", onnx_file(), "--data", data, "-o", path, "--recipe", "minmax", *QUICK)
    result = nrd_trt(*arguments)
    assert result.exit_code == 2 and "already exists; give --force" in result.stderr
    assert path.read_text() == "mine"
    assert nrd_trt(*arguments, "--force").exit_code == 0
    assert load_ranges(path).images == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stop_in_the_middle_leaves_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    command = [sys.executable, str(REPOSITORY / "scripts/calibrate.py"), str(onnx_file()), "--data", "synthetic"]
    command += ["--images", "2000", "--threads", "1", "-o", str(path)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("reading synthetic"):
                break
        time.sleep(1)
        os.kill(process.pid, number)
        process.stderr.read()
        assert process.wait(timeout=60) == code
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
    assert listing(tmp_path) == []


def test_help_names_the_recipe_that_is_used(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    assert nrd_trt("calibrate", onnx_file(), "--data", data, "-o", path, *QUICK).exit_code == 0
    used = load_ranges(path).recipe.name
    for verb in ("build", "calibrate", "tune"):
        text = " ".join(nrd_trt(verb, "--help").stdout.split())
        assert f"entropy or mse (default {used})." in text or f"entropy or mse. [default: {used}]" in text, verb
