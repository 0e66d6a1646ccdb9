"""An ONNX file as a program, node by node as it stands; `nrd_trt.graph.network` has what its network computes of it.

Names of tensors, nodes and formals do not count, defaults of attributes are filled in, and a Constant node is what an
initializer is. onnx and NumPy only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from nrd_trt.program import Operand, Operation, Program

_LABELS: dict[str, tuple[str, ...]] = {
    "Conv": ("input", "weight", "bias"),
    "Clip": ("input", "min", "max"),
    "Resize": ("input", "region", "scales", "sizes"),
}
_TYPED = frozenset({"to", "output_dtype", "dtype"})
"""Attributes that are element types."""
_POOLED = frozenset({"Conv", "MaxPool", "AveragePool"})


def graph_program(model: onnx.ModelProto, results: Sequence[str] | None = None) -> Program:
    """Return the main graph of a file as it stands; results are these tensors, or its outputs."""
    inputs = {entry.name: entry.name for entry in model.graph.input}
    results = [entry.name for entry in model.graph.output] if results is None else results
    return _program(model.graph.node, inputs, model.graph.initializer, results, _versions(model.opset_import))


def function_programs(model: onnx.ModelProto) -> dict[str, Program]:
    """Return the body of each function by ``domain.name`` and its overload; inputs and results are numbered."""
    programs = {}
    for entry in model.functions:
        inputs = {name: f"input {index}" for index, name in enumerate(entry.input)}
        program = _program(entry.node, inputs, (), entry.output, _versions(entry.opset_import))
        results = {f"output {index}": program.results[name] for index, name in enumerate(entry.output)}
        programs[f"{entry.domain}.{entry.name}{_overload(entry)}"] = replace(program, results=results)
    return programs


def _overload(entry: onnx.FunctionProto | onnx.NodeProto) -> str:
    return f":{entry.overload}" if entry.overload else ""


def layer_name(node_name: str, kind: str) -> str:
    """Return the layer that a node of the exporter stands for: its name without the operator."""
    if kind in ("QuantizeLinear", "DequantizeLinear"):  # named after what they read: a weight, or another node's output
        return re.sub(r"(\.weight|/\w+)?/D?Q$", "", node_name)
    return re.sub(rf"/{re.escape(kind)}(_\d+)?$", "", node_name)


def _labels(kind: str, operands: Sequence[Operand]) -> tuple[str, ...]:
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        what = "weight" if operands and isinstance(operands[0], np.ndarray) else "activation"
        return ("8-bit weight" if what == "weight" else "input", f"{what} scale", f"{what} zero point")
    return _LABELS.get(kind, ())


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {entry.domain: entry.version for entry in imports}


def _program(
    nodes: Iterable[onnx.NodeProto],
    inputs: Mapping[str, str],
    initializers: Iterable[TensorProto],
    results: Sequence[str],
    versions: Mapping[str, int],
) -> Program:
    known: dict[str, Operand] = {"": None, **inputs}
    known |= {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers}
    operations: list[Operation] = []
    for node in nodes:
        attributes = _attributes(node, versions.get(node.domain, 0))
        if node.op_type == "Constant" and not node.domain and len(node.attribute) == 1:
            known[node.output[0]] = _constant(node.attribute[0])
            continue
        operands = [known.get(name, f"undefined {name}") for name in node.input]
        while operands and operands[-1] is None:
            operands.pop()
        kind = node.op_type + _overload(node)
        kind = f"{node.domain}.{kind}" if node.domain not in ("", "ai.onnx") else kind
        if kind in _POOLED:
            _fill_pooling(attributes, _weight(operands, operations))
        known |= {name: (len(operations), place) for place, name in enumerate(node.output) if name}
        operations.append(
            Operation(
                name=node.op_type if node.domain else layer_name(node.name, node.op_type) or "".join(node.output[:1]),
                kind=kind,
                attributes=attributes,
                operands=tuple(operands),
                labels=_labels(kind, operands),
                place="".join(node.output[:1]),
            )
        )
    return Program(
        operations=tuple(operations), results={name: known.get(name, f"undefined {name}") for name in results}
    )


def _attributes(node: onnx.NodeProto, version: int) -> dict[str, Any]:
    """Return the attributes of a node with their defaults, in plain values."""
    found: dict[str, Any] = {}
    domain = "" if node.domain == "ai.onnx" else node.domain
    if defs.has(node.op_type, domain) and version:
        schema = defs.get_schema(node.op_type, version, domain)
        defaults = [entry.default_value for entry in schema.attributes.values()]
        found = {entry.name: _plain(entry) for entry in defaults if entry.name}
    return found | {entry.name: _plain(entry) for entry in node.attribute}


def _plain(entry: onnx.AttributeProto) -> Any:
    if entry.ref_attr_name:
        return f"attribute {entry.ref_attr_name} of the function"
    value = helper.get_attribute_value(entry)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.GraphProto):
        return value.SerializeToString(deterministic=True)
    if entry.name in _TYPED and isinstance(value, int):
        return TensorProto.DataType.Name(value)
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, bytes | str) else value


def _constant(entry: onnx.AttributeProto) -> np.ndarray:
    value = helper.get_attribute_value(entry)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.asarray(value, kinds.get(entry.name))


def _weight(operands: Sequence[Operand], operations: Sequence[Operation]) -> Operand:
    """Return the weight of a convolution as the file stores it, in 8 bits where it is dequantised."""
    weight = operands[1] if len(operands) > 1 else None
    if isinstance(weight, tuple) and operations[weight[0]].kind == "DequantizeLinear":
        return operations[weight[0]].operands[0]
    return weight


def _fill_pooling(attributes: dict[str, Any], weight: Operand) -> None:
    """Fill in what ONNX derives from the weight, or leaves at no padding, step one."""
    kernel = attributes.get("kernel_shape") or (weight.shape[2:] if isinstance(weight, np.ndarray) else (1, 1))
    defaults = {"kernel_shape": tuple(kernel), "strides": (1,) * len(kernel), "dilations": (1,) * len(kernel)}
    for name, value in {**defaults, "pads": (0,) * (2 * len(kernel))}.items():
        attributes.setdefault(name, value)
