"""What an ONNX file holds: types, sizes, functions and the plugin's nodes. onnx only; nothing is run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from nrd_trt.errors import ExportError
from nrd_trt.graph.metadata import GraphFacts, read_facts

_SHORT = {"FLOAT": "float32", "DOUBLE": "float64"}


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Raises:
        ExportError: It is not one.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as exc:  # protobuf's and onnx's errors have no common base
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ExportError(
            f"{path}: expected an ONNX file, got something that is none ({reason}); export it again with "
            "`nrd-trt export`."
        ) from exc
    return model


def summarise_onnx(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what a file holds, as JSON values."""
    facts = facts_of(model)
    layers = _layers(model)
    return {
        "ir_version": model.ir_version,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))) or None,
        "inputs": [_described(value) for value in model.graph.input],
        "outputs": [_described(value) for value in model.graph.output],
        "nodes": {
            "total": len(layers),
            "by_op": _counted(layer["kind"] for layer in layers),
            "by_type": _counted(layer["type"] for layer in layers),
        },
        "weights": _weights(model),
        "functions": [
            {"name": f.name, "domain": f.domain, "nodes": len(f.node), "inputs": list(f.input)} for f in model.functions
        ],
        "plugin_nodes": [_plugin_node(node) for node in model.graph.node if node.domain not in ("", "ai.onnx")],
        "metadata": facts.to_dict() if facts else None,
        "layers": layers,
    }


def facts_of(model: onnx.ModelProto) -> GraphFacts | None:
    """Return this toolkit's metadata, or None where another tool wrote the file."""
    try:
        return read_facts(model)
    except ExportError:
        return None


def profile_of(facts: GraphFacts) -> dict[str, dict[str, list[int]]]:
    """Return smallest, usual and largest shape of the input; equal ones where the size is fixed."""
    shape = facts.shape
    sizes = {}
    for which in ("min", "opt", "max"):
        batch, height, width = (getattr(extent, which) for extent in (shape.batch, shape.height, shape.width))
        sizes[which] = [batch, height, width, 3] if facts.input_form == "uint8" else [batch, 3, height, width]
    return {"image": sizes}


def _layers(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Return name, op and type of the first output of every node."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:  # a foreign file; its types stay unknown
        inferred = model.graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {value.name: _type_name(value.type.tensor_type.elem_type) for value in values}
    return [
        {
            "name": node.name,
            "kind": node.op_type,
            "type": types.get(node.output[0], "unknown") if node.output else "none",
        }
        for node in model.graph.node
    ]


def _described(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": _type_name(tensor.elem_type), "shape": shape}


def _weights(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """Return tensors, elements and bytes of the weights per type."""
    found: dict[str, dict[str, int]] = {}
    for tensor in model.graph.initializer:
        entry = found.setdefault(_type_name(tensor.data_type), {"tensors": 0, "elements": 0, "bytes": 0})
        elements = math.prod(tensor.dims)
        entry["tensors"] += 1
        entry["elements"] += elements
        entry["bytes"] += elements * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _plugin_node(node: onnx.NodeProto) -> dict[str, Any]:
    attributes = {entry.name: _plain(helper.get_attribute_value(entry)) for entry in node.attribute}
    return {"name": node.name, "op": node.op_type, "domain": node.domain, "attributes": attributes}


def _plain(value: Any) -> Any:
    """Return an attribute as a JSON value."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, int | float | str):
        return value
    if hasattr(value, "DESCRIPTOR"):
        return f"<{type(value).__name__}>"
    return [_plain(item) for item in value]


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _type_name(number: int) -> str:
    if number not in TensorProto.DataType.values():
        return "unknown"
    name = str(TensorProto.DataType.Name(number))
    return _SHORT.get(name, name.lower())
