"""Files that are faulty or sound in unusual ways: each is told as what it is, and none is an exception."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from nrd_trt.engine.bundle import REFERENCE_FILE, read_bundle
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import read_facts, write_facts
from nrd_trt.graph.program import function_programs
from nrd_trt.graph.quantize import plan_quantization, quantized_layers
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.validation.causes import causes_in_file
from nrd_trt.validation.structure import check_structure, layer_structure, network_differences, whole_differences
from nrd_trt.validation.twin import held_ranges
from nrd_trt.validation.validate import validate
from tests.artefacts import (
    both_outputs,
    bundle,
    checkpoint,
    copy_of,
    onnx_file,
    read_facts_of,
    rewrite_facts,
    trained_model,
)
from tests.faults import Change, swap_rgb, weights_of
from tests.helpers import STATIC, small_export, small_int8, small_model

LAYER = "backbone.layer5.1.conv.1.conv"


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def along_inputs(model: onnx.ModelProto) -> None:
    """Let the scales of a weight stand along its second axis."""
    node = node_of(model, f"{LAYER}.weight/DQ")
    kept = [entry for entry in node.attribute if entry.name != "axis"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("axis", 1)])


def through(place: int, op: str = "Identity") -> Change:
    """Let a weight's DequantizeLinear read an operand through a node."""

    def change(model: onnx.ModelProto) -> None:
        node = node_of(model, f"{LAYER}.weight/DQ")
        index = list(model.graph.node).index(node)
        extra = helper.make_node(op, [node.input[place]], ["through"], name="through")
        node.input[place] = "through"
        model.graph.node.insert(index, extra)

    return change


def changed(change: Change) -> onnx.ModelProto:
    model = copy.deepcopy(small_int8())
    change(model)
    return model


def test_scales_along_another_axis_are_named() -> None:
    lines, _ = network_differences(changed(along_inputs), small_model())
    assert [line for line in lines if LAYER in line and "576 scales along axis 1 of [576, 1, 3, 3]" in line], lines


def test_a_scale_or_weight_is_seen_through_an_identity() -> None:
    sound, _ = network_differences(small_int8(), small_model())
    for place in (0, 1):
        assert network_differences(changed(through(place)), small_model())[0] == sound


def test_a_scale_that_is_computed_is_named() -> None:
    lines, _ = network_differences(changed(through(1, "Neg")), small_model())
    assert [line for line in lines if LAYER in line and "scale is no constant" in line], lines


@pytest.mark.parametrize("change", [along_inputs, through(0), through(1), through(1, "Neg")])
def test_the_search_for_causes_reads_any_of_them(change: Change) -> None:
    model = small_model()
    assert isinstance(causes_in_file(changed(change), model, {}), list)


def test_a_bias_of_zeros_may_be_left_out() -> None:
    """PyTorch's exporter leaves out those of a network that was never trained."""
    model = small_model()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    given = export_onnx(model, ExportOptions(shape=STATIC))
    left_out = copy.deepcopy(given)
    for node in left_out.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and not weights_of(left_out, node.input[2])[1].any():
            node.input.pop()
    assert sum(len(node.input) == 2 for node in left_out.graph.node if node.op_type == "Conv") > 50
    for file, other in ((left_out, given), (given, left_out)):
        assert network_differences(file, model)[0] == []
        assert whole_differences(file, other) == []
    # A bias of other numbers is a difference wherever one is left out.
    ones = numpy_helper.from_array(np.ones(32, np.float32), "ones")
    node_of(left_out, "backbone.conv1.conv/Conv").input.append("ones")
    left_out.graph.initializer.append(ones)
    (line,) = network_differences(left_out, model)[0]
    assert line.startswith("`backbone.conv1.conv`: bias")


def test_limits_of_another_shape_are_named() -> None:
    model = small_model()
    file = export_onnx(model, ExportOptions(shape=STATIC))
    clip = next(node for node in file.graph.node if node.op_type == "Clip")
    for values in (np.full(1, 6, np.float32), np.full(32, 5, np.float32)):
        given = copy.deepcopy(file)
        given.graph.initializer.append(numpy_helper.from_array(values, "limit"))
        node_of(given, clip.name).input[2] = "limit"
        (line,) = network_differences(given, model)[0]
        assert f"max has the shape {[values.size]}, expected []" in line


def test_functions_of_one_name_are_told_apart_by_their_overload() -> None:
    """From ONNX's IR version 10 on a node names the overload that it calls."""
    file = export_onnx(small_model(), ExportOptions(shape=STATIC))
    other = copy.deepcopy(file)
    other.ir_version = 10
    function = copy.deepcopy(other.functions[0])
    function.overload = "second"
    other.functions.append(function)
    assert len(function_programs(other)) == len(function_programs(file)) + 1
    assert "extra" in "".join(whole_differences(other, file))
    caller = next(node for node in other.graph.node if node.op_type == function.name)
    caller.overload = "second"
    assert [line for line in whole_differences(other, file) if "second" in line and "expected" in line]


