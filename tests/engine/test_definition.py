"""What TensorRT-RTX has parsed is held against the file; faults are in one of the two."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from nrd_trt.engine import builder
from nrd_trt.engine.builder import BuildOptions, build_engine
from nrd_trt.engine.compat import load_tensorrt
from nrd_trt.engine.definition import Definition, check_definition, definition_of
from nrd_trt.errors import BuildError
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.tensors import copy_model
from nrd_trt.progress import silent
from tests.artefacts import needs_rtx
from tests.faults import Change, convolution, edit_tensor, find
from tests.helpers import small_export, small_int8

STEM = "backbone.conv1.conv"
DEPTHWISE = "backbone.layer1.0.conv.0.conv"


@cache
def file(precision: Any = "fp16") -> onnx.ModelProto:
    return small_int8() if precision == "int8" else to_precision(small_export(), precision)


def parse(model: onnx.ModelProto) -> Definition:
    """Return what TensorRT-RTX finds in a file; the constants are copied, because the network owns them."""
    tensorrt = load_tensorrt("tensorrt-rtx")
    log = tensorrt.log(silent)
    network = tensorrt.network(tensorrt.builder(log))
    tensorrt.parse(network, model.SerializeToString(), log)
    found = tensorrt.definition(network)
    kept = {
        name: replace(one, weights=copy_of(one.weights), bias=copy_of(one.bias))
        for name, one in found.convolutions.items()
    }
    return replace(found, convolutions=kept)


def copy_of(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.copy()


@cache
def parsed(precision: str = "fp16") -> Definition:
    return parse(file(precision))


@needs_rtx
@pytest.mark.parametrize(("precision", "compared"), [("fp32", 64), ("fp16", 64), ("bf16", 6), ("int8", 2)])
def test_a_sound_file_is_what_is_parsed(precision: str, compared: int) -> None:
    definition = parsed(precision)
    check_definition(file(precision), definition)
    readable = [one for one in definition.convolutions.values() if one.weights is not None]
    assert (len(readable), len(definition.convolutions)) == (compared, 64)


@needs_rtx
def test_packed_masks_and_dynamic_sizes() -> None:
    packed, dynamic = small_export(encoding="u8x4"), small_export("float", "dynamic")
    found = parse(dynamic)
    for model, definition in ((packed, parse(packed)), (dynamic, found)):
        check_definition(model, definition)
    assert found.inputs["image"].shape == (None, 3, None, None)
    with pytest.raises(BuildError, match=r"tensor 'image': float32 any×3×any×any, expected uint8 1×128×256×3\. Use"):
        check_definition(small_export(), found)


def lost(model: onnx.ModelProto) -> None:
    model.graph.node.remove(find(model, f"{STEM}/Conv"))


def default_attributes(model: onnx.ModelProto) -> None:
    """Take out of a pointwise convolution what ONNX has defaults for."""
    del find(model, "backbone.layer1.0.conv.1.conv/Conv").attribute[:]


def bump(values: np.ndarray) -> np.ndarray:
    values.reshape(-1)[5] *= 1.01
    return values


FAULTS: dict[str, tuple[Change, str]] = {
    "dilation": (convolution(DEPTHWISE, dilations=[2, 2]), r"dilations \(1, 1\), expected \(2, 2\)"),
    "stride": (convolution(STEM, strides=[1, 1]), r"strides \(2, 2\), expected \(1, 1\)"),
    "padding": (convolution(STEM, pads=[0, 0, 1, 1]), r"pads \(1, 1, 1, 1\), expected \(0, 0, 1, 1\)"),
    "groups": (convolution(DEPTHWISE, group=1), r"group 32, expected 1"),
    "rule": (convolution(STEM, auto_pad="SAME_UPPER"), r"auto_pad NOTSET, expected SAME_UPPER"),
    "weights": (edit_tensor(f"{STEM}.weight", bump), r"weights with 1 of 864 values that differ"),
    "bias": (edit_tensor(f"{STEM}.bias", bump), r"bias with 1 of 32 values that differ"),
    "lost": (lost, rf"`{STEM}/Conv`: a convolution, expected none"),
}


@needs_rtx
@pytest.mark.parametrize("name", FAULTS)
def test_another_network_is_refused_by_layer_and_fact(name: str) -> None:
    change, words = FAULTS[name]
    model = copy_model(file())
    change(model)
    with pytest.raises(BuildError, match=words) as caught:
        check_definition(model, parsed())
    assert str(caught.value).count("`") == 2  # one layer, and nothing else


@needs_rtx
def test_defaults_are_filled_in() -> None:
    model = copy_model(file())
    default_attributes(model)
    check_definition(model, parsed())


@needs_rtx
def test_other_outputs_and_types_are_named() -> None:
    with pytest.raises(BuildError, match="tensor 'logits': float32 1×11×32×64, expected none"):
        check_definition(select_outputs(file(), "mask"), parsed())
    with pytest.raises(BuildError, match=r"weights 864 of float16, expected 864 of float32.*; and 123 more"):
        check_definition(file("fp32"), parsed())


@needs_rtx
def test_a_build_of_another_network_ends_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is between the file and the parser."""

    def handed_over(model: onnx.ModelProto, *_: object) -> onnx.ModelProto:
        other = copy_model(model)
        convolution(DEPTHWISE, dilations=[2, 2], pads=[2, 2, 2, 2])(other)
        return other

    monkeypatch.setattr(builder, "_handed_over", handed_over)
    monkeypatch.setattr(builder, "_serialise", lambda *_: pytest.fail("it was built"))
    words = rf"`{DEPTHWISE}/Conv`: dilations \(2, 2\), expected \(1, 1\); `{DEPTHWISE}/Conv`: pads \(2, 2, 2, 2\)"
    with pytest.raises(BuildError, match=words):
        build_engine(file(), BuildOptions(flavour="tensorrt-rtx", progress=False))


def test_what_a_file_defines_needs_no_tensorrt() -> None:
    stem = definition_of(file()).convolutions[f"{STEM}/Conv"]
    assert (stem.kernel_shape, stem.strides, stem.pads, stem.maps) == ((3, 3), (2, 2), (1, 1, 1, 1), 32)
