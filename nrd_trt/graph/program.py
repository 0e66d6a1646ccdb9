"""An ONNX file as a program: node by node as it stands, or only what its network computes. onnx and NumPy only.

Names of tensors, nodes and formals do not count, defaults of attributes are filled in, and a Constant node is what an
initializer is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from nrd_trt.graph.decode_nodes import decode_nodes
from nrd_trt.program import Operand, Operation, Program

_LABELS: dict[str, tuple[str, ...]] = {
    "Conv": ("input", "weight", "bias"),
    "Clip": ("input", "min", "max"),
    "Resize": ("input", "region", "scales", "sizes"),
}
_TYPED = frozenset({"to", "output_dtype", "dtype"})
"""Attributes that are element types."""
_POOLED = frozenset({"Conv", "MaxPool", "AveragePool"})
_PASSED = frozenset({"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"})


def graph_program(model: onnx.ModelProto) -> Program:
    """Return the main graph of a file as it stands; results are its outputs."""
    inputs = {entry.name: entry.name for entry in model.graph.input}
    results = [entry.name for entry in model.graph.output]
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
        return (f"int8 {what}" if what == "weight" else "input", f"{what} scale", f"{what} zero point")
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
            _fill_pooling(attributes, operands)
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


def _fill_pooling(attributes: dict[str, Any], operands: Sequence[Operand]) -> None:
    """Fill in what ONNX derives from the weight, or leaves at no padding, step one."""
    weight = operands[1] if len(operands) > 1 else None
    kernel = attributes.get("kernel_shape") or (weight.shape[2:] if isinstance(weight, np.ndarray) else (1, 1))
    defaults = {"kernel_shape": tuple(kernel), "strides": (1,) * len(kernel), "dilations": (1,) * len(kernel)}
    for name, value in {**defaults, "pads": (0,) * (2 * len(kernel))}.items():
        attributes.setdefault(name, value)


# --- what the network of a file computes ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """An activation between QuantizeLinear and DequantizeLinear.

    Attributes:
        operand: What is quantised, in the network's program; None where that is no part of it.
        name: The layer that gives it.
        scale: The file's scale.
        faults: What is wrong with the pair itself, in words.
    """

    operand: Operand
    name: str
    scale: float
    faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FileNetwork:
    """The network of a file without types: from its pixels to theta and guidance, or to logits.

    Attributes:
        program: Its operations; weights that are stored in int8 are float64, times their scale.
        pixels: Tensor of the file that the network reads.
        results: Tensors of the file that the network gives.
        quantized: Its activations in int8.
    """

    program: Program
    pixels: str
    results: Mapping[str, str]
    quantized: tuple[QuantizedTensor, ...] = field(default=())


def file_network(model: onnx.ModelProto) -> FileNetwork | None:
    """Return the network of a file, or None where the file has no ending of this toolkit."""
    results = _ends(model)
    if results is None:
        return None
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = {entry.name: entry.name for entry in model.graph.input if entry.name not in initializers}
    whole = _program(
        model.graph.node, inputs, model.graph.initializer, list(results.values()), _versions(model.opset_import)
    )
    return _Reduced(_without_shapes(whole), results, next(iter(inputs), "")).network()


def _ends(model: onnx.ModelProto) -> dict[str, str] | None:
    """Return the tensors that end the network by name: what the decode reads, or a baseline's logits."""
    decodes = decode_nodes(model)
    if decodes:
        theta, guidance, *_ = [*map(str, decodes[0].input), "", ""]
        return {"theta": theta, "guidance": guidance}
    made_by = {name: node for node in model.graph.node for name in node.output}
    output = next((entry.name for entry in model.graph.output if entry.name == "logits"), None)
    if output is None:
        node = made_by.get("mask")
        while node is not None and node.op_type != "Resize":
            node = made_by.get(node.input[0]) if node.input else None
        output = node.input[0] if node is not None else None
    return None if output is None else {"logits": output}


