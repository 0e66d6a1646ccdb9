"""What a build calibrates with: what it measures once, what it refuses, and how it is made again."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pytest

from nrd_trt import zoo
from nrd_trt.calibration import shipped, stream
from nrd_trt.calibration.cache import Keys, Ranges, load_ranges, model_sha256, save_ranges
from nrd_trt.calibration.calibrator import Calibrator, make_calibrator
from nrd_trt.calibration.ranges import measure_ranges, tensors_to_calibrate
from nrd_trt.calibration.recipes import RECIPES
from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.synthetic import street_scene
from nrd_trt.errors import CalibrationError, ConfigError
from nrd_trt.exporting.precision import apply_precision
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import read_facts, write_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.quantize import quantized_layers
from tests.helpers import small_export

HEAD = r"^decode_head\.aspp"
pytestmark = [
    pytest.mark.filterwarnings("ignore:classes never:UserWarning"),
    pytest.mark.filterwarnings("ignore:calibration set. . images, fewer:UserWarning"),
]


def calibrator(source: Path | str = "synthetic", **changes: Any) -> Calibrator:
    quick = {"images": 2, "recipe": "minmax"} if str(source) == "synthetic" else {}
    return Calibrator(source, **{**quick, "include": [HEAD], "threads": 1, "progress": False, **changes})


@mock.patch.object(stream, "open_images", wraps=stream.open_images)
def test_images_are_read_and_ranges_measured_once(opened: mock.Mock) -> None:
    model, made = small_export(), calibrator()
    assert made.sha256 is None
    layers = made.layers(model)
    typed = made.quantize(model)
    assert quantized_layers(typed) == layers and len(layers) > 1
    assert made.sha256 == made.feeds(model).sha256
    assert made.feeds(select_outputs(model, "mask")) is made.feeds(model)  # they differ in their outputs alone
    fewer = made.without(layers[1:])
    assert quantized_layers(fewer.quantize(model)) == layers[:1]
    assert made.layers(model) == layers, "the other is as it was"
    opened.assert_called_once()


def test_images_that_masks_are_judged_on_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="images that the masks are judged on, so the figures flatter int8"):
        assert calibrator(tmp_path / "a" / "..", validation=tmp_path).warn_of_same_images()
    for source, judged in ((tmp_path, None), (tmp_path, tmp_path / "val"), ("synthetic", tmp_path)):
        assert not calibrator(source, validation=judged).warn_of_same_images()


def test_a_file_of_ranges_gives_the_same_file(tmp_path: Path) -> None:
    model, made = small_export(), calibrator()
    plain = select_outputs(model, "mask")
    tensors = tensors_to_calibrate(plain, RECIPES["mse"])
    measured = measure_ranges(plain, made.feeds(plain), tensors, RECIPES["minmax"], threads=1, progress=False)
    save_ranges(measured, tmp_path / "ranges.json")
    read = calibrator(tmp_path / "ranges.json")
    assert read.quantize(model) == made.quantize(model)
    assert (read.has_images, made.has_images, read.sha256) == (False, True, made.sha256)
    save_ranges(replace(measured, keys=replace(measured.keys, model="f" * 64)), tmp_path / "ranges.json")
    with pytest.raises(CalibrationError, match=rf"the ONNX model: expected {model_sha256(plain)[:12]}"):
        calibrator(tmp_path / "ranges.json").quantize(model)


def test_ranges_that_ship_serve_files_of_their_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any size and form, said aloud; not where images are asked for, nor where a tensor has another name."""
    checkpoint, folder = tmp_path / "a.safetensors", tmp_path / "zoo"
    checkpoint.write_bytes(b"weights")
    folder.mkdir()
    monkeypatch.setattr(shipped, "FOLDER", folder)
    model = onnx.ModelProto.FromString(small_export().SerializeToString())
    write_facts(model, replace(read_facts(model), checkpoint_sha256=sha256_file(checkpoint)))
    plain, made = small_export(), calibrator()
    tensors = made.ranges(plain, tensors_to_calibrate(plain, RECIPES["minmax"]))
    keys = Keys(model="1" * 64, data="2" * 64, recipe="3" * 64, checkpoint=sha256_file(checkpoint))
    ranges = Ranges(tensors=tensors, figures={}, zero=(), images=7, coverage=None, recipe=RECIPES["minmax"], keys=keys)
    given: dict[str, Any] = {**NOTHING, "precision": "int8", "fit": None, "threads": 1, "progress": False}
    save_ranges(replace(ranges, keys=replace(keys, checkpoint="f" * 64)), folder / "other.json")
    assert make_calibrator(None, checkpoint=checkpoint, **given) is None
    save_ranges(ranges, folder / "ours.json")
    found = make_calibrator(None, checkpoint=checkpoint, **given | {"include": [HEAD]})
    assert found is not None
    with pytest.warns(UserWarning, match="the ranges are those that ship for this checkpoint, measured on 7 images"):
        assert found.quantize(model) == made.quantize(model)
    with pytest.raises(ConfigError, match="images=: expected together with calibration="):
        make_calibrator(None, checkpoint=checkpoint, **given | {"images": 9})
    assert make_calibrator(None, checkpoint=checkpoint, **given | {"precision": "fp16"}) is None
    with pytest.raises(CalibrationError, match=r"ours\.json: made for other input"):
        Calibrator(folder / "ours.json", threads=1).ranges(plain, tensors)
    save_ranges(replace(ranges, tensors={"elsewhere": 1.0}), folder / "ours.json")
    with pytest.raises(CalibrationError, match=r"lack .*pixels.*give images as calibration="):
        Calibrator(folder / "ours.json", threads=1).quantize(model)


