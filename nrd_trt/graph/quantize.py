"""Pass: explicit int8 or fp8. Choose layers, then put Q/DQ pairs where TensorRT looks for them. onnx and NumPy only.

Zero stays zero, weights have a scale per output channel, activations one per tensor. A pair stands on the input of
every chosen layer, and on the skip input of an Add that follows a convolution, so that Conv + Add + ReLU runs from
8 bits to 8 bits; never between a convolution and its ReLU. Weights are stored in 8 bits. The tensors of a Concat share
one scale: it then moves no numbers.

A transformer's linear layers have a pair on their input and none after them: bias, the sum that runs through the
network, norms and activations are of 16 bits and more, and so are both products of attention, whose factors are no
constants.

fp8 is E4M3. TensorRT has no fast kernel of it for convolutions in groups, with few channels, or with more than 32 taps:
these stay in 16 bits.

A file for a CPU has uint8 activations, which ONNX Runtime's kernels multiply with int8 weights: from 0 where nothing is
negative, so that a ReLU vanishes in the rounding, else the integers of int8 moved up by 128. It has a pair on both
inputs of such an Add, for there Conv and Add are two kernels. TensorRT takes neither.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nrd_trt.errors import CalibrationError, ConfigError
from nrd_trt.graph.formats import FORMATS, FP8, INT8, UINT8, UINT8_AROUND_128, NumberFormat
from nrd_trt.graph.tensors import copy_model, replace_nodes
from nrd_trt.specs import Quantized, Target

DEFAULT_EXCLUDE = (
    r"^decode_head\.image_pool\.",  # one pixel: nothing to gain
    r"^decode_head\.classifier\.classifier\.1/",  # its output is the weights of the decode
)
_WEIGHTED = {"Conv": 0, "Gemm": 0, "MatMul": 1}
"""Axis of the output channels in the weights; Gemm with transB."""
_FEWEST_CHANNELS, _MOST_TAPS = 16, 32
"""Of the weights of a layer in fp8."""
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
"""Scales are stored in fp16; below this its step would change them by more than their own rounding."""
_SMALLEST_SCALE_ON_CPU = float(np.finfo(np.float32).tiny)
_SIGN_KEEPING = {"MaxPool": 1, "Expand": 1, "Resize": 1, "Concat": None}
"""Operators that give no negative value where their first so many inputs, or all, hold none."""


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """Which layers compute in 8 bits.

    Attributes:
        layers: Names of the nodes, in the order of the graph.
        tensors: Activations that get a Q/DQ pair, each with the ``(node, input index)`` pairs that read it in 8 bits.
        shared: Sets of those tensors that take one scale.
        precision: What the layers compute in.
        target: What the file is made for.
        unsigned: Those tensors that take uint8 from 0.
    """

    layers: tuple[str, ...]
    tensors: Mapping[str, tuple[tuple[str, int], ...]]
    shared: tuple[frozenset[str], ...] = ()
    precision: Quantized = "int8"
    target: Target = "gpu"
    unsigned: frozenset[str] = frozenset()

    def format(self, tensor: str) -> NumberFormat:
        """Return the numbers that an activation is quantised to."""
        if self.target == "gpu":
            return FORMATS[self.precision]
        return UINT8 if tensor in self.unsigned else UINT8_AROUND_128


def quantizable_layers(model: onnx.ModelProto, precision: Quantized = "int8") -> list[str]:
    """Return the names of the weighted nodes that a precision takes, in the order of the graph.

    Their weights are constants, and in fp8 those of a layer that TensorRT has a fast kernel for.
    """
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if _is_weighted(node, weights.keys()) and (precision != "fp8" or _fits_fp8(node, weights[node.input[1]]))
    ]


def choose_layers(
    model: onnx.ModelProto,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = DEFAULT_EXCLUDE,
    precision: Quantized = "int8",
) -> tuple[str, ...]:
    """Return the layers that regular expressions select among the quantizable ones.

    Args:
        model: The fp32 graph.
        include: A layer must match one of these valid expressions, where any are given.
        exclude: A layer must match none; those of `DEFAULT_EXCLUDE` need not match anything.
        precision: What the layers shall compute in; an expression that matches those of int8 alone is no error.

    Raises:
        ConfigError: An expression matches no layer, or no layer is left.
    """
    names = quantizable_layers(model)
    for pattern in (*include, *(pattern for pattern in exclude if pattern not in DEFAULT_EXCLUDE)):
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(f"layer pattern {pattern!r}: matches none of {len(names)} layers; one is {names[0]!r}.")
    chosen = [
        name
        for name in quantizable_layers(model, precision)
        if (not include or any(re.search(pattern, name) for pattern in include))
        and not any(re.search(pattern, name) for pattern in exclude)
    ]
    if not chosen:
        raise ConfigError(f"the layer patterns leave no layer for {precision}; loosen exclude=, or build fp16.")
    return tuple(chosen)


def plan_quantization(
    model: onnx.ModelProto, layers: Iterable[str], target: Target = "gpu", precision: Quantized = "int8"
) -> QuantizationPlan:
    """Place the pairs for the chosen layers.

    Args:
        model: The fp32 graph.
        layers: Names of layers that are quantizable in that precision.
        target: What the file is made for. The tensors for a CPU are those for a GPU and more.
        precision: What the layers compute in; a file for a CPU has int8 only.

    Raises:
        ConfigError: A name is not that of a quantizable layer.
    """
    wanted = set(layers)
    if unknown := wanted - set(quantizable_layers(model, precision)):
        fast = f" in one group, from {_FEWEST_CHANNELS} channels up, of at most {_MOST_TAPS} taps"
        raise ConfigError(
            f"layers {', '.join(sorted(unknown)[:5])}: expected convolutions and linear layers with constant weights"
            f"{fast if precision == 'fp8' else ''}."
        )
    skips = _skip_inputs(model)
    tensors: dict[str, list[tuple[str, int]]] = {}
    for node in model.graph.node:
        if node.name in wanted:
            tensors.setdefault(node.input[0], []).append((node.name, 0))
        elif node.name in skips and skips[node.name][0] in wanted:
            skip = skips[node.name][1]
            for index in (skip,) if target == "gpu" else (0, 1):
                tensors.setdefault(node.input[index], []).append((node.name, index))
    shared = tuple(
        frozenset(around)
        for node in model.graph.node
        if node.op_type == "Concat" and len(around := tensors.keys() & {*node.input, *node.output}) > 1
    )
    return QuantizationPlan(
        layers=tuple(node.name for node in model.graph.node if node.name in wanted),
        tensors={name: tuple(readers) for name, readers in tensors.items()},
        shared=shared,
        precision=precision,
        target=target,
        unsigned=_unsigned(model, tensors.keys(), shared) if target == "cpu" else frozenset(),
    )


def insert_qdq(model: onnx.ModelProto, plan: QuantizationPlan, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """Return the fp32 graph with Q/DQ pairs and 8-bit weights.

    Args:
        model: The fp32 graph that the plan was made for.
        plan: Where the pairs stand.
        ranges: Largest magnitude to represent, per tensor of the plan; finite.

    Raises:
        CalibrationError: A range is missing or not finite.
    """
    result = copy_model(model)
    _Inserter(result, plan, _scales(plan, ranges)).run()
    return result


class _Inserter:
    """One walk over the nodes; pairs and weights are made once and shared."""

    def __init__(self, model: onnx.ModelProto, plan: QuantizationPlan, scales: Mapping[str, float]) -> None:
        self.graph = model.graph
        self.plan = plan
        self.scales = scales
        self.format = FORMATS[plan.precision]  # of weights
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.readers = {reader: name for name, readers in plan.tensors.items() for reader in readers}
        self.made: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        chosen = set(self.plan.layers)
        for each in (INT8, UINT8, UINT8_AROUND_128, FP8):
            self._add(numpy_helper.from_array(np.full((), each.zero, each.dtype), each.zero_point))
        for node in list(self.graph.node):
            for index, name in enumerate(node.input):
                if (node.name, index) in self.readers:
                    node.input[index] = self._pair(name)
            if node.name in chosen:
                transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
                axis = 1 if node.op_type == "Gemm" and not transposed else _WEIGHTED[node.op_type]
                node.input[1] = self._weights(node.input[1], axis)
            self.nodes.append(node)
        replace_nodes(self.graph, self.nodes, self.weights.values())

    def _pair(self, name: str) -> str:
        """Return the tensor after its Q/DQ pair."""
        numbers = self.plan.format(name)
        quantized, result = f"{name}/{numbers.name}", f"{name}/dequantized"
        if name not in self.made:
            self.made.add(name)
            scale = numpy_helper.from_array(np.asarray(self.scales[name], np.float32), f"{name}/scale")
            self._add(scale)
            operands = [scale.name, numbers.zero_point]
            self.nodes.append(helper.make_node("QuantizeLinear", [name, *operands], [quantized], name=f"{name}/Q"))
            self.nodes.append(helper.make_node("DequantizeLinear", [quantized, *operands], [result], name=f"{name}/DQ"))
        return result

    def _weights(self, name: str, axis: int) -> str:
        """Store weights in 8 bits, one scale per output channel; return the tensor after its DQ."""
        result, kind = f"{name}/dequantized", self.format.dtype
        if name not in self.made:
            self.made.add(name)
            array = numpy_helper.to_array(self.weights[name])
            scale = weight_scales(array, axis, self.format)
            shape = [-1 if index == axis else 1 for index in range(array.ndim)]
            numbers = self.format.nearest(array / scale.reshape(shape)).astype(kind)
            parts = {self.format.name: numbers, "scale": scale, "zeros": np.zeros(len(scale), kind)}
            for suffix, part in parts.items():
                self._add(numpy_helper.from_array(part, f"{name}/{suffix}"))
            names = [f"{name}/{suffix}" for suffix in parts]
            self.nodes.append(helper.make_node("DequantizeLinear", names, [result], name=f"{name}/DQ", axis=axis))
        return result

    def _add(self, tensor: onnx.TensorProto) -> None:
        self.weights[tensor.name] = tensor


def quantized_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the weighted nodes of a file whose data and weights both come from 8 bits, in the order of the graph."""
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return tuple(
        node.name for node in model.graph.node if node.op_type in _WEIGHTED and dequantized.issuperset(node.input[:2])
    )