class _Reduced:
    """Leaves casts and quantisation out of a program."""

    def __init__(self, whole: Program, results: Mapping[str, str], image: str) -> None:
        self._whole, self._results, self._image = whole, results, image
        self._operations: list[Operation] = []
        self._done: dict[int, Operand] = {}
        self._after_conv = self._conv_dependent()
        self._pixels = self._entry()

    def network(self) -> FileNetwork:
        for index in self._reachable():
            self._done[index] = self._reduce(index)
        results = {name: self._known(self._whole.results[tensor]) for name, tensor in self._results.items()}
        operations = self._whole.operations
        quantized = tuple(self._quantized())
        pixels = operations[self._pixels[0]].place if isinstance(self._pixels, tuple) else self._image
        return FileNetwork(
            program=Program(operations=tuple(self._operations), results=results),
            pixels=pixels,
            results=self._results,
            quantized=quantized,
        )

    def _conv_dependent(self) -> list[bool]:
        dependent: list[bool] = []
        for operation in self._whole.operations:
            reads = [dependent[entry[0]] for entry in operation.operands if isinstance(entry, tuple)]
            dependent.append(operation.kind == "Conv" or any(reads))
        return dependent

    def _entry(self) -> Operand:
        """Return what the first convolution reads, before casts and quantisation: the normalised image."""
        first = next((entry for entry in self._whole.operations if entry.kind == "Conv"), None)
        return None if first is None or not first.operands else self._stripped(first.operands[0])

    def _stripped(self, operand: Operand) -> Operand:
        while isinstance(operand, tuple) and self._passes(operation := self._whole.operations[operand[0]]):
            if operation.kind == "Cast" and not self._is_float_cast(operation):
                break
            operand = operation.operands[0]
        return operand

    def _passes(self, operation: Operation) -> bool:
        return operation.kind in _PASSED and bool(operation.operands)

    def _is_float_cast(self, operation: Operation) -> bool:
        """Whether a cast reads what was computed; the image itself is cast by the preprocessing."""
        return not (isinstance(operation.operands[0], str))

    def _reachable(self) -> list[int]:
        needed: set[int] = set()
        waiting = [entry for entry in self._whole.results.values() if isinstance(entry, tuple)]
        while waiting:
            index, _ = waiting.pop()
            if index not in needed:
                needed.add(index)
                waiting += [entry for entry in self._whole.operations[index].operands if isinstance(entry, tuple)]
        return sorted(needed)

    def _known(self, operand: Operand) -> Operand:
        if operand is self._pixels or (isinstance(operand, tuple) and operand == self._pixels):
            return "pixels"
        if isinstance(operand, str):
            return "pixels" if operand == self._pixels else operand
        if not isinstance(operand, tuple):
            return operand
        done = self._done.get(operand[0])
        return (done[0], operand[1]) if isinstance(done, tuple) else done

    def _reduce(self, index: int) -> Operand:
        """Return what stands for an operation in the reduced program."""
        operation = self._whole.operations[index]
        if not self._after_conv[index] and operation.kind not in _PASSED:
            if isinstance(self._pixels, tuple) and index <= self._pixels[0]:
                return f"preprocessing {operation.name}"
        if self._passes(operation):
            data = self._known(operation.operands[0])
            if operation.kind == "DequantizeLinear" and isinstance(data, np.ndarray):
                return _dequantized(self._with_known(operation), data)
            return data
        self._operations.append(_in_words_of_pytorch(self._with_known(operation)))
        return (len(self._operations) - 1, 0)

    def _with_known(self, operation: Operation) -> Operation:
        return replace(operation, operands=tuple(map(self._known, operation.operands)))

    def _quantized(self) -> Iterable[QuantizedTensor]:
        operations = self._whole.operations
        seen: set[int] = set()
        for index in self._reachable():
            operation = operations[index]
            if operation.kind != "DequantizeLinear" or isinstance(self._known(operation.operands[0]), np.ndarray):
                continue
            source = operation.operands[0]
            pair = operations[source[0]] if isinstance(source, tuple) else None
            if not isinstance(source, tuple) or pair is None or pair.kind != "QuantizeLinear":
                yield QuantizedTensor(operand=None, name=operation.name, scale=np.nan, faults=("no QuantizeLinear",))
                continue
            seen.add(source[0])
            yield self._pair(pair, operation)
        for index in self._reachable():
            if operations[index].kind == "QuantizeLinear" and index not in seen:
                pair = operations[index]
                yield QuantizedTensor(operand=None, name=pair.name, scale=np.nan, faults=("no DequantizeLinear",))

    def _pair(self, quantize: Operation, dequantize: Operation) -> QuantizedTensor:
        faults = []
        sides = (self._with_known(quantize), self._with_known(dequantize))
        scales, zeros = ([_at(side, place) for side in sides] for place in (1, 2))
        if any(scale.size != 1 for scale in scales) or scales[0].ravel()[0] != scales[1].ravel()[0]:
            faults.append(f"quantised with scale {_listed(scales[0])}, read with {_listed(scales[1])}")
        if any(zero.size and zero.any() for zero in zeros):
            faults.append(f"zero point {_listed(zeros[0])} and {_listed(zeros[1])}, expected 0")
        if any(zero.dtype != np.int8 for zero in zeros):
            faults.append(f"quantised to {zeros[0].dtype} and read from {zeros[1].dtype}, expected int8")
        operand = self._known(quantize.operands[0])
        name = self._operations[operand[0]].name if isinstance(operand, tuple) else str(operand)
        scale = float(scales[0].ravel()[0]) if scales[0].size else np.nan
        return QuantizedTensor(operand=operand, name=name, scale=scale, faults=tuple(faults))