def test_every_network_of_the_zoo_has_ranges() -> None:
    for checkpoint in Path(zoo.__file__).parent.glob("*.safetensors"):
        path = shipped.shipped_ranges(checkpoint)
        assert path is not None and path.stem == checkpoint.stem
        assert len(load_ranges(path).tensors) > 20


def test_arguments_make_it_again(tmp_path: Path) -> None:
    made = calibrator(exclude=["a"], seed=3, quantizer="own")
    nothing = {
        "images": None,
        "seed": None,
        "recipe": None,
        "quantizer": None,
        "include": (),
        "exclude": (),
        "target": None,
    }
    given = {**nothing, "calibration": "synthetic", "images": 2, "seed": 3}
    assert vars(made.arguments("fp16")) == given
    layers = {"include": (HEAD,), "exclude": ("a",)}
    assert vars(made.arguments("int8")) == {**given, "recipe": "minmax", "quantizer": "own", **layers}
    assert made.without(["x.1/Conv"]).arguments("int8").exclude == ("a", r"^x\.1/Conv$")
    ranges = calibrator(tmp_path / "ranges.json").arguments("int8")
    assert vars(ranges) == {**nothing, "calibration": "ranges.json", "include": (HEAD,)}


def test_what_speaks_against_the_images_is_warned_of_and_kept_in_a_file_of_ranges(tmp_path: Path) -> None:
    model, dark = small_export(), tmp_path / "dark"
    dark.mkdir()
    for seed in range(8):
        write_rgb(dark / f"{seed}.png", street_scene(20 + seed, (48, 64)).image // 4)
    with pytest.warns(UserWarning) as caught:
        made = calibrator(images=7, validation=dark, include=["aspp.convs.0"])
        ranges = made.ranges(model, ["pixels"])
    texts = [str(warning.message) for warning in caught]
    assert [text for text in texts if "calibration set: 7 images, fewer than 8" in text] == texts[:1]
    assert "calibration set: exposed otherwise than the images of data=: brightness" in texts[1]
    assert len(texts) == 3 and texts[2].startswith("classes never predicted")
    assert ranges.keys() == {"pixels"}
    plain = select_outputs(model, "mask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = measure_ranges(plain, made.feeds(plain), ["pixels"], RECIPES["minmax"], threads=1, progress=False)
    assert measured.warnings == (texts[0], texts[2])
    assert made.warnings == tuple(texts)
    save_ranges(measured, tmp_path / "ranges.json")
    with pytest.warns(UserWarning) as again:
        calibrator(tmp_path / "ranges.json", validation=dark).ranges(model, ["pixels"])
    recorded = " (recorded in ranges.json)"
    assert [str(warning.message) for warning in again] == [texts[0] + recorded, texts[2] + recorded, texts[1]]


NOTHING: dict[str, Any] = dict.fromkeys(("recipe", "images", "seed", "memory_mb", "include", "exclude", "quantizer"))
OPTIONS = {"recipe": "mse", "images": 100, "seed": 0, "memory_mb": 2048, "include": ["a"], "exclude": ["a"]}


def test_a_precision_is_made_by_a_calibrator_of_that_precision_and_no_other() -> None:
    model, made = small_export(), calibrator()
    assert set(made.to("fp8").layers(model)) < set(made.layers(model)), "HEAD has depthwise convolutions"
    assert (made.precision, made.to("fp8").precision) == ("int8", "fp8")
    with pytest.raises(ConfigError, match=r"^target='cpu': no runtime of a CPU multiplies fp8"):
        calibrator(target="cpu").to("fp8")
    for other in (made, None):
        with pytest.raises(ConfigError, match=r"^precision='fp8': give calibration="):
            apply_precision(model, "fp8", {}, other)


@pytest.mark.parametrize(
    ("source", "precision", "options", "message"),
    [
        ("synthetic", "int8", {"recipe": "best"}, "recipe='best': expected one of"),
        ("synthetic", "int8", {"quantizer": "other"}, "quantizer='other': expected one of 'own', 'modelopt'"),
        ("synthetic", "int8", {"images": 0}, "images=0: expected a whole number, 1 or more"),
        ("synthetic", "int8", {"seed": -1}, "seed=-1: expected a whole number, 0 or more"),
        ("synthetic", "int8", {"memory_mb": "much"}, "memory_mb='much': expected a number, 1 or more"),
        ("synthetic", "int8", {"include": "a"}, "include='a': expected a list"),
        ("r.json", "int8", {"recipe": "mse"}, "recipe=: fixed in a file of ranges"),
        ("r.json", "int8", {"seed": 0, "images": 9}, "images=, seed=: fixed in a file of ranges"),
        ("r.json", "int8", {"quantizer": "modelopt"}, "expected images as calibration="),
        ("synthetic", "int8", {"target": "tpu"}, "target='tpu': expected one of 'gpu', 'cpu'"),
        ("synthetic", "int8", {"quantizer": "modelopt", "target": "cpu"}, "target=: quantizer='modelopt' knows"),
        ("synthetic", "fp16", {"target": "cpu"}, "target=: expected precision='int8' or 'fp8', got fp16"),
        (None, "int8", {"target": "cpu"}, "target=: expected together with calibration="),
        ("synthetic", "int8", {"quantizer": "modelopt", "recipe": "mse"}, "recipe=: quantizer='modelopt' knows"),
        *((None, None, {n: v}, f"^{n}=: expected together with calibration=, got none") for n, v in OPTIONS.items()),
        (None, "int8", {"quantizer": "own"}, "expected together with calibration=, got none"),
        *(
            ("synthetic", None, {n: v}, f"^{n}=: expected precision='int8' or 'fp8', got none")
            for n, v in OPTIONS.items()
            if n not in ("images", "seed")
        ),
        ("synthetic", "fp8", {"target": "cpu"}, "target='cpu': no runtime of a CPU multiplies fp8"),
        ("synthetic", "fp8", {"quantizer": "modelopt"}, "quantizer='modelopt': expected precision='int8', got fp8"),
        (5, "int8", {}, "calibration=5: expected a path"),
    ],
)
def test_bad_arguments(source: Any, precision: str | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_calibrator(source, precision=precision, fit=None, threads=1, progress=False, **{**NOTHING, **options})


def test_nothing_is_made_of_nothing() -> None:
    assert make_calibrator(None, precision="fp16", fit=None, threads=1, progress=False, **NOTHING) is None
    made = make_calibrator("synthetic", precision=None, fit="pad", threads=1, progress=False, **NOTHING | {"images": 2})
    assert made is not None
    assert isinstance(made.quantize(small_export()), onnx.ModelProto)
