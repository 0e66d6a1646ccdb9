"""Passes: type an fp32 graph in 16 bits, and simulate 16 bits and TF32 in fp32. onnx and NumPy only.

Strongly typed builders take the types of the file as they are, so every operand must have the type of its operation.
Weights are stored in 16 bits; the network input, the preprocessing, global pooling and the decode's arithmetic stay in
fp32, as does whatever the caller keeps; float outputs are cast back to fp32.

ONNX Runtime's CPU computes fp16 graphs in fp32 without rounding and has no bf16 kernels. Where every 16-bit result is
cast to 16 bits and back, its figures are evidence: values are rounded as the file's types say, and overflow gives inf.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from nrd_trt.decode.function import CONFIDENCE
from nrd_trt.graph.cpu import has_16_bits, widen_weights
from nrd_trt.graph.metadata import with_precision
from nrd_trt.graph.quantize import QuantizationPlan, insert_qdq
from nrd_trt.graph.tensors import HALF_TYPES, copy_model, element_types, rename_tensors, replace_nodes
from nrd_trt.specs import QUANTIZED, Precision, Quantized, Target

# Sums over a feature map, a token or a row of scores; Resize also takes its scales in fp32, uncast; rounding would make
# ties for ArgMax.
_ALWAYS_FP32 = frozenset(
    {"GlobalAveragePool", "ReduceMean", "LayerNormalization", "Softmax", "Resize", "ArgMax", "Cast", "Constant"}
)
_PREPROCESSING = "preprocessing/"
# bfloat16 has 8 significant bits. Measured with random weights (R101, K = 150, 128x256): keeping the stem and the
# layers that predict weights and guidance raises mask agreement with fp32 from 0.972 to 0.981.
_SENSITIVE = {
    "fp16": (),
    "bf16": (
        "backbone.stem",
        "backbone.conv1",
        "decode_head.bottleneck",
        "decode_head.classifier",
        "decode_head.c1_bottleneck",
        "decode_head/",
    ),
}
_BF16_OPSET, _BF16_IR_VERSION = 22, 10  # the first in which Conv accepts bfloat16
_TF32_SPLITTER = np.array(2**13 + 1, np.float32)  # x·c - (x·c - x) keeps 24 - 13 significant bits of x (Veltkamp)
_NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def to_precision(model: onnx.ModelProto, precision: Precision, keep_fp32: Set[str] = frozenset()) -> onnx.ModelProto:
    """Return the graph typed in `precision`.

    Args:
        model: An fp32 graph of `nrd_trt.exporting`; for ``"int8"`` and ``"fp8"`` after `nrd_trt.graph.quantize`.
        precision: ``"fp32"`` returns a copy. These two type in fp16 what is not quantised.
        keep_fp32: Names of nodes that compute in fp32.
    """
    result = copy_model(model)
    if precision == "fp32":
        return result
    _Caster(result, precision, keep_fp32).run()
    if precision == "bf16":  # the same operators accept it from this opset on
        result.ir_version = _BF16_IR_VERSION
        for owner in (result, *result.functions):
            for entry in owner.opset_import:
                entry.version = entry.version if entry.domain else _BF16_OPSET
    with_precision(result, precision)
    return result


def to_quantized(
    full: onnx.ModelProto, plan: QuantizationPlan, ranges: Mapping[str, float], keep_fp32: Set[str] = frozenset()
) -> onnx.ModelProto:
    """Return the fp32 graph in 8 bits where the plan says, with fp16 beside them for a GPU and fp32 for a CPU.

    Args:
        full: The graph that the plan was made for.
        plan: Where 8 bits stand, which, and what the file is made for.
        ranges: See `nrd_trt.graph.quantize.insert_qdq`.
        keep_fp32: Names of nodes that compute in fp32.

    Raises:
        CalibrationError: A range is missing or not finite.
    """
    return beside_quantized(insert_qdq(full, plan, ranges), plan.precision, plan.target, keep_fp32)


def beside_quantized(
    quantized: onnx.ModelProto, precision: Quantized, target: Target, keep_fp32: Set[str] = frozenset()
) -> onnx.ModelProto:
    """Return a graph with Q/DQ pairs whose other nodes are typed for a target, see `to_quantized`."""
    if target == "gpu":
        return to_precision(quantized, precision, keep_fp32)
    with_precision(quantized := copy_model(quantized), precision)
    return quantized


def simulate_rounding(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Return the fp32 graph that rounds wherever `model` is typed in 16 bits.

    Args:
        model: A graph made by `to_precision`.
        precision: That graph's precision; a file without 16 bits is copied.
    """
    result = copy_model(model)
    if precision == "fp32" or not has_16_bits(model):
        return result
    half, types, graph = HALF_TYPES[precision], element_types(model), result.graph
    nodes = []
    for node in graph.node:
        # 8-bit numbers times a scale stand for themselves: the kernels read the numbers.
        exact_already = node.op_type == "DequantizeLinear"
        rounded = [name for name in node.output if types[name] == half and not exact_already]
        exact = {name: f"{name}/exact" for name in rounded}
        node.output[:] = [exact.get(name, name) for name in node.output]
        nodes.append(node)
        for name in rounded:
            nodes.append(helper.make_node("Cast", [exact[name]], [f"{name}/16"], name=f"{name}/round", to=half))
            nodes.append(helper.make_node("Cast", [f"{name}/16"], [name], name=f"{name}/widen", to=TensorProto.FLOAT))
    widen_weights(graph)
    replace_nodes(graph, nodes, list(graph.initializer))
    return result