def _at(operation: Operation, place: int) -> np.ndarray:
    operand = operation.operands[place] if len(operation.operands) > place else None
    return np.asarray(operand) if isinstance(operand, np.ndarray) else np.zeros(0, np.uint8)


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{float(value):.6g}" for value in values.ravel()[:4]) or "none"


def _dequantized(operation: Operation, integers: np.ndarray) -> np.ndarray | str:
    """Return stored integers times their scale, float64, or say why that cannot be done."""
    scale, zero = (np.asarray(_at(operation, place), np.float64) for place in (1, 2))
    if not scale.size:
        return "an int8 weight whose scale is no constant"
    axis = int(operation.attributes.get("axis", 1))
    axis += integers.ndim if axis < 0 else 0
    channels = integers.shape[axis] if 0 <= axis < integers.ndim else 0
    for what, values in (("scales", scale), ("zero points", zero)):
        if values.size not in (0, 1, channels):
            return f"an int8 weight with {values.size} {what} along axis {axis} of {list(integers.shape)}"
    shape = [-1 if place == axis else 1 for place in range(integers.ndim)]
    centred = integers.astype(np.float64) - (_along(zero, shape) if zero.size else 0.0)
    return np.asarray(centred * _along(scale, shape))


def _along(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return values.reshape(shape) if values.size > 1 else values.reshape(())


def _in_words_of_pytorch(operation: Operation) -> Operation:
    """Return an operation as `nrd_trt.model.program` writes it."""
    kind, operands, attributes = operation.kind, operation.operands, dict(operation.attributes)
    if kind == "ReduceMean" and _axes(operation) in ((2, 3), (-2, -1)) and attributes.get("keepdims", 1) == 1:
        return replace(operation, kind="GlobalAveragePool", attributes={}, operands=operands[:1])
    if kind == "MaxPool":
        kept = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode", "auto_pad")
        return replace(operation, attributes={name: attributes[name] for name in kept})
    if kind == "Resize":
        return _resized(operation)
    return operation


def _axes(operation: Operation) -> tuple[int, ...]:
    given = operation.attributes.get("axes")
    stored = operation.operands[1] if len(operation.operands) > 1 else None
    axes = stored.ravel().tolist() if isinstance(stored, np.ndarray) else given or ()
    return tuple(sorted(axes))


def _resized(operation: Operation) -> Operation:
    scales = operation.operands[2] if len(operation.operands) > 2 else None
    kept: dict[str, Any] = {
        name: operation.attributes[name] for name in ("mode", "coordinate_transformation_mode", "antialias")
    }
    if kept["coordinate_transformation_mode"] == b"pytorch_half_pixel":
        kept["coordinate_transformation_mode"] = b"half_pixel"  # they differ for an output of one pixel only
    if isinstance(scales, np.ndarray) and scales.size == 4:
        kept["factors"] = tuple(float(scale) for scale in scales[2:])
    return replace(operation, attributes=kept, operands=operation.operands[:1])


def _without_shapes(program: Program) -> Program:
    """Return a program whose Expand operations read no shape: what does not fit the map beside it does not run."""
    return replace(
        program,
        operations=tuple(
            replace(entry, operands=entry.operands[:1]) if entry.kind == "Expand" else entry
            for entry in program.operations
        ),
    )
