"""Passes: keep only the outputs asked for, and make the tensors between the stages outputs. onnx only."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from nrd_trt.decode.function import CONFIDENCE_OP, MASK_OP
from nrd_trt.graph.decode_nodes import decode_nodes
from nrd_trt.graph.metadata import read_facts, write_facts
from nrd_trt.graph.tensors import copy_model, needed_nodes, replace_nodes
from nrd_trt.specs import GraphOutput

PREFIX = "stage/"
_PASSED_THROUGH = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "Identity"})
_LOGITS_FUNCTION = "NrdStageLogits"


def select_outputs(model: onnx.ModelProto, output: GraphOutput) -> onnx.ModelProto:
    """Return the graph with these outputs of the file's; unused nodes and functions go.

    Without a mask there is nothing to unpack, and the file's facts say so.
    """
    result, facts = copy_model(model), replace(read_facts(model), output=output)
    wanted, graph = facts.outputs, result.graph
    if "confidence" not in wanted:
        _leave_confidence_out(result)
    nodes = needed_nodes(graph.node, wanted)
    outputs = [entry for entry in graph.output if entry.name in wanted]
    functions = [entry for entry in result.functions if any(node.op_type == entry.name for node in nodes)]
    replace_nodes(graph, nodes, list(graph.initializer))
    del graph.output[:], result.functions[:]
    graph.output.extend(outputs)
    result.functions.extend(functions)
    write_facts(result, facts if "mask" in wanted else replace(facts, mask_encoding="uint8"))
    return result


def _leave_confidence_out(model: onnx.ModelProto) -> None:
    """Make the mask's function of the one that gives the confidence too: what a file without confidence has."""
    for node in model.graph.node:
        if node.op_type == CONFIDENCE_OP:
            node.op_type, node.name = MASK_OP, node.name.replace(CONFIDENCE_OP, MASK_OP)
            del node.output[1:]
    for function in model.functions:
        if function.name == CONFIDENCE_OP:
            function.name = MASK_OP
            del function.output[1:]
            kept = needed_nodes(function.node, function.output)
            del function.node[:]
            function.node.extend(kept)


def with_taps(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with one more float32 output ``stage/NAME`` per stage that the file has.

    Stages: ``preprocessing`` (where it is in the graph), ``c1`` and ``c4`` (first and last encoder feature that the
    head reads; one that reads a single feature has ``c4`` only), ``theta``, ``guidance`` and ``logits``. Logits are
    those from which the file draws its mask; where the mask's function computes them inside, it is cut there.

    Args:
        model: A file of this toolkit, in any precision.
    """
    result = copy_model(model)
    graph = result.graph
    tensors = _stage_tensors(model)
    if "logits" not in tensors and (inside := _logits_of_mask(result)):
        tensors["logits"] = inside
    for stage, tensor in tensors.items():
        output = PREFIX + stage
        graph.node.append(helper.make_node("Cast", [tensor], [output], name=output, to=TensorProto.FLOAT))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * 4))
    return result


def _stage_tensors(model: onnx.ModelProto) -> dict[str, str]:
    """Return the tensors of the main graph by stage."""
    produced = {name for node in model.graph.node for name in node.output}
    stages = {"preprocessing": "pixels"} if "pixels" in produced else {}
    if features := list(dict.fromkeys(_read_features(model))):
        order = {name: place for place, node in enumerate(model.graph.node) for name in node.output}
        features.sort(key=order.__getitem__)
        stages |= {"c1": features[0]} if len(features) > 1 else {}
        stages["c4"] = features[-1]
    stages |= {name: name for name in ("theta", "guidance") if name in produced}
    if _mask_node(model) is not None:
        return stages
    # In 16 bits the output's name belongs to the cast back to fp32; a file without that output has the inner tensor.
    logits = next((name for name in ("logits", "logits/fp16", "logits/bf16") if name in produced), None)
    return stages | ({"logits": logits} if logits else {})


def _read_features(model: onnx.ModelProto) -> Iterator[str]:
    """Yield what the head reads of the encoder before casts and quantisation, whatever nodes stand between the two."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in _PASSED_THROUGH or not node.name.startswith("decode_head"):
            continue
        for name in node.input:
            while (producer := made_by.get(name)) is not None and producer.op_type in _PASSED_THROUGH:
                name = producer.input[0]
            while producer is not None and not producer.name.startswith(("backbone", "decode_head")):
                producer = made_by.get(producer.input[0]) if producer.input else None
            if producer is not None and producer.name.startswith("backbone"):
                yield name


def _mask_node(model: onnx.ModelProto) -> onnx.NodeProto | None:
    return next((node for node in decode_nodes(model) if node.op_type in (MASK_OP, CONFIDENCE_OP)), None)


def _logits_of_mask(model: onnx.ModelProto) -> str | None:
    """Call the mask's function a second time, cut where it has the logits; return the tensor that it then gives."""
    node = _mask_node(model)
    whole = next((entry for entry in model.functions if node is not None and entry.name == node.op_type), None)
    if node is None or whole is None:
        return None
    cut = copy.deepcopy(whole)
    cut.name = _LOGITS_FUNCTION
    del cut.output[:], cut.node[:]
    logits = next(entry.input[0] for entry in whole.node if entry.op_type == "Resize")
    cut.output.append(logits)
    cut.node.extend(needed_nodes(whole.node, [logits]))
    model.functions.append(cut)
    call = copy.deepcopy(node)
    call.name, call.op_type = f"{PREFIX}{_LOGITS_FUNCTION}", _LOGITS_FUNCTION
    tensor = f"{PREFIX}inner_logits"
    call.output[:] = [tensor]
    model.graph.node.append(call)
    return tensor
