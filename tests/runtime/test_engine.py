"""Any file in, an engine out; any image in, a mask of its size out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import nrd_trt
from nrd_trt.data.preprocessing import FITS, fit_image, normalise
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, Bundle
from nrd_trt.errors import BundleError, CheckpointError, ConfigError, ExportError, RunnerError, ShapeError
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.runtime.engine import Engine, open_bundle, open_engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.select import RunOptions
from nrd_trt.runtime.torch_runner import TorchRunner
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import CheckpointOptions, Fit, InputForm, InputShape, Range
from tests.artefacts import (
    SIZE_HW,
    bundle,
    checkpoint,
    copy_of,
    onnx_file,
    read_facts_of,
    rewrite_facts,
    trained_model,
)
from tests.engine.records import record
from tests.helpers import cached_small_model, small_export
from tests.runtime.bench import HostRunner


def picture(height: int, width: int) -> np.ndarray:
    return street_scene(3, (max(height, 32), max(width, 32))).image[:height, :width]


def torch_mask(rgb: np.ndarray, fit: Fit) -> np.ndarray:
    """Do by hand what a bundle of the trained network does."""
    network = trained_model()
    fitted = fit_image(rgb, InputShape.static(SIZE_HW), network.info, fit)
    mask = network.predict(torch.from_numpy(normalise(fitted.image[None], network.info)))[0]
    return fitted.restore(mask.numpy().astype(np.uint8))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(64, 96), (61, 47), (33, 95), (1, 1), (151, 203)])
def test_mask_has_the_images_size_and_the_networks_classes(size: tuple[int, int], fit: Fit) -> None:
    rgb = picture(*size)
    predictor = nrd_trt.open_bundle(bundle(fit=fit), threads=1)
    if fit == "pad" and size == (151, 203):
        with pytest.raises(ShapeError, match="fit='letterbox' or fit='resize'"):
            predictor.predict(rgb)
        return
    before = rgb.copy()
    mask = predictor.predict(rgb)
    assert (mask.dtype, mask.shape) == (np.uint8, size)
    np.testing.assert_array_equal(rgb, before)
    assert (mask == torch_mask(rgb, fit)).mean() > 0.999
    with pytest.raises(ShapeError, match=r"expected \(H, W, 3\) uint8 RGB"):
        predictor.predict(rgb[..., 0])


def test_confidence_comes_back_to_the_image_as_the_mask_does() -> None:
    rgb, network = picture(61, 47), trained_model()
    fitted = fit_image(rgb, InputShape.static(SIZE_HW), network.info, "letterbox")
    with TorchRunner(network, confidence=True) as reference:
        want = fitted.restore(reference.infer({"image": fitted.image[None]})["confidence"][0])
    with nrd_trt.open_bundle(bundle(output="mask,confidence"), threads=1, fit="letterbox") as engine:
        got = engine.segment(rgb)
        np.testing.assert_array_equal(got.mask, engine.predict(rgb))
        assert np.abs(got.confidence.astype(int) - want).max() <= 1
    assert (got.confidence.dtype, got.confidence.shape) == (np.uint8, (61, 47))
    with nrd_trt.open_bundle(bundle(fit="letterbox"), threads=1) as plain:
        assert plain.segment(rgb).confidence is None
        np.testing.assert_array_equal(plain.segment(rgb).mask, got.mask)


def test_fits_differ() -> None:
    """So that the test above compares with the right one."""
    masks = [torch_mask(picture(48, 61), fit) for fit in FITS]
    assert all((first != second).any() for first, second in pairwise(masks))


def test_result_belongs_to_the_caller() -> None:
    with open_bundle(bundle(), threads=1) as predictor:
        first = predictor.predict(picture(64, 96))
        kept = first.copy()
        first[:] = 77
        np.testing.assert_array_equal(predictor.predict(picture(64, 96)), kept)


@pytest.mark.parametrize("form", ["uint8", "float", "rgb_float"])
def test_dynamic_file_of_larger_batches(form: InputForm) -> None:
    """Sizes within the range are run as they are, and one image fills a batch of two."""
    model = select_outputs(small_export(form, "dynamic"), "mask")
    facts = read_facts(model)
    shape = replace(facts.shape, batch=Range(min=2, opt=2, max=3))
    network = cached_small_model()
    with Engine(OrtRunner(model, threads=1), replace(facts, shape=shape)) as engine:
        for size in ((64, 64), (96, 160), (100, 70)):
            rgb = picture(*size)
            fitted = fit_image(rgb, shape, network.info)
            assert fitted.image.shape[:2] == (round(size[0] / 32) * 32, max(64, round(size[1] / 32) * 32))
            got = engine.predict(rgb)
            expected = network.predict(torch.from_numpy(normalise(fitted.image[None], network.info)))[0]
            assert got.shape == size
            assert (got == fitted.restore(expected.numpy().astype(np.uint8))).mean() > 0.995
        images = [street_scene(seed, size).image for seed, size in enumerate([(64, 64)] * 4 + [(96, 160)])]
        assert len({image.tobytes() for image in images}) == 5
        for drawn, image in zip(engine.draw_all([images[4], *images[:4]]), [images[4], *images[:4]], strict=True):
            np.testing.assert_array_equal(drawn.mask, engine.mask(image))
        assert engine.draw_all([]) == []


def test_the_runner_starts_with_the_first_image_and_once_and_ends_with_the_block() -> None:
    runner = HostRunner()
    engine = Engine(runner, record().model)
    assert runner.calls == []
    for _ in range(2):
        engine.predict(picture(64, 96))
    assert runner.calls == ["open", "run", "run"]
    with engine as entered:
        assert entered is engine
        engine.predict(picture(64, 96))
    assert runner.calls == ["open", *["run"] * 3, "close"]
    with pytest.raises(RunnerError, match="not entered"):
        runner.infer({})
    engine.__exit__(None, None, None)
    with pytest.raises(ZeroDivisionError), engine:
        raise ZeroDivisionError
    assert runner.calls[5:] == ["open", "close"]


def test_a_runner_that_cannot_start_may_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(HostRunner(), record().model)
    with monkeypatch.context() as patch, pytest.raises(RunnerError, match="no memory"):
        patch.setattr(HostRunner, "_open", Mock(side_effect=RunnerError("no memory")))
        engine.predict(picture(32, 64))
    assert engine.predict(picture(32, 64)).shape == (32, 64)


def test_facts_for_the_user() -> None:
    engine = nrd_trt.open_bundle(str(bundle("fp16")), threads=1)
    assert engine.info == trained_model().info
    assert (engine.runner_name, engine.plan_ran) == ("onnxruntime", None)
    engine.predict(picture(64, 96))
    assert engine.arithmetic == "fp32"  # the twin of the file
    with nrd_trt.open_bundle(bundle()) as exact:
        assert exact.arithmetic == "native"


def test_whether_the_plan_runs() -> None:
    planned = Bundle(path=Path("a.nrd"), record=record(files={PLAN_FILE: "0"}))
    by_plan = TrtRunner(b"", flavour="tensorrt", rebuild="rebuild it")
    assert Engine(by_plan, planned.graph, bundle=planned).plan_ran is True
    assert Engine(HostRunner(), planned.graph, bundle=planned).plan_ran is False
    assert Engine(HostRunner(), planned.graph).plan_ran is None


# --- every kind of file ----------------------------------------------------------------------------------------------

KINDS: Mapping[str, Callable[[], Path]] = {"bundle": bundle, "checkpoint": checkpoint, "onnx": onnx_file}


def test_every_kind_of_file_gives_one_mask() -> None:
    rgb, masks = picture(61, 47), {}
    for kind, path in KINDS.items():
        size = SIZE_HW if kind == "checkpoint" else None
        with open_engine(str(path()), RunOptions(threads=1), size=size) as engine:
            assert (engine.graph.shape, engine.fit) == (InputShape.static(SIZE_HW), "resize")
            masks[kind] = engine.predict(rgb)
            assert engine.runner_name == ("torch" if kind == "checkpoint" else "onnxruntime")
            assert (engine.bundle is None) == (kind != "bundle")
    np.testing.assert_array_equal(masks["bundle"], masks["onnx"])
    assert (masks["bundle"] == masks["checkpoint"]).mean() > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_is_given_is_taken(kind: str) -> None:
    rgb, size = picture(48, 61), SIZE_HW if kind == "checkpoint" else None
    with open_engine(KINDS[kind](), RunOptions(threads=1), size=size, fit="letterbox") as engine:
        assert (engine.predict(rgb) == torch_mask(rgb, "letterbox")).mean() > 0.999
    with pytest.raises(ConfigError, match="fit='stretch': expected one of 'resize', "):
        open_engine(KINDS[kind](), size=size, fit="stretch")  # type: ignore[arg-type]


def test_a_checkpoint_takes_its_own_size_and_what_is_said_of_it() -> None:
    engine = open_engine(checkpoint(), options=CheckpointOptions(mean=(1.0, 2.0, 3.0)))
    assert engine.graph.shape == InputShape.static(trained_model().info.size_hw)
    assert engine.info.mean == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        ("absent.nrd", None, BundleError, "expected a bundle folder"),
        ("absent.onnx", None, ExportError, "expected an ONNX file, cannot read it"),
        ("absent.pth", None, CheckpointError, "expected a checkpoint file, found none"),
        ("photos/", None, CheckpointError, "expected a checkpoint file, found none"),
        ("photos.nrd/", None, BundleError, "expected a bundle folder with bundle.json, found none"),
        ("photos.onnx/", None, ExportError, "expected an ONNX file"),
        ("a.onnx", b"some text\n", ExportError, "expected an ONNX file, cannot read it"),
        ("a.onnx", b"", ExportError, "expected an ONNX file, got one that is not valid"),
        ("a.pth", b"some text\n", CheckpointError, ""),
        ("a.nrd", b"", BundleError, "expected a bundle folder"),
    ],
)
def test_what_cannot_be_opened(
    name: str, data: bytes | None, error: type[Exception], words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(error) as caught:
        open_engine(path)
    assert f"{path}: {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("bundle", {"runner": "torch"}, "runner='torch': a bundle holds no PyTorch model; give the checkpoint"),
        ("bundle", {"size": (64, 96)}, "size and network are fixed in a bundle; leave size= "),
        ("bundle", {"options": CheckpointOptions(num_classes=3)}, "size and network are fixed in a bundle"),
        ("bundle", {"plugin": "a.so"}, "plugin=a.so: expected a bundle whose plan needs it"),
        ("checkpoint", {"runner": "onnxruntime"}, r"runner='onnxruntime': .* runs by runner='torch' only; build a"),
        ("checkpoint", {"plugin": "a.so"}, "plugin=a.so: expected a bundle whose plan needs it"),
        ("checkpoint", {"size": (64, 100)}, "size=64x100: expected height and width to be multiples of 32"),
        ("checkpoint", {"size": "64x96"}, "size='64x96': expected height and width such as"),
        (
            "onnx",
            {"runner": "tensorrt"},
            r"runner='tensorrt': .*\.onnx runs by runner='onnxruntime' or 'openvino' only; build a",
        ),
        ("onnx", {"runner": "cuda"}, "runner='cuda': expected one of 'auto', "),
        ("onnx", {"size": (64, 96)}, "size and network are fixed in an ONNX file; leave size= "),
        ("onnx", {"plugin": "a.so"}, "plugin=a.so: expected a bundle whose plan needs it"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(kind: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, ShapeError), match=words):
        run = {name: arguments.pop(name) for name in ("runner", "plugin") if name in arguments}
        open_engine(KINDS[kind](), RunOptions(**run), **arguments)


def test_a_damaged_bundle_is_refused_on_opening_and_on_use(tmp_path: Path) -> None:
    path = copy_of(bundle(), tmp_path / "a.nrd")
    (path / ONNX_FILE).write_bytes(b"no ONNX file")
    with pytest.raises(BundleError, match=ONNX_FILE):
        nrd_trt.open_bundle(path)
    rewrite_facts(path, files={**read_facts_of(path)["files"], ONNX_FILE: sha256_file(path / ONNX_FILE)})
    with pytest.raises(ExportError, match=rf"{ONNX_FILE}: expected an ONNX file"), nrd_trt.open_bundle(path):
        pass