def simulate_tf32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the fp32 graph that multiplies as NVIDIA's tensor cores do in TF32: both factors have 10 bits of mantissa.

    Both inputs of every convolution and matrix product are rounded. Those of the decode are too: its function is put in
    the place of its calls. Layers in 8 bits have fewer and stay. Run the result without graph optimisation, which
    might take the rounding out.

    Args:
        model: An fp32 graph, or one made by `simulate_rounding`. 16-bit values have no more bits than TF32, so that
            rounding them changes nothing.
    """
    result = inliner.inline_local_functions(model)
    splitter = "tf32/splitter"
    weights = [*result.graph.initializer, numpy_helper.from_array(_TF32_SPLITTER, splitter)]
    dequantized = {node.output[0] for node in result.graph.node if node.op_type == "DequantizeLinear"}
    nodes: list[onnx.NodeProto] = []
    rounded: dict[str, str] = {}
    for node in result.graph.node:
        in_fp32 = node.op_type in ("Conv", "MatMul") and node.input[0] not in dequantized
        for index in range(2) if in_fp32 else ():
            name = node.input[index]
            if name not in rounded:
                rounded[name] = short = f"{name}/tf32"
                scaled, rest = f"{short}/scaled", f"{short}/rest"
                nodes.append(helper.make_node("Mul", [name, splitter], [scaled]))
                nodes.append(helper.make_node("Sub", [scaled, name], [rest]))
                nodes.append(helper.make_node("Sub", [scaled, rest], [short]))
            node.input[index] = rounded[name]
        nodes.append(node)
    replace_nodes(result.graph, nodes, weights)
    return result


class _Caster:
    """One walk over the nodes in order; casts and converted weights are made once and shared."""

    def __init__(self, model: onnx.ModelProto, precision: Precision, keep_fp32: Set[str]) -> None:
        self.model = model
        self.half = HALF_TYPES[precision]
        self.label = "fp16" if precision in QUANTIZED else precision  # what is not quantised
        self.dtype = _NUMPY[self.label]
        self.keep_fp32 = keep_fp32
        self.floats = (TensorProto.FLOAT, self.half)
        self.types = element_types(model)  # of the fp32 graph; updated as outputs change type
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.made: set[str] = set()

    def run(self) -> None:
        half_functions: dict[str, list[bool]] = {}
        for node in list(self.model.graph.node):
            target = self._target(node)
            float_in = [index for index, name in enumerate(node.input) if self.types.get(name) in self.floats]
            float_out = [name for name in node.output if self.types[name] == TensorProto.FLOAT]
            for index in float_in:
                node.input[index] = self._as(node.input[index], target)
            for name in float_out:
                self.types[name] = target
            if node.domain and target == self.half:
                half_functions[node.op_type] = [name in float_out for name in node.output]
            self.nodes.append(node)
        self._cast_outputs()
        for entry in self.model.functions:
            if entry.name in half_functions:
                _compute_in_fp32(entry, self.half, half_functions[entry.name])
        replace_nodes(self.model.graph, self.nodes, self.weights.values())

    def _target(self, node: onnx.NodeProto) -> int:
        stays = (
            node.op_type in _ALWAYS_FP32
            or node.name in self.keep_fp32
            or node.name.startswith((_PREPROCESSING, CONFIDENCE, *_SENSITIVE[self.label]))
        )
        return int(TensorProto.FLOAT if stays else self.half)

    def _as(self, name: str, target: int) -> str:
        """Return the tensor's name in type `target`, making a cast or a converted weight where needed."""
        if self.types[name] == target:
            return name
        label = self.label if target == self.half else "fp32"
        cast = f"{name}/{label}"
        if cast not in self.made:
            self.made.add(cast)
            self.types[cast] = target
            if name in self.weights:
                array = numpy_helper.to_array(self.weights[name]).astype(self.dtype)
                self.weights[cast] = numpy_helper.from_array(array, cast)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [cast], name=cast, to=target))
        return cast

    def _cast_outputs(self) -> None:
        """Give float outputs their fp32 type back under their own name."""
        for output in self.model.graph.output:
            if self.types[output.name] != self.half or output.type.tensor_type.elem_type != TensorProto.FLOAT:
                continue
            inner = f"{output.name}/{self.label}"
            rename_tensors(self.nodes, {output.name: inner})
            self.nodes.append(
                helper.make_node("Cast", [inner], [output.name], name=f"{output.name}/Cast", to=TensorProto.FLOAT)
            )


def _compute_in_fp32(entry: onnx.FunctionProto, half: int, float_outputs: list[bool]) -> None:
    """Cast a function's inputs to fp32 on entry, and its float outputs back."""
    renamed = {name: f"{name}_fp32" for name in entry.input}
    renamed |= {name: f"{name}_fp32" for name, is_float in zip(entry.output, float_outputs, strict=True) if is_float}
    rename_tensors(entry.node, renamed)
    body = list(entry.node)
    entry_casts = [helper.make_node("Cast", [n], [renamed[n]], to=TensorProto.FLOAT) for n in entry.input]
    exit_casts = [helper.make_node("Cast", [renamed[n]], [n], to=half) for n in entry.output if n in renamed]
    del entry.node[:]
    entry.node.extend([*entry_casts, *body, *exit_casts])
