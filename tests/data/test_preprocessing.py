"""Fitting images to the engine's size and back, and the normalisation that the graph repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from nrd_trt.data.preprocessing import fit_image, normalise
from nrd_trt.errors import ShapeError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.metadata import read_facts
from nrd_trt.specs import Fit, InputShape, Range
from tests.helpers import STATIC, model_info, small_export, small_model

INFO = model_info(2)
DYNAMIC = InputShape(
    batch=Range(min=1, opt=1, max=1), height=Range(min=64, opt=96, max=160), width=Range(min=64, opt=128, max=320)
)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_normalise_is_the_graphs_preprocessing_bit_for_bit(order: Any) -> None:
    if order == "rgb":
        graph = small_export()
    else:
        changes = {"channel_order": order, "mean": (103.53, 116.28, 123.675), "std": (57.375, 57.1, 58.4)}
        graph = export_onnx(small_model(info=changes), ExportOptions(shape=STATIC))
    info = read_facts(graph).info
    assert info.channel_order == order
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 128, 256])
    cut = [node for node in graph.graph.node if node.name.startswith("preprocessing/")]
    assert cut[-1].output[0] == "pixels"
    constants = [tensor for tensor in graph.graph.initializer if tensor.name.startswith("preprocessing.")]
    alone = helper.make_model(
        helper.make_graph(cut, "cut", [graph.graph.input[0]], [pixels], initializer=constants),
        opset_imports=[helper.make_opsetid("", 19)], ir_version=9,
    )  # fmt: skip
    onnx.checker.check_model(alone, full_check=True)
    image = picture(128, 256)[None]
    image.reshape(-1)[:256] = np.arange(256)  # every value at least once
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])
    got, expected = session.run(None, {"image": image})[0], normalise(image, info)
    assert got.dtype == expected.dtype == np.float32
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("order", "channels"), [("rgb", (0, 1, 2)), ("bgr", (2, 1, 0))])
def test_normalise(order: Any, channels: tuple[int, ...]) -> None:
    image = picture(4, 6)[None]
    info = model_info(2, channel_order=order, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 8.0))
    got = normalise(image, info)
    assert got.flags.c_contiguous
    assert got.shape == (1, 3, 4, 6)
    for plane, channel in enumerate(channels):  # mean and std are in the network's order
        expected = (image[0, :, :, channel].astype(np.float64) - info.mean[plane]) / info.std[plane]
        np.testing.assert_allclose(got[0, plane], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("fit", "image_hw", "shape", "engine_hw", "content_hw"),
    [
        ("resize", (50, 333), InputShape.static((96, 160)), (96, 160), (96, 160)),
        ("resize", (100, 200), DYNAMIC, (96, 192), (96, 192)),
        ("resize", (10, 2000), DYNAMIC, (64, 320), (64, 320)),
        ("pad", (50, 100), InputShape.static((96, 160)), (96, 160), (50, 100)),
        ("pad", (65, 97), DYNAMIC, (96, 128), (65, 97)),  # never below the image
        ("pad", (10, 10), DYNAMIC, (64, 64), (10, 10)),
        ("letterbox", (100, 100), InputShape.static((96, 160)), (96, 160), (96, 96)),
        ("letterbox", (480, 3200), InputShape.static((96, 160)), (96, 160), (24, 160)),
        ("letterbox", (320, 640), DYNAMIC, (160, 320), (160, 320)),
        ("letterbox", (1, 5000), InputShape.static((96, 160)), (96, 160), (1, 160)),
    ],
)
def test_sizes(
    fit: Fit, image_hw: tuple[int, int], shape: InputShape, engine_hw: tuple[int, int], content_hw: tuple[int, int]
) -> None:
    rgb = picture(*engine_hw)
    assert np.array_equal(fit_image(rgb, shape, INFO, fit).image, rgb)  # one of the engine's size is not touched
    fitted = fit_image(picture(*image_hw), shape, INFO, fit)
    assert fitted.image.shape == (*engine_hw, 3)
    assert fitted.image.flags.c_contiguous
    assert (fitted.content_hw, fitted.original_hw) == (content_hw, image_hw)
    restored = fitted.restore(np.zeros(engine_hw, np.uint8))
    assert (restored.shape, restored.flags.writeable) == (image_hw, True)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_padding_is_the_mean_and_content_is_exact(order: Any) -> None:
    info = model_info(2, channel_order=order, mean=(10.2, 20.0, 29.8))
    rgb = picture(50, 70)
    fitted = fit_image(rgb, InputShape.static((64, 96)), info, "pad")
    assert np.array_equal(fitted.image[:50, :70], rgb)
    assert np.array_equal(fitted.restore(fitted.image[..., 0]), rgb[..., 0])
    outside = np.concatenate([fitted.image[50:].reshape(-1, 3), fitted.image[:, 70:].reshape(-1, 3)])
    assert np.unique(outside, axis=0).tolist() == [[10, 20, 30] if order == "rgb" else [30, 20, 10]]
    planes = normalise(fitted.image[None], info)[0]
    assert np.abs(planes[:, 50:]).max() < 0.01  # zero up to rounding, in every channel


def test_restore_takes_the_nearest_class_and_leaves_padding_out() -> None:
    fitted = fit_image(picture(48, 48), InputShape.static((96, 160)), INFO, "letterbox")
    assert fitted.content_hw == (96, 96)
    mask = np.full((96, 160), 9, np.uint8)
    mask[:96, :96] = np.repeat(np.repeat(np.arange(48 * 48).reshape(48, 48) % 7, 2, 0), 2, 1)
    assert np.array_equal(fitted.restore(mask), np.arange(48 * 48).reshape(48, 48) % 7)


def test_what_does_not_fit_is_refused() -> None:
    for shape in (InputShape.static((64, 96)), DYNAMIC):
        with pytest.raises(ShapeError, match=r"image 200x96 is larger than the engine's .*; use fit='letterbox'"):
            fit_image(picture(200, 96), shape, INFO, "pad")
    for other, kind in (((4, 4), "uint8"), ((4, 4, 4), "uint8"), ((1, 4, 4, 3), "uint8"), ((4, 4, 3), "float32")):
        with pytest.raises(ShapeError, match=r"expected \(H, W, 3\) uint8 RGB"):
            fit_image(np.zeros(other, kind), DYNAMIC, INFO)