def test_ranges_of_activations_are_read_whatever_shape_their_scales_have() -> None:
    """A scale of one element may have an axis; scales by channel are no range, and the structural proof names them."""
    model, full = copy.deepcopy(small_int8()), small_export()
    plan = plan_quantization(full, quantized_layers(model))
    known = held_ranges(model, full, plan)
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    for name, node, shape in (("one", pairs[0], (1,)), ("many", pairs[1], (32,))):
        _, value = weights_of(model, node.input[1])
        model.graph.initializer.append(numpy_helper.from_array(np.broadcast_to(value, shape).copy(), name))
        node.input[1] = name
    name = pairs[1].name.removesuffix("/Q")
    assert known.keys() == plan.tensors.keys() >= {name}
    assert held_ranges(model, full, plan) == {key: value for key, value in known.items() if key != name}
    assert any("int8: quantised with scale" in line for line in network_differences(model, small_model())[0])


def test_what_pytorch_executes_and_is_not_known_is_not_provable() -> None:
    """As of another version of PyTorch; everything else is compared all the same."""
    model = small_model()
    model.backbone.conv1.act = nn.SiLU()
    file = copy.deepcopy(small_export())
    swap_rgb(file)
    found = layer_structure(file, model)
    assert "aten::silu" in found.not_provable[0] and "the figures of the masks decide" in found.not_provable[0]
    assert found.checked == {}
    assert any("red and blue are swapped" in line for line in found.differences)


@pytest.mark.parametrize("name", ["class_names", "palette"])
def test_facts_that_are_wrong_are_told_once_by_the_entries_that_differ(name: str) -> None:
    file = copy.deepcopy(onnx.load(onnx_file()))
    facts = read_facts(file)
    write_facts(file, replace(facts, info=replace(facts.info, **{name: getattr(facts.info, name)[::-1]})))
    found = check_structure(file, read_bundle(bundle("fp32")).record, trained_model(), both_outputs())
    (line,) = found.differences
    assert line.startswith("facts: info: ")
    assert "[0] " in line and line.count("the checkpoint's is") == 4 and line.endswith("; and 6 more")
    assert found.found == 1


def test_branches_in_another_order_are_told_once_by_those_that_are_moved() -> None:
    file = copy.deepcopy(onnx.load(onnx_file()))
    node = next(node for node in file.graph.node if node.op_type == "Concat" and len(node.input) == 5)
    node.input[1], node.input[2] = node.input[2], node.input[1]
    found = check_structure(file, read_bundle(bundle("fp32")).record, trained_model(), both_outputs())
    (line,) = found.differences
    first, second = ("`decode_head.aspp_modules.0.act`", "`decode_head.aspp_modules.1.pointwise_conv.act`")
    assert line.endswith(f"inputs in the order {second}, {first}, expected {first}, {second}")


def test_the_checkpoint_of_another_network_comes_first_and_does_not_flood(tmp_path: Path) -> None:
    other, model = tmp_path / "other.safetensors", load_model(checkpoint())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1 + 0.1 * torch.sin(torch.arange(weight.numel())).reshape(weight.shape))
    save_checkpoint(model, other)
    found = validate(bundle("fp32"), checkpoint=other, threads=1, progress=False)
    assert found.failures[0].startswith("the checkpoint is not the one that the bundle was built from")
    assert f"SHA-256 {sha256_file(checkpoint())}" in found.failures[0]
    assert found.structure is not None and found.structure.found > 60
    assert len(found.structure.differences) == 50
    told = [line for line in found.failures if line.startswith("structure: ")]
    assert told[-1] == f"structure: {found.structure.found - 8} more differences"
    assert len(told) == 9


@pytest.mark.parametrize("source", ["torch", "onnx"])
def test_stored_masks_are_held_against_the_checkpoint(source: str, tmp_path: Path) -> None:
    """They are all that a validation without a checkpoint has."""
    path = copy_of(bundle("fp32"), tmp_path / "edited.nrd")
    options: dict[str, Any] = {"checkpoint": checkpoint(), "threads": 1, "progress": False, "structure": False}
    held = read_bundle(path).references()
    for shift, said in ((0, 0), (3, 1)):
        edited = replace(held, masks=np.roll(held.masks, shift, axis=2), source=source)
        (path / REFERENCE_FILE).write_bytes(edited.to_bytes())
        files = {**read_facts_of(path)["files"], REFERENCE_FILE: sha256_file(path / REFERENCE_FILE)}
        rewrite_facts(path, files=files)
        found = validate(path, **options)
        assert sum("the stored masks are not the checkpoint's" in line for line in found.failures) == said
        assert found.passed == (not said)
