"""The tensors between the stages as outputs, and what a file tells of its weights and coordinates."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from nrd_trt.graph.decode_nodes import coordinate_tables
from nrd_trt.graph.network import file_network
from nrd_trt.graph.outputs import PREFIX, select_outputs, with_taps
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.quantize import insert_qdq, plan_quantization, quantizable_layers
from nrd_trt.graph.tensors import copy_model, weight_types
from nrd_trt.model.program import network_program
from nrd_trt.specs import Precision
from nrd_trt.validation.causes import layer_stages
from nrd_trt.validation.structure import layer_differences
from tests.helpers import STATIC, feed, infer, small_export, small_model


def test_taps_leave_the_mask_alone_and_give_the_logits_of_its_function() -> None:
    """Cut out of it where the file has no such output, and taken from it where the file has one of its own."""
    both, image = small_export(), feed("uint8", 1, *STATIC.opt_hw)
    tapped = with_taps(select_outputs(both, "mask"))
    onnx.checker.check_model(tapped)
    want, got = infer(both, image), infer(tapped, image)
    np.testing.assert_array_equal(got["mask"], want["mask"])
    assert {name.removeprefix(PREFIX) for name in got} == {
        "mask", "preprocessing", "c1", "c4", "theta", "guidance", "logits",
    }  # fmt: skip
    largest = np.abs(want["logits"]).max()
    np.testing.assert_allclose(got[f"{PREFIX}logits"], want["logits"], rtol=0, atol=1e-4 * largest)
    assert next(node for node in with_taps(both).graph.node if node.name == f"{PREFIX}logits").input[0] != "logits"


def taps(model: onnx.ModelProto) -> dict[str, str]:
    """The tensor that each tap reads."""
    return {node.name: node.input[0] for node in with_taps(model).graph.node if node.name.startswith(PREFIX)}


def layers(model: onnx.ModelProto) -> list[str]:
    """What the structural proof says of a file's layers."""
    network = file_network(model)
    assert network is not None
    return layer_differences(network, network_program(small_model()), small_model())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_stages_and_weights_are_found_through_casts(precision: Precision) -> None:
    typed = to_precision(small_export(), precision, keep_fp32={"decode_head.image_pool.1.conv/Conv"})
    assert taps(typed) == taps(small_export())
    assert layer_stages(typed).items() >= layer_stages(small_export()).items()
    assert layers(typed) == []


def test_coordinates_are_read_from_nodes_and_functions() -> None:
    found = coordinate_tables(small_export())
    assert sorted(found) == [
        "function NrdPatchDecode", "function NrdPatchDecodeMask", "node NrdPatchDecode", "node NrdPatchDecodeMask",
    ]  # fmt: skip
    first, *others = found.values()
    assert all(table.shape == (8,) for table in first)
    for tables in others:
        np.testing.assert_array_equal(np.float32(tables), np.float32(first))


@cache
def quantised() -> onnx.ModelProto:
    """The small file with every convolution in int8; read-only."""
    model = select_outputs(small_export(), "mask")
    plan = plan_quantization(model, quantizable_layers(model))
    return insert_qdq(model, plan, dict.fromkeys(plan.tensors, 10.0))


def test_types_of_the_weights_and_stages_are_found_through_quantisation() -> None:
    convolutions = sum(node.op_type == "Conv" for node in small_export().graph.node)
    assert weight_types(small_export()) == {"fp32": convolutions}
    assert weight_types(quantised()) == {"int8": convolutions}
    mixed = to_precision(small_export(), "fp16", keep_fp32={"backbone.conv1.conv/Conv"})
    assert weight_types(mixed) == {"fp16": convolutions - 1, "fp32": 1}
    # What the head reads of the encoder is quantised: the tap is before, where the encoder wrote it.
    c4 = taps(small_export())[f"{PREFIX}c4"]
    assert f"{c4}/dequantized" in {name for node in quantised().graph.node for name in node.input}
    assert taps(quantised())[f"{PREFIX}c4"] == c4


def test_the_kernel_of_int8_weights_is_read_off_them_where_the_file_does_not_say_it() -> None:
    """The exporters of older versions do not."""
    model = copy_model(quantised())
    for node in model.graph.node:
        kept = [entry for entry in node.attribute if entry.name != "kernel_shape"]
        del node.attribute[:]
        node.attribute.extend(kept)
    assert layers(model) == []


def test_a_doubled_scale_of_int8_weights_is_named() -> None:
    wrong = copy_model(quantised())
    assert layers(wrong) == []
    name = "backbone.layer4.1.conv.0.conv.weight"
    (scale,) = (tensor for tensor in wrong.graph.initializer if tensor.name == f"{name}/scale")
    scale.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scale), scale.name))
    (said,) = layers(wrong)
    assert said == "`backbone.layer4.1.conv.0.conv`: weight is ×2 of the expected"
