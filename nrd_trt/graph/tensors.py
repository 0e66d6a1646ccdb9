"""What every pass asks of a graph: element types of its tensors, stored weights, and copies. onnx and NumPy only."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import onnx
from onnx import TensorProto, helper, shape_inference

from nrd_trt.errors import ExportError

HALF_TYPES = {
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.FLOAT16,
    "fp8": TensorProto.FLOAT16,
}
"""Type of what is not fp32 in a file of each precision; 8 bits stand beside it between Q and DQ only."""

_SHORT_NAMES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}

_SIZES_BYTES = 256
"""Constants of up to so many bytes may be sizes, which shapes follow from."""


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a deep copy."""
    return copy.deepcopy(model)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type (`TensorProto` enum) of every tensor of the main graph.

    Raises:
        ExportError: A type cannot be inferred.
    """
    try:
        inferred = shape_inference.infer_shapes(_without_weights(model), strict_mode=True).graph
    except shape_inference.InferenceError as exc:
        raise ExportError(f"the file's tensors do not fit each other ({exc}); export it again.") from exc
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        types[info.name] = info.type.tensor_type.elem_type
    unknown = [name for node in inferred.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise ExportError(f"cannot infer the types of {', '.join(unknown[:5])}; is every function in the file?")
    return types


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without the values of its weights: inference would write and read all of them, twice."""
    graph = model.graph
    weights = [
        TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
        if len(weight.raw_data) > _SIZES_BYTES
        else weight
        for weight in graph.initializer
    ]
    bare = helper.make_graph(graph.node, graph.name, graph.input, graph.output, weights, value_info=graph.value_info)
    bare.sparse_initializer.extend(graph.sparse_initializer)
    return helper.make_model(
        bare, functions=model.functions, opset_imports=model.opset_import, ir_version=model.ir_version
    )


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], weights: Iterable[onnx.TensorProto]) -> None:
    """Give a graph other nodes, and of these weights those that the nodes read; inferred types are dropped."""
    read = {name for node in nodes for name in node.input}
    kept = [weight for weight in weights if weight.name in read]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def needed_nodes(nodes: Iterable[onnx.NodeProto], wanted: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the wanted tensors depend on, in order."""
    needed, kept = set(wanted), []
    for node in reversed(list(nodes)):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def rename_tensors(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Give the tensors that nodes read and write their new names; one without a new name keeps its own."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def float_outputs(model: onnx.ModelProto, types: dict[str, int]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yield every node of the main graph with each of its float32 outputs."""
    for node in model.graph.node:
        for name in node.output:
            if types[name] == TensorProto.FLOAT:
                yield node, name


def weight_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many convolutions have weights of each type: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``."""
    return dict(sorted(Counter(conv_types(model).values()).items()))


def conv_types(model: onnx.ModelProto) -> dict[str, str]:
    """Return the type of the weights of each convolution by its name, as `weight_types` counts them."""
    types = {tensor.name: _SHORT_NAMES.get(tensor.data_type, "other") for tensor in model.graph.initializer}
    for node in model.graph.node:  # weights that are quantised in the graph have the type of the zero point
        if node.op_type == "DequantizeLinear" and len(node.input) > 2:
            types[node.output[0]] = types.get(node.input[2], "other")
    return {node.name: types.get(node.input[1], "other") for node in model.graph.node if node.op_type == "Conv"}
