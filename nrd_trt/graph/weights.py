"""What a file stores: its weights, their types, and the coordinates of the decode. onnx and NumPy only."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.decode.function import DOMAIN
from nrd_trt.graph.decode_nodes import decode_nodes


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
    dequantized = {node.output[0]: node.input for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        operands = dequantized.get(node.input[1], ()) if node.op_type == "Conv" else ()
        if operands and operands[0] in tensors:
            values, scale = (numpy_helper.to_array(tensors[name]) for name in operands[:2])
            per_row = scale.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
            found[f"{node.name.removesuffix('/Conv')}.weight"] = values.astype(np.float32) * per_row
    return found


def weight_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many convolutions have weights of each type: ``fp32``, ``fp16``, ``bf16`` or ``int8`` (Q/DQ)."""
    names = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    types = {tensor.name: names.get(tensor.data_type, "other") for tensor in model.graph.initializer}
    types |= {node.output[0]: "int8" for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = Counter(types.get(node.input[1], "other") for node in model.graph.node if node.op_type == "Conv")
    return dict(sorted(found.items()))