def weight_scales(weights: np.ndarray, axis: int, numbers: NumberFormat = INT8) -> np.ndarray:
    """Return the scale of each output channel, ``(channels,) float32``, exact in fp16."""
    others = tuple(index for index in range(weights.ndim) if index != axis)
    return _representable(np.abs(weights).max(axis=others) / numbers.largest)


def _scales(plan: QuantizationPlan, ranges: Mapping[str, float]) -> dict[str, float]:
    """Return one scale per tensor, equal within a shared set."""
    if missing := [name for name in plan.tensors if not np.isfinite(ranges.get(name, np.nan))]:
        raise CalibrationError(
            f"ranges: expected a finite one for each of {len(plan.tensors)} tensors, none for "
            f"{', '.join(missing[:5])}; calibrate this model again, with target={plan.target!r}."
        )
    largest = {name: ranges[name] for name in plan.tensors}
    for group in plan.shared:
        common = max(largest[name] for name in group)
        largest |= dict.fromkeys(group, common)
    scales = {name: value / plan.format(name).largest for name, value in largest.items()}
    if plan.target == "cpu":  # nothing of it is in fp16
        return {name: max(scale, _SMALLEST_SCALE_ON_CPU) for name, scale in scales.items()}
    return {name: float(_representable(np.asarray(scale))) for name, scale in scales.items()}


