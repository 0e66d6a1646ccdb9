"""Pass: make the tensors between the stages of a network outputs of its file. onnx and NumPy only."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.decode.function import DOMAIN, MASK_OP
from nrd_trt.graph.decode_nodes import decode_nodes
from nrd_trt.graph.tensors import copy_model

PREFIX = "stage/"
_PASSED_THROUGH = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "Identity"})
_LOGITS_FUNCTION = "NrdStageLogits"


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


def coordinate_tables(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the columns' and the rows' table ``(f,)`` by where the file has them: on a node, or in a function."""
    found = {}
    for node in decode_nodes(model):
        values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if "x_table" in values:
            found[f"node {node.op_type}"] = (np.array(values["x_table"]), np.array(values["y_table"]))
    for function in model.functions:
        for node in function.node:
            if function.domain == DOMAIN and list(node.output) == ["coordinates"]:
                x, y = numpy_helper.to_array(node.attribute[0].t)
                patch = int(np.sqrt(x.size))
                found[f"function {function.name}"] = (x[:patch], y[::patch])
    return found


def stored_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the weights of a file as float32, by the names that they had in fp32; int8 ones times their scale."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {
        re.sub(r"/(fp32|fp16|bf16)$", "", name): numpy_helper.to_array(tensor).astype(np.float32)
        for name, tensor in tensors.items()
        if tensor.data_type in kinds
    }
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        producer = made_by.get(node.input[1]) if node.op_type == "Conv" else None
        if producer is not None and producer.op_type == "DequantizeLinear" and producer.input[0] in tensors:
            values, scale = (numpy_helper.to_array(tensors[name]) for name in producer.input[:2])
            per_row = scale.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
            found[f"{node.name.removesuffix('/Conv')}.weight"] = values.astype(np.float32) * per_row
    return found


def weight_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many convolutions have weights of each type: ``fp32``, ``fp16``, ``bf16`` or ``int8`` (Q/DQ)."""
    names = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    stored = {tensor.name: names.get(tensor.data_type, "other") for tensor in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            producer = made_by.get(node.input[1])
            quantised = producer is not None and producer.op_type == "DequantizeLinear"
            kind = "int8" if quantised else stored.get(node.input[1], "other")
            found[kind] = found.get(kind, 0) + 1
    return dict(sorted(found.items()))


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
    has_mask_node = any(node.op_type == MASK_OP for node in decode_nodes(model))
    if has_mask_node:
        return stages
    # In 16 bits the output's name belongs to the cast back to fp32; a file without that output has the inner tensor.
    logits = next((name for name in ("logits", "logits/fp16", "logits/bf16") if name in produced), None)
    return stages | ({"logits": logits} if logits else {})


def _read_features(model: onnx.ModelProto) -> Iterator[str]:
    """Yield what the head reads of the encoder, as the encoder wrote it: before casts and quantisation."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in _PASSED_THROUGH or not node.name.startswith("decode_head"):
            continue
        for name in node.input:
            while (producer := made_by.get(name)) is not None and producer.op_type in _PASSED_THROUGH:
                name = producer.input[0]
            if producer is not None and producer.name.startswith("backbone"):
                yield name


def _logits_of_mask(model: onnx.ModelProto) -> str | None:
    """Call the mask's function a second time, cut where it has the logits; return the tensor that it then gives."""
    node = next((node for node in decode_nodes(model) if node.op_type == MASK_OP), None)
    whole = next((entry for entry in model.functions if node is not None and entry.name == node.op_type), None)
    if node is None or whole is None:
        return None
    cut = onnx.FunctionProto()
    cut.CopyFrom(whole)
    cut.name = _LOGITS_FUNCTION
    del cut.output[:], cut.node[:]
    cut.output.append("logits")
    needed, kept = {"logits"}, []
    for inner in reversed(whole.node):
        if not needed.isdisjoint(inner.output):
            needed.update(inner.input)
            kept.append(inner)
    cut.node.extend(reversed(kept))
    model.functions.append(cut)
    call = onnx.NodeProto()
    call.CopyFrom(node)
    call.name, call.op_type = f"{PREFIX}{_LOGITS_FUNCTION}", _LOGITS_FUNCTION
    tensor = f"{PREFIX}inner_logits"
    call.output[:] = [tensor]
    model.graph.node.append(call)
    return tensor
