"""Pass: simulate a 16-bit graph in fp32 by rounding. onnx and NumPy only.

ONNX Runtime's CPU computes fp16 graphs in fp32 without rounding and has no bf16 kernels. Where every 16-bit result is
cast to 16 bits and back, its figures are evidence: values are rounded as the file's types say, and overflow gives inf.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.graph.tensors import HALF_TYPES, copy_model, element_types
from nrd_trt.specs import Precision


def simulate_rounding(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Return the fp32 graph that rounds wherever `model` is typed in 16 bits.

    Args:
        model: A graph of `nrd_trt.graph.precision`.
        precision: That graph's precision; ``"fp32"`` returns a copy.
    """
    result = copy_model(model)
    if precision == "fp32":
        return result
    half, types, graph = HALF_TYPES[precision], element_types(model), result.graph
    nodes = []
    for node in graph.node:
        # Integers times a scale stand for themselves: int8 kernels read the integers.
        exact_already = node.op_type == "DequantizeLinear"
        rounded = [name for name in node.output if types[name] == half and not exact_already]
        exact = {name: f"{name}/exact" for name in rounded}
        node.output[:] = [exact.get(name, name) for name in node.output]
        nodes.append(node)
        for name in rounded:
            nodes.append(helper.make_node("Cast", [exact[name]], [f"{name}/16"], name=f"{name}/round", to=half))
            nodes.append(helper.make_node("Cast", [f"{name}/16"], [name], name=f"{name}/widen", to=TensorProto.FLOAT))
    widened = [
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        if tensor.data_type == half
        else tensor
        for tensor in graph.initializer
    ]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(widened)
    return result