def _representable(scale: np.ndarray) -> np.ndarray:
    """Round scales to fp16, in which the file stores them; a tensor of zeros gets the smallest."""
    rounded: np.ndarray = np.maximum(scale, _SMALLEST_SCALE).astype(np.float16).astype(np.float32)
    return rounded


def _is_weighted(node: onnx.NodeProto, constants: Set[str]) -> bool:
    return node.op_type in _WEIGHTED and node.input[1] in constants and node.input[0] not in constants


def _fits_fp8(node: onnx.NodeProto, dims: Sequence[int]) -> bool:
    groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return groups == 1 and min(dims[:2]) >= _FEWEST_CHANNELS and math.prod(dims[2:]) <= _MOST_TAPS


def _unsigned(model: onnx.ModelProto, tensors: Set[str], shared: Iterable[Set[str]]) -> frozenset[str]:
    """Return those tensors that hold no negative value; tensors of one scale have one zero point as well."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    zero_or_more: set[str] = set()
    for node in model.graph.node:
        inputs = node.input[: _SIGN_KEEPING.get(node.op_type, 0)]
        if _ends_at_zero(node, stored) or (inputs and zero_or_more.issuperset(inputs)):
            zero_or_more.update(node.output)
    mixed = (group for group in shared if not group <= zero_or_more)
    return frozenset(tensors & zero_or_more).difference(*mixed)


def _ends_at_zero(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> bool:
    low = stored.get(node.input[1]) if node.op_type == "Clip" and len(node.input) > 1 else None
    return node.op_type == "Relu" or (low is not None and numpy_helper.to_array(low).min() >= 0)


def _skip_inputs(model: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Return, per Add, the convolution that it ends and which of its inputs is the skip.

    The convolution is one whose result only the Add reads. Where both inputs are such (a block with a convolution in
    its skip), the skip is the second, the one added last.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    made_by = {
        node.output[0]: node.name
        for node in model.graph.node
        if node.op_type == "Conv" and _is_weighted(node, constants) and uses[node.output[0]] == 1
    }
    found = {}
    for add in model.graph.node:
        ends = [index for index, name in enumerate(add.input) if name in made_by] if add.op_type == "Add" else []
        if ends:
            found[add.name] = (made_by[add.input[ends[0]]], 1 - ends[0])
    return found
