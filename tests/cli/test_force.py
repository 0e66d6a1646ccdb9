"""`--force` of every verb that writes: what this tool did not write stays, links are refused, nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from nrd_trt.cli.main import FLAGS
from tests.artefacts import bundle, checkpoint, content, listing, onnx_file
from tests.cli.conftest import Invoke

NAME = "fp32_onnxruntime_mask_resize_pillow"  # of `bundle()`
WRITERS = {
    "benchmark": ("out.png", "benchmark {bundle} --runs 1 --warmup 0 --plot {out}"),
    "calibrate": ("out.json", "calibrate {onnx} --data synthetic --images 8 -o {out}"),
    "export": ("out.onnx", "export {checkpoint} --size 64x96 -o {out}"),
    "optimize": (
        "street/optimize.json",
        "optimize {checkpoint} --data {data} -o {folder} --sizes 64x96 --precisions fp32",
    ),
    "package": (f"{NAME}_bundle", "package {bundle} --for triton -o {folder}"),
    "predict": ("masks/scene_0000.png", "predict {bundle} {data}/images -o {folder}"),
    "prune": ("run/log.csv", "prune {checkpoint} --data {data} -o {folder}"),
    "selftest": ("report/selftest.json", "selftest -o {folder}"),
    "train": ("run/log.csv", "train --recipe camvid_mobilenetv2 --data {data} -o {folder}"),
    "tune": ("out.tune.json", "tune {checkpoint} --data {data} -o {bundle_out}"),
    "validate": ("out.html", "validate {bundle} --report {out}"),
    "video": ("out.mp4", "video {data}/images -o {out} --bundle {bundle}"),
}


def words(verb: str, out: Path, data: Path) -> list[str]:
    places = {
        "out": out,
        "folder": out.parent,
        "bundle_out": out.with_name("out.nrd"),
        "data": data,
        "bundle": bundle(),
        "checkpoint": checkpoint(),
        "onnx": onnx_file(),
    }
    return [word.format(**places) for word in WRITERS[verb][1].split()] + ["--force"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for the output; what is beside it does not count."""
    (folder := tmp_path / "place").mkdir()
    return folder


def target(verb: str, place: Path, data: Path) -> Path:
    name = WRITERS[verb][0]
    if verb == "predict":
        name = f"masks/{sorted((data / 'images').iterdir())[0].stem}.png"
    (out := place / name).parent.mkdir(exist_ok=True)
    return out


def test_every_verb_with_force_is_here() -> None:
    """`build` and `sign` write bundles: tests/engine/test_bundle.py and test_signature.py."""
    assert {verb for verb, flags in FLAGS.items() if "force" in flags} == {*WRITERS, "build", "sign"}


@pytest.mark.parametrize("verb", WRITERS)
@pytest.mark.parametrize("kind", ["thesis", "folder", "fifo"])
def test_what_is_not_ours_is_not_replaced(verb: str, kind: str, nrd_trt: Invoke, place: Path, data: Path) -> None:
    out = target(verb, place, data)
    {"thesis": lambda: out.write_text("my thesis"), "folder": out.mkdir, "fifo": lambda: os.mkfifo(out)}[kind]()
    before = listing(place), out.lstat().st_ino
    result = nrd_trt(*words(verb, out, data))
    assert result.exit_code == 2, result.output
    assert str(out) in result.stderr and "choose another name" in result.stderr
    assert (listing(place), out.lstat().st_ino) == before
    assert kind != "thesis" or out.read_text() == "my thesis"


@pytest.mark.parametrize("verb", WRITERS)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_refused(verb: str, dangling: bool, nrd_trt: Invoke, place: Path, tmp_path: Path, data: Path) -> None:
    out, elsewhere = target(verb, place, data), tmp_path / "elsewhere"
    if not dangling:
        elsewhere.write_text("my thesis")
    out.symlink_to(elsewhere)
    before = listing(tmp_path)
    result = nrd_trt(*words(verb, out, data))
    assert result.exit_code == 2, result.output
    assert f"{out}: expected a name of its own, got a symbolic link to {elsewhere}; remove the link" in result.stderr
    assert ("there is nothing where it points to" in result.stderr) == dangling
    assert listing(tmp_path) == before and (dangling or elsewhere.read_text() == "my thesis")


@pytest.mark.parametrize("verb", ["predict", "selftest", "train", "video"])
def test_a_folder_that_is_a_link_to_nothing_is_told(verb: str, nrd_trt: Invoke, place: Path, data: Path) -> None:
    (folder := place / "out").symlink_to(place / "absent")
    line = words(verb, folder / "x.png", data)
    line = [str(folder) if word.endswith("x.png") else word for word in line]
    result = nrd_trt(*line)
    assert result.exit_code == 2, result.output
    assert (
        f"{folder}: expected a name of its own, got a symbolic link to {place}/absent; remove the link" in result.stderr
    )
    assert listing(place) == ["out"]


def test_a_photo_is_no_mask(nrd_trt: Invoke, place: Path, data: Path) -> None:
    out = target("predict", place, data)
    Image.new("RGB", (8, 8)).save(out)
    before = content(place)
    assert nrd_trt(*words("predict", out, data)).exit_code == 2
    video = [f"masks:{out.parent}" if word == str(out) else word for word in words("video", out, data)]
    assert nrd_trt(*video).exit_code == 2
    assert content(place) == before
    out.unlink()
    for _ in range(2):  # masks are replaced by masks
        assert nrd_trt(*words("predict", out, data)).exit_code == 0
        assert nrd_trt(*video).exit_code == 0


@pytest.mark.parametrize("verb", ["benchmark", "export", "validate", "video"])
def test_what_is_ours_is_replaced(verb: str, nrd_trt: Invoke, place: Path, data: Path) -> None:
    out = target(verb, place, data)
    for _ in range(2):
        result = nrd_trt(*words(verb, out, data))
        assert result.exit_code == 0, result.output
    assert listing(place) == [out.name]
