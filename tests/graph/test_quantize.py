"""Q/DQ pairs stand where TensorRT looks for them, and their integers are the nearest ones."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.errors import CalibrationError, ConfigError
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.precision import simulate_rounding, simulate_tf32, to_precision, to_quantized
from nrd_trt.graph.quantize import (
    DEFAULT_EXCLUDE,
    QuantizationPlan,
    choose_layers,
    insert_qdq,
    plan_quantization,
    quantizable_layers,
    weight_scales,
)
from nrd_trt.graph.tensors import element_types
from nrd_trt.runtime.ort_runner import OrtRunner
from tests.helpers import exported, feed, infer, small_export

FLOAT = TensorProto.FLOAT


@cache
def residual_export() -> onnx.ModelProto:
    """A network with identity skips and with convolutions in its skips."""
    return exported("resnetv1c18", 19, "float", "static", 64)


def plan_of(model: onnx.ModelProto) -> QuantizationPlan:
    return plan_quantization(model, choose_layers(model))


def ranges_of(model: onnx.ModelProto, plan: QuantizationPlan) -> dict[str, float]:
    """Largest magnitudes on one image."""
    outputs = infer(model, feed("float", 1, 128, 256), *plan.tensors)
    return {name: float(np.abs(outputs[name]).max()) for name in plan.tensors}


@cache
def quantized() -> onnx.ModelProto:
    model = residual_export()
    plan = plan_of(model)
    return insert_qdq(model, plan, ranges_of(model, plan))


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


@pytest.mark.parametrize("make", [residual_export, lambda: small_export("float")])
def test_every_input_of_a_chosen_layer_comes_from_int8(make: object) -> None:
    model: onnx.ModelProto = make()  # type: ignore[operator]
    before = model.SerializeToString(deterministic=True)
    plan = plan_of(model)
    result = insert_qdq(model, plan, ranges_of(model, plan))
    assert model.SerializeToString(deterministic=True) == before
    made_by = producers(result)
    for node in result.graph.node:
        for name in node.input[:2]:
            is_int8 = name in made_by and made_by[name].op_type == "DequantizeLinear"
            if node.op_type == "Conv":
                assert is_int8 == (node.name in plan.layers), node.name
    onnx.checker.check_model(result, full_check=True)


def test_one_tensor_has_one_pair_and_none_stands_after_a_convolution() -> None:
    nodes = quantized().graph.node
    for node in nodes:
        readers = {reader.op_type for reader in nodes if node.output[0] in reader.input}
        if node.op_type == "Conv" and "Relu" in readers:
            assert readers == {"Relu"}
    counts, plan = Counter(node.op_type for node in nodes), plan_of(residual_export())
    assert counts["QuantizeLinear"] == len(plan.tensors)
    assert counts["DequantizeLinear"] == len(plan.tensors) + len(plan.layers)


def test_the_skip_input_of_an_add_is_int8_and_the_other_is_not() -> None:
    made_by = producers(quantized())
    adds = [node for node in quantized().graph.node if node.op_type == "Add"]
    assert len(adds) == 8
    for add in adds:
        kinds = Counter(made_by[name].op_type for name in add.input)
        assert kinds == {"Conv": 1, "DequantizeLinear": 1}, add.name
    identity = next(node for node in adds if node.name == "backbone.layer1.0/Add")
    assert identity.input[1] == "backbone.maxpool/MaxPool/dequantized", "the pair of the block's first convolution"
    convolved = next(node for node in adds if node.name == "backbone.layer2.0/Add")
    assert convolved.input[1] == "backbone.layer2.0.downsample.0/Conv/dequantized"


@cache
def for_cpu() -> tuple[QuantizationPlan, onnx.ModelProto]:
    model = residual_export()
    plan = plan_quantization(model, choose_layers(model), "cpu")
    return plan, to_quantized(model, plan, ranges_of(model, plan))


def test_a_file_for_a_cpu_has_pairs_on_both_inputs_of_an_add_and_nothing_in_16_bits() -> None:
    plan, model = for_cpu()
    made_by, types = producers(model), element_types(model)
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    assert {made_by[name].op_type for add in adds for name in add.input} == {"DequantizeLinear"}
    assert plan.tensors.keys() > plan_of(residual_export()).tensors.keys()
    assert {types[node.output[0]] for node in model.graph.node if node.op_type in ("Conv", "Add")} == {FLOAT}
    assert read_facts(model).precision == "int8"
    onnx.checker.check_model(model, full_check=True)


def test_uint8_begins_at_0_where_nothing_is_negative_and_else_holds_the_integers_of_int8() -> None:
    plan, model = for_cpu()
    values = infer(residual_export(), feed("float", 1, 128, 256), *plan.tensors)
    assert plan.unsigned == {name for name in plan.tensors if values[name].min() >= 0}
    assert {"backbone.maxpool/MaxPool", "Concat"} < plan.unsigned < plan.tensors.keys()
    stored = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    zeros = {node.input[0]: stored[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {name: zero.item() for name, zero in zeros.items()} == {
        name: 0 if name in plan.unsigned else 128 for name in plan.tensors
    }
    assert {zero.dtype for zero in zeros.values()} == {np.dtype(np.uint8)}
    largest = ranges_of(residual_export(), plan)
    for name in plan.tensors:
        levels = 255 if name in plan.unsigned else 127
        assert stored[f"{name}/scale"] == np.float32(largest[name] / levels), "not rounded to fp16"


def test_onnx_runtime_multiplies_integers_in_every_layer_of_a_file_for_a_cpu(tmp_path: Path) -> None:
    """But for those whose result is read as floats; of a file for a GPU it dequantises all of them."""
    ort, counts = pytest.importorskip("onnxruntime"), {}
    for name, model in (("cpu", for_cpu()[1]), ("gpu", quantized())):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / name)
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        counts[name] = Counter(node.op_type for node in onnx.load(tmp_path / name).graph.node)
    floats = "four branches of the joint map, the controller's input, the guidance"
    assert counts["cpu"]["QLinearConv"] == len(for_cpu()[0].layers) - 6, floats
    assert counts["cpu"]["QLinearAdd"] == 7, "the last one's sum is pooled as floats too"
    assert counts["gpu"]["QLinearConv"] == 0


def test_masks_of_a_file_for_a_cpu_are_as_near_to_fp32_as_those_for_a_gpu() -> None:
    image, found = feed("float", 1, 128, 256), []
    for model in (residual_export(), quantized(), for_cpu()[1]):
        with OrtRunner(model, threads=1) as runner:
            found.append(runner.infer(image)["logits"])
    assert runner.arithmetic == "native"
    errors = [np.square(logits - found[0]).mean() for logits in found[1:]]
    assert 0 < errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize(("low", "unsigned"), [(0.0, True), (-1.0, False), (None, False)])
def test_a_clip_gives_no_negative_value_where_its_lowest_is_none(low: float | None, unsigned: bool) -> None:
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    bounds = [] if low is None else [numpy_helper.from_array(np.float32(low), "low")]
    nodes = [
        helper.make_node("Clip", ["x", *(bound.name for bound in bounds)], ["a"], name="clip"),
        helper.make_node("Conv", ["a", "w"], ["b"], name="conv"),
    ]
    ends = [[helper.make_tensor_value_info(name, FLOAT, [1, 1, 4, 4])] for name in "xb"]
    model = helper.make_model(helper.make_graph(nodes, "clip", *ends, [weight, *bounds]))
    assert plan_quantization(model, ["conv"], "cpu").unsigned == ({"a"} if unsigned else set())


def test_decode_controller_and_pooled_branch_stay_out() -> None:
    chosen = choose_layers(residual_export())
    left = set(quantizable_layers(residual_export())) - set(chosen)
    assert left == {"decode_head.image_pool.1.conv/Conv", "decode_head.classifier.classifier.1/Conv"}
    types = element_types(quantized())
    assert types["theta"] == types["guidance"] == FLOAT


def test_weights_are_the_nearest_integers_with_scales_that_are_exact_in_fp16_and_not_zero() -> None:
    before = {entry.name: numpy_helper.to_array(entry) for entry in residual_export().graph.initializer}
    after = {entry.name: numpy_helper.to_array(entry) for entry in quantized().graph.initializer}
    name = "backbone.layer2.0.conv1.weight"
    assert name not in after, "the floats do not stay in the file"
    scale = after[f"{name}/scale"]
    assert np.array_equal(scale, weight_scales(before[name], 0))
    assert scale.shape == (before[name].shape[0],)
    restored = after[f"{name}/int8"] * scale[:, None, None, None]
    # Half a step, and the largest weight of a channel loses what rounding its scale to fp16 takes.
    assert np.all(np.abs(restored - before[name]) <= (0.5 + 127 * 2.0**-11) * scale[:, None, None, None])
    assert np.abs(after[f"{name}/int8"]).max() == 127
    scales = weight_scales(np.array([[1.0, -3.0], [0.0, 0.0], [1e-9, 0.0]], np.float32), 0)
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert np.all(scales > 0)
    assert scales[0] == pytest.approx(3 / 127, rel=2**-11)


def test_tensors_around_a_concat_share_the_largest_scale() -> None:
    """Two convolutions read one branch and the joint tensor; a third reads the other branch."""
    weight = numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w")
    wide = numpy_helper.from_array(np.ones((2, 4, 1, 1), np.float32), "wide")
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        helper.make_node("Conv", ["a", "w"], ["b"], name="first"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="second"),
        helper.make_node("Concat", ["a", "b"], ["joint"], name="concat", axis=1),
        helper.make_node("Conv", ["joint", "wide"], ["d"], name="third"),
    ]
    outputs = [helper.make_tensor_value_info(name, FLOAT, [1, 2, 4, 4]) for name in ("c", "d")]
    inputs = [helper.make_tensor_value_info("x", FLOAT, [1, 2, 4, 4])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [weight, wide]), opset_imports=[helper.make_opsetid("", 19)]
    )
    plan = plan_quantization(model, quantizable_layers(model))
    assert plan.shared == (frozenset({"a", "b", "joint"}),)
    result = insert_qdq(model, plan, {"a": 1.0, "b": 5.0, "joint": 4.0})
    scales = {
        e.name: float(numpy_helper.to_array(e))
        for e in result.graph.initializer
        if e.name.endswith("/scale") and e.name.split("/")[0] in plan.tensors
    }
    assert set(scales) == {"a/scale", "b/scale", "joint/scale"}
    assert set(scales.values()) == {float(np.float16(5 / 127))}
    assert plan_quantization(model, quantizable_layers(model), "cpu").unsigned == set(), "b may be negative"


def test_tf32_leaves_products_of_integers_alone() -> None:
    plan = simulate_rounding(to_precision(quantized(), "int8"), "int8")
    convolutions = [node for node in simulate_tf32(plan).graph.node if node.op_type == "Conv"]
    rounded = {node.name for node in convolutions if node.input[0].endswith("/tf32")}
    assert {node.name for node in convolutions} - rounded == set(plan_of(residual_export()).layers)


def test_masks_of_int8_are_near_those_of_fp32_with_exact_sums_and_with_rounded_ones() -> None:
    image, typed = feed("float", 1, 128, 256), to_precision(quantized(), "int8")
    found = []
    for model in (residual_export(), quantized(), typed):
        with OrtRunner(model, threads=1) as runner:
            found.append(runner.infer(image))
    assert runner.arithmetic == "simulated"  # fp16 rounding moves some values to the next integer
    masks, logits = ([outputs[name] for outputs in found] for name in ("mask", "logits"))
    assert (masks[0] == masks[1]).mean() > 0.9 and (masks[1] == masks[2]).mean() > 0.9
    assert not np.array_equal(logits[0], logits[1]) and not np.array_equal(logits[1], logits[2])


def test_the_typed_file_is_clean() -> None:
    typed = to_precision(quantized(), "int8")
    onnx.checker.check_model(typed, full_check=True)
    assert read_facts(typed).precision == "int8"
    assert importer_problems(typed) == []
    types = element_types(typed)
    for node in typed.graph.node:
        kinds = {types[name] for name in node.input if name in types} & {FLOAT, TensorProto.FLOAT16}
        if node.op_type in ("Conv", "QuantizeLinear", "DequantizeLinear", "Add"):
            assert kinds == {TensorProto.FLOAT16}, node.name


def test_include_and_exclude_choose_by_expressions_that_match_something() -> None:
    model = residual_export()
    assert all("layer3" in name for name in choose_layers(model, include=(r"backbone\.layer3",)))
    without = choose_layers(model, exclude=(*DEFAULT_EXCLUDE, r"backbone\.stem"))
    assert set(choose_layers(model)) - set(without) == {f"backbone.stem.{index}/Conv" for index in (0, 3, 6)}
    for include, exclude, message in (
        (("no_such_layer",), (), "matches none"),
        ((), ("no_such_layer",), "matches none"),
        ((), (".",), "leave no layer"),
    ):
        with pytest.raises(ConfigError, match=message):
            choose_layers(model, include=include, exclude=exclude)


def test_ranges_for_a_gpu_do_not_serve_a_cpu_and_those_for_a_cpu_serve_both() -> None:
    plan, gpu = for_cpu()[0], plan_of(residual_export())
    with pytest.raises(CalibrationError, match=r"calibrate this model again, with target='cpu'\."):
        insert_qdq(residual_export(), plan, dict.fromkeys(gpu.tensors, 1.0))
    insert_qdq(residual_export(), gpu, dict.fromkeys(plan.tensors, 1.0))


def test_unknown_layers_and_missing_or_infinite_ranges_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.nothing"):
        plan_quantization(residual_export(), ["backbone.nothing"])
    with pytest.raises(ConfigError, match=r"^layers x0, x1, x2, x3, x4: expected convolutions"):
        plan_quantization(residual_export(), [f"x{index}" for index in range(7)])
    plan = plan_of(residual_export())
    name, *others = plan.tensors
    with pytest.raises(CalibrationError, match=rf", none for {', '.join(map(re.escape, [name, *others[:4]]))};"):
        insert_qdq(residual_export(), plan, {})
    for given in ({}, {name: float("nan")}, {name: float("inf")}):
        with pytest.raises(CalibrationError, match=rf", none for {re.escape(name)};"):
            insert_qdq(residual_export(), plan, {**dict.fromkeys(others, 1.0), **given})


def test_tensors_of_fewer_layers_are_among_those_of_all() -> None:
    """So that ranges measured once serve every choice of layers."""
    model = residual_export()
    layers = choose_layers(model)
    everything = plan_quantization(model, layers).tensors.keys()
    for index in range(len(layers)):
        assert plan_quantization(model, layers[:index] + layers[index + 1 :]).tensors.keys() <= everything
        assert plan_quantization(model, layers[index : index + 1]).tensors.keys() <= everything
