"""A bundle as its user sees it: any image in, a mask of its size out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import nrd_trt
from nrd_trt.data.preprocessing import FITS, fit_image, normalise
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import ONNX_FILE, read_bundle
from nrd_trt.errors import BundleError, ConfigError, RunnerError, ShapeError
from nrd_trt.graph.metadata import read_facts, write_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.tensors import copy_model
from nrd_trt.runtime.engine import open_bundle
from nrd_trt.runtime.select import make_runner
from nrd_trt.specs import Fit, InputForm, InputShape, Range
from tests.artefacts import (
    SIZE_HW,
    build,
    bundle,
    copy_of,
    rewrite_facts,
    trained_model,
    workspace,
    write_model,
)
from tests.helpers import cached_small_model, small_export


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


def test_fits_differ() -> None:
    """So that the test above compares with the right one."""
    masks = [torch_mask(picture(48, 61), fit) for fit in FITS]
    assert all((first != second).any() for first, second in pairwise(masks))


def test_result_belongs_to_the_caller() -> None:
    with open_bundle(bundle(), threads=1) as predictor:
        first = predictor.predict(picture(64, 96))
        kept = first.copy()
        first[:] = 77
        second = predictor.predict(picture(64, 96))
    np.testing.assert_array_equal(second, kept)


def test_logits_bundle_predicts_the_same_masks() -> None:
    rgb = picture(61, 47)
    masks = [open_bundle(bundle(output=output), threads=1).predict(rgb) for output in ("mask", "logits", "both")]
    assert (masks[0] == masks[1]).mean() > 0.999
    np.testing.assert_array_equal(masks[0], masks[2])


@pytest.mark.parametrize("form", ["uint8", "float"])
def test_dynamic_bundle_of_larger_batches(form: InputForm) -> None:
    """Sizes within the range are run as they are, and one image fills a batch of two."""
    model = copy_model(small_export(form, "dynamic"))
    shape = read_facts(model).shape
    write_facts(model, replace(read_facts(model), shape=replace(shape, batch=Range(min=2, opt=2, max=3))))
    source = write_model(select_outputs(model, "mask"), f"dynamic_{form}.onnx")
    path = workspace() / f"dynamic_{form}.nrd"
    build(source, path, precision="fp32")
    network = cached_small_model()
    with open_bundle(path, threads=1) as predictor:
        for size in ((64, 64), (96, 160), (100, 70)):
            rgb = picture(*size)
            fitted = fit_image(rgb, shape, network.info)
            assert fitted.image.shape[:2] == (round(size[0] / 32) * 32, max(64, round(size[1] / 32) * 32))
            got = predictor.predict(rgb)
            expected = network.predict(torch.from_numpy(normalise(fitted.image[None], network.info)))[0]
            assert got.shape == size
            assert (got == fitted.restore(expected.numpy().astype(np.uint8))).mean() > 0.995


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((64, 96), np.uint8),
        np.zeros((64, 96, 4), np.uint8),
        np.zeros((1, 64, 96, 3), np.uint8),
        np.zeros((64, 96, 3), np.float32),
        np.zeros((3, 64, 96), np.uint8),
    ],
)
def test_what_is_no_rgb_image_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"expected \(H, W, 3\) uint8 RGB"):
        open_bundle(bundle(), threads=1).predict(wrong)


def test_with_statement_closes_and_reuse_opens_again() -> None:
    rgb = picture(64, 96)
    predictor = open_bundle(bundle(), threads=1)
    with predictor as entered:
        assert entered is predictor
        first = predictor.predict(rgb)
    with pytest.raises(RunnerError, match="not entered"):
        predictor._runner.infer({})
    np.testing.assert_array_equal(predictor.predict(rgb), first)
    with predictor:  # already running
        np.testing.assert_array_equal(predictor.predict(rgb), first)
    with predictor:
        np.testing.assert_array_equal(predictor.predict(rgb), first)
    predictor.__exit__(None, None, None)
    predictor.__exit__(None, None, None)


def test_error_inside_the_block_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError), open_bundle(bundle(), threads=1):
        raise ZeroDivisionError


def test_facts_for_the_user() -> None:
    predictor = nrd_trt.open_bundle(str(bundle("fp16")), threads=1)
    assert predictor.info == trained_model().info
    assert predictor.runner_name == "onnxruntime"
    predictor.predict(picture(64, 96))
    assert predictor.arithmetic == "simulated"
    with nrd_trt.open_bundle(bundle()) as exact:
        assert exact.arithmetic == "native"


# --- choosing the runner ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["auto", "onnxruntime"])
def test_runners_of_this_machine(runner: str) -> None:
    assert make_runner(read_bundle(bundle()), runner).name == "onnxruntime"


@pytest.mark.parametrize(
    ("runner", "error", "match"),
    [
        ("torch", ConfigError, "give the checkpoint instead"),
        ("tensorrt", RunnerError, "--runner tensorrt: .*holds no plan; build one with: .*--builder tensorrt "),
        (
            "tensorrt-rtx",
            RunnerError,
            "--runner tensorrt-rtx: .*holds no plan; build one with: .*--builder tensorrt-rtx",
        ),
        ("cuda", ConfigError, "expected one of 'auto', "),
    ],
)
def test_other_runners_say_why_not(runner: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        nrd_trt.open_bundle(bundle(), runner=runner)


# --- damaged bundles -------------------------------------------------------------------------------------------------


def test_damaged_bundle_is_refused_on_opening(tmp_path: Path) -> None:
    path = copy_of(bundle(), tmp_path / "a.nrd")
    file = path / ONNX_FILE
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    with pytest.raises(BundleError, match=ONNX_FILE):
        nrd_trt.open_bundle(path)


def test_unknown_fit_in_the_facts_is_refused(tmp_path: Path) -> None:
    path = copy_of(bundle(), tmp_path / "a.nrd")
    rewrite_facts(path, fit="stretch")
    with pytest.raises((BundleError, ConfigError), match="stretch"):
        nrd_trt.open_bundle(path)


def test_opening_is_cheap_and_the_runner_starts_with_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    predictor = open_bundle(bundle(), threads=1)
    start: Callable[[], object] = predictor._runner._open

    def counted() -> object:
        opened.append("open")
        return start()

    monkeypatch.setattr(predictor._runner, "_open", counted)
    assert opened == []
    for _ in range(2):
        predictor.predict(picture(64, 96))
    assert opened == ["open"]
