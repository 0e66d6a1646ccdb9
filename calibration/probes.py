"""Pass: outputs that say how large the activations of a graph are, and how they are distributed. onnx and NumPy only.

Extremes are reduced inside the graph, and values for a histogram picked there, so that little is fetched. The memory of
a run stays near that of a plain one because ONNX Runtime executes what the last sink of a file needs first: probes are
appended in the reverse order of the graph, after the sink that draws the masks, so that each runs as soon as its tensor
is there, which is then freed. (In graph order R50 at 512x1024 held every tensor until the end: 630 MB, not 230 MB.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from nrd_trt.errors import CalibrationError
from nrd_trt.graph.tensors import copy_model, needed_nodes, replace_nodes
from nrd_trt.specs import MaskEncoding

_MARK = "calibration/"
_MASKS = f"{_MARK}masks"
_FLOAT_BYTES = 4
# Never below zero; below zero only where an input is.
_NOT_NEGATIVE = ("Relu", "Sigmoid")
_KEEP_SIGN = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Expand", "Concat", "Add")
# What is fetched is held by ONNX Runtime in its own layout, in the plain one and as the output, and as a NumPy array.
_COPIES = 4
# A tensor that is probed but not fetched is there in the plain layout too, its successor perhaps already as well.
_WORKING_COPIES = 2


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is read of one tensor.

    Attributes:
        tensor: Its name.
        shape: Its largest shape.
        samples: Values picked for a histogram; 0 for none, None for all.
        signed: Whether it can hold negative values.
    """

    tensor: str
    shape: tuple[int, ...]
    samples: int | None
    signed: bool

    @property
    def fetched_bytes(self) -> int:
        """Memory that its outputs take until the end of a run, besides a plain one."""
        size = math.prod(self.shape)
        if self.samples is None:
            return _COPIES * size * _FLOAT_BYTES
        figures = 3 * math.prod(self.shape[: self._kept_axes])
        return _COPIES * (figures + min(self.samples, size)) * _FLOAT_BYTES

    @property
    def working_bytes(self) -> int:
        """Memory that it takes while it is read, besides a plain run."""
        return _WORKING_COPIES * math.prod(self.shape) * _FLOAT_BYTES

    @property
    def _kept_axes(self) -> int:
        """Leading axes of the extremes: batch and channel, so that a value that is not finite is found per image."""
        return min(2, max(len(self.shape) - 1, 0))

    def append_to(self, graph: onnx.GraphProto) -> None:
        """Append the nodes and outputs."""
        if self.samples is None:
            self._output(graph, "Identity", "all")
            return
        axes = self._constant(graph, "axes", list(range(self._kept_axes, len(self.shape))))
        self._output(graph, "ReduceMax", "high", axes, keepdims=0)
        # Extremes may step over a NaN; a sum does not.
        self._output(graph, "ReduceSum", "sum", axes, keepdims=0)
        if self.signed:
            self._output(graph, "ReduceMin", "low", axes, keepdims=0)
        if self.samples:
            self._append_picker(graph, self.samples)

    def _append_picker(self, graph: onnx.GraphProto, samples: int) -> None:
        """Pick evenly spaced values; the step shares no factor with the length of a row, so no column is missed."""
        size, row = math.prod(self.shape), self.shape[-1] if self.shape else 1
        step = -(-size // samples)
        while math.gcd(step, row) > 1:
            step += 1
        flat = f"{_MARK}{self.tensor}/flat"
        shape = self._constant(graph, "flat_shape", [-1])
        graph.node.append(helper.make_node("Reshape", [self.tensor, shape], [flat], name=flat))
        bounds = {"start": 0, "end": np.iinfo(np.int64).max, "axis": 0, "step": step}
        operands = [self._constant(graph, name, [value]) for name, value in bounds.items()]
        name = f"{_MARK}{self.tensor}/values"
        graph.node.append(helper.make_node("Slice", [flat, *operands], [name], name=name))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["values"]))

    def _output(self, graph: onnx.GraphProto, operator: str, part: str, *inputs: str, **attributes: Any) -> None:
        name = f"{_MARK}{self.tensor}/{part}"
        graph.node.append(helper.make_node(operator, [self.tensor, *inputs], [name], name=name, **attributes))
        rank = len(self.shape) if part == "all" else self._kept_axes
        dims = [f"{part}_{axis}" for axis in range(rank)]
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))

    def _constant(self, graph: onnx.GraphProto, part: str, values: list[int]) -> str:
        name = f"{_MARK}{self.tensor}/{part}"
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def read(self, outputs: Mapping[str, np.ndarray]) -> Reading:
        """Pick this probe's outputs."""
        parts = {part: outputs.get(f"{_MARK}{self.tensor}/{part}") for part in ("high", "low", "sum", "values", "all")}
        if (whole := parts["all"]) is not None:
            # NumPy's extremes do propagate NaN.
            axes = tuple(range(self._kept_axes, whole.ndim))
            high, low = whole.max(axes), whole.min(axes)
            return Reading(largest=_magnitude(high, low), check=np.where(np.isfinite(high), low, high), values=whole)
        if parts["high"] is None or parts["sum"] is None:
            raise CalibrationError(f"tensor {self.tensor!r}: expected its probe among the outputs, got none of it.")
        return Reading(largest=_magnitude(parts["high"], parts["low"]), check=parts["sum"], values=parts["values"])


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of one tensor in one run.

    Attributes:
        largest: Largest magnitude; meaningless where `check` is not finite.
        check: Array whose first axis is the tensor's; finite where every value is.
        values: For the histogram; None where there are none.
    """

    largest: float
    check: np.ndarray
    values: np.ndarray | None


def _magnitude(high: np.ndarray, low: np.ndarray | None) -> float:
    largest = float(np.max(high))
    return largest if low is None else max(largest, -float(np.min(low)))


def make_probes(
    model: onnx.ModelProto, tensors: Sequence[str], feed: Mapping[str, tuple[int, ...]], samples: int | None
) -> list[Probe]:
    """Describe the probes of tensors, in the order of the graph.

    Args:
        model: The fp32 graph.
        tensors: Names of float32 tensors of it.
        feed: Largest shape of each input.
        samples: See `Probe`.

    Raises:
        CalibrationError: A name is not that of such a tensor.
    """
    types, shapes = _types_and_shapes(model, feed)
    order = {name: index for index, name in enumerate(types)}
    unknown = [name for name in tensors if types.get(name) != TensorProto.FLOAT or not shapes.get(name)]
    if unknown:
        raise CalibrationError(
            f"tensors {', '.join(map(repr, unknown[:5]))}: expected float32 tensors of the graph, got "
            f"{'other types' if unknown[0] in types else 'unknown names'}; were they chosen for another model?"
        )
    positive = _not_negative(model)
    return [
        Probe(tensor=name, shape=shapes[name], samples=samples, signed=name not in positive)
        for name in sorted(set(tensors), key=order.__getitem__)
    ]


def plan_groups(probes: Sequence[Probe], memory_bytes: int) -> list[list[Probe]]:
    """Split probes into groups that fit in the memory, each group for one pass over the images.

    Raises:
        CalibrationError: One tensor alone does not fit.
    """
    groups: list[list[Probe]] = []
    for probe in probes:
        needed = group_bytes([probe])
        if needed > memory_bytes:
            raise CalibrationError(
                f"tensor {probe.tensor!r}: needs {math.ceil(needed / 2**20)} MB by itself, "
                f"memory_mb={memory_bytes / 2**20:g} allows less; raise it."
            )
        if not groups or group_bytes([*groups[-1], probe]) > memory_bytes:
            groups.append([])
        groups[-1].append(probe)
    return groups


def group_bytes(probes: Sequence[Probe]) -> int:
    """Return the memory that a run with these probes takes besides a plain one."""
    return sum(probe.fetched_bytes for probe in probes) + max(probe.working_bytes for probe in probes)


def with_probes(model: onnx.ModelProto, probes: Sequence[Probe], *, masks: bool) -> onnx.ModelProto:
    """Return the graph with the outputs of probes in place of its own.

    Args:
        model: The fp32 graph.
        probes: In the order of the graph.
        masks: Whether the predicted classes are an output too; without them, what only they need is not computed.
    """
    result = copy_model(model)
    outputs = {entry.name: entry.type.tensor_type.elem_type for entry in result.graph.output}
    del result.graph.output[:]
    if masks:
        _append_masks(result.graph, outputs)
    for probe in reversed(probes):
        probe.append_to(result.graph)
    # An unused node would be a sink.
    nodes = needed_nodes(result.graph.node, [entry.name for entry in result.graph.output])
    replace_nodes(result.graph, nodes, list(result.graph.initializer))
    return result


def _append_masks(graph: onnx.GraphProto, outputs: Mapping[str, int]) -> None:
    """Append the predicted classes by a node of their own: a sink inside an inlined function would run first."""
    if "mask" in outputs:
        graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), f"{_MASKS}/axes"))
        graph.node.append(helper.make_node("Unsqueeze", ["mask", f"{_MASKS}/axes"], [_MASKS], name=_MASKS))
        graph.output.append(helper.make_tensor_value_info(_MASKS, outputs["mask"], ["one", "n", "rows", "columns"]))
    elif "logits" in outputs:
        graph.node.append(helper.make_node("ArgMax", ["logits"], [_MASKS], name=_MASKS, axis=1, keepdims=0))
        graph.output.append(helper.make_tensor_value_info(_MASKS, TensorProto.INT64, ["n", "rows", "columns"]))


def read_masks(outputs: Mapping[str, np.ndarray], encoding: MaskEncoding) -> np.ndarray | None:
    """Pick the predicted classes ``(N, H, W)``, at the logits' size where the graph draws no masks; None without."""
    found = outputs.get(_MASKS)
    if found is None or found.dtype == np.int64:
        return found
    masks: np.ndarray = found[0]
    return masks if encoding == "uint8" else masks.astype("<i4", copy=False).view(np.uint8)


