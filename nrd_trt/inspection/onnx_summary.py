"""What an ONNX file holds: types, sizes, functions and the plugin's nodes. onnx only; nothing is run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from nrd_trt.errors import ExportError
from nrd_trt.graph.inline import is_inlined
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.specs import LayerRecord

_SHORT = {"FLOAT": "float32", "DOUBLE": "float64"}


@dataclass(frozen=True, kw_only=True)
class TensorSummary:
    """An input or output: its name, type and shape; a dynamic dimension is None or has a name."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """Smallest, usual and largest shape of an input; equal ones where the size is fixed."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class NodeCounts:
    """Number of nodes: all of them, by operator, and by type of the first output."""

    total: int
    by_op: dict[str, int]
    by_type: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class WeightCounts:
    """Tensors, elements and bytes of the weights of one type."""

    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class FunctionSummary:
    """A function that the file defines, with the number of its nodes."""

    name: str
    domain: str
    nodes: int
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PluginNode:
    """A node of an operator that is not ONNX's own; attributes are JSON values."""

    name: str
    op: str
    domain: str
    attributes: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OnnxSummary:
    """What an ONNX file holds.

    Attributes:
        ir_version: Version of the file format.
        opset: Version by operator domain.
        producer: Tool that wrote the file; None where none is named.
        inputs: Inputs of the graph.
        outputs: Outputs of the graph.
        nodes: Numbers of nodes.
        weights: Sizes of the weights by type, the largest first.
        functions: Functions of the file.
        plugin_nodes: Nodes of other domains than ONNX's own.
        inlined: Whether the decode stands among the nodes, as ``export(inline=True)`` writes it; None for a file of
            another tool.
        metadata: What this toolkit wrote into the file; None where another tool wrote it.
    """

    ir_version: int
    opset: dict[str, int]
    producer: str | None
    inputs: tuple[TensorSummary, ...]
    outputs: tuple[TensorSummary, ...]
    nodes: NodeCounts
    weights: dict[str, WeightCounts]
    functions: tuple[FunctionSummary, ...]
    plugin_nodes: tuple[PluginNode, ...]
    inlined: bool | None
    metadata: GraphFacts | None


def summarise_onnx(model: onnx.ModelProto) -> tuple[OnnxSummary, tuple[LayerRecord, ...]]:
    """Return what a file holds, and its nodes."""
    try:
        facts = read_facts(model)
    except ExportError:  # another tool wrote the file
        facts = None
    layers = _layers(model)
    summary = OnnxSummary(
        ir_version=model.ir_version,
        opset={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))) or None,
        inputs=tuple(map(_described, model.graph.input)),
        outputs=tuple(map(_described, model.graph.output)),
        nodes=NodeCounts(
            total=len(layers),
            by_op=counted(layer.kind for layer in layers),
            by_type=counted(layer.type for layer in layers),
        ),
        weights=_weights(model),
        functions=tuple(
            FunctionSummary(name=one.name, domain=one.domain, nodes=len(one.node), inputs=tuple(one.input))
            for one in model.functions
        ),
        plugin_nodes=tuple(
            PluginNode(
                name=node.name,
                op=node.op_type,
                domain=node.domain,
                attributes={entry.name: _plain(helper.get_attribute_value(entry)) for entry in node.attribute},
            )
            for node in model.graph.node
            if node.domain not in ("", "ai.onnx")
        ),
        inlined=is_inlined(model) if facts else None,
        metadata=facts,
    )
    return summary, layers


def profile_of(facts: GraphFacts) -> dict[str, ShapeRange]:
    """Return the shapes that the input of a file of this toolkit may have."""
    shape = facts.shape
    sizes = {}
    for which in ("min", "opt", "max"):
        batch, height, width = (getattr(extent, which) for extent in (shape.batch, shape.height, shape.width))
        sizes[which] = (batch, height, width, 3) if facts.input_form == "uint8" else (batch, 3, height, width)
    return {"image": ShapeRange(**sizes)}


def counted(names: Iterable[str]) -> dict[str, int]:
    """Return how often each name occurs, the most frequent first."""
    return dict(Counter(names).most_common())


def _layers(model: onnx.ModelProto) -> tuple[LayerRecord, ...]:
    """Return name, op and type of the first output of every node."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:  # a foreign file; its types stay unknown
        inferred = model.graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {value.name: _type_name(value.type.tensor_type.elem_type) for value in values}
    return tuple(
        LayerRecord(
            name=node.name,
            kind=node.op_type,
            type=types.get(node.output[0], "unknown") if node.output else "none",
        )
        for node in model.graph.node
    )


def _described(value: onnx.ValueInfoProto) -> TensorSummary:
    tensor = value.type.tensor_type
    shape = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
    return TensorSummary(name=value.name, dtype=_type_name(tensor.elem_type), shape=tuple(shape))


def _weights(model: onnx.ModelProto) -> dict[str, WeightCounts]:
    found: dict[str, list[int]] = {}
    for tensor in model.graph.initializer:
        counts = found.setdefault(_type_name(tensor.data_type), [0, 0, 0])
        elements = math.prod(tensor.dims)
        size = elements * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        counts[:] = (before + more for before, more in zip(counts, (1, elements, size), strict=True))
    largest_first = sorted(found.items(), key=lambda item: -item[1][2])
    return {
        kind: WeightCounts(tensors=tensors, elements=elements, bytes=size)
        for kind, (tensors, elements, size) in largest_first
    }


def _plain(value: Any) -> Any:
    """Return an attribute as a JSON value."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, int | float | str):
        return value
    if hasattr(value, "DESCRIPTOR"):
        return f"<{type(value).__name__}>"
    return [_plain(item) for item in value]


def _type_name(number: int) -> str:
    if number not in TensorProto.DataType.values():
        return "unknown"
    name = str(TensorProto.DataType.Name(number))
    return _SHORT.get(name, name.lower())