def _not_negative(model: onnx.ModelProto) -> set[str]:
    """Return the tensors that are known to hold no negative value, so that their smallest need not be looked for."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: set[str] = set()
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type == "Clip":
            low = constants.get(node.input[1]) if len(node.input) > 1 else None
            known = low is not None and bool(numpy_helper.to_array(low).min() >= 0)
        elif node.op_type in _KEEP_SIGN:
            known = all(name in found for name in (inputs if node.op_type in ("Concat", "Add") else inputs[:1]))
        else:
            known = node.op_type in _NOT_NEGATIVE
        found.update(node.output if known else ())
    return found


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with weights as further inputs: inference copies a file several times, which these outweigh."""
    graph, inputs, kept = model.graph, list(model.graph.input), []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:  # inference reads shapes, and the scales of Resize
            kept.append(tensor)
    light = helper.make_graph(graph.node, graph.name, inputs, graph.output, kept)
    return helper.make_model(light, functions=model.functions, opset_imports=model.opset_import)


def _types_and_shapes(
    model: onnx.ModelProto, feed: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Infer the element type and shape of every tensor for a feed of these shapes; keys in the order of the graph."""
    fixed = _without_weights(model)
    for entry in fixed.graph.input[: len(model.graph.input)]:
        for dim, size in zip(entry.type.tensor_type.shape.dim, feed[entry.name], strict=True):
            dim.dim_value = size
    for entry in fixed.graph.output:
        entry.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph
    tensors = {
        entry.name: entry.type.tensor_type for entry in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    ranked = [entry.name for entry in model.graph.input] + [name for node in inferred.node for name in node.output]
    types = {name: tensors[name].elem_type for name in ranked if name in tensors}
    shapes = {
        name: tuple(dim.dim_value for dim in tensors[name].shape.dim)
        for name in types
        if tensors[name].HasField("shape") and all(dim.dim_value for dim in tensors[name].shape.dim)
    }
    return types, shapes
