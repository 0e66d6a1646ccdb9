"""What TensorRT 10's ONNX parser refuses or misreads and ONNX's checker lets pass. onnx and NumPy only.

The rules are those of onnx-tensorrt 10.1, from its sources and its table of operators; casts keep to the set that
TensorRT documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from nrd_trt.graph.tensors import element_types

_BYTE_PARTNERS = {TensorProto.FLOAT, TensorProto.FLOAT16}
_FLOATS = {*_BYTE_PARTNERS, TensorProto.BFLOAT16}
_CASTABLE = {*_FLOATS, TensorProto.INT32, TensorProto.INT64}
_COMPUTED = {*_CASTABLE, TensorProto.BOOL}
_QUANTISED = {TensorProto.INT8, TensorProto.FLOAT8E4M3FN}
_FLOAT_ONLY = {"Gemm", "MatMul", "Resize"}  # ONNX lets them work on integers too

_QDQ = {"QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2)}
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_CONSTANT_INPUTS = {
    **_QDQ,
    **{f"Reduce{name}": (1,) for name in _REDUCTIONS},
    "Conv": (2,),
    "CumSum": (1,),
    "Pad": (3,),
    "Resize": (1, 2),
    "Slice": (3,),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}
"""Inputs that the parser takes from the file; a computed one is refused, or makes a shape that only a run knows."""

_ATTRIBUTES: dict[str, dict[str, tuple[object, ...]]] = {
    "Resize": {
        "mode": (b"nearest", b"linear", b"cubic"),
        "coordinate_transformation_mode": (b"half_pixel", b"pytorch_half_pixel", b"asymmetric", b"align_corners"),
        "keep_aspect_ratio_policy": (b"stretch",),
        "antialias": (0,),
    },
    "MaxPool": {"dilations": ([1, 1],)},
    "AveragePool": {"dilations": ([1, 1],)},
    "TopK": {"sorted": (1,)},
    "QuantizeLinear": {"saturate": (1,)},
}
"""Values of attributes that the parser knows; others of the operator are free."""

_UNKNOWN_OPERATORS = frozenset(
    "AffineGrid BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress ConvInteger Det "
    "DynamicQuantizeLinear MatMulInteger MaxUnpool QLinearConv QLinearMatMul SplitToSequence Unique".split()
)


def importer_problems(model: onnx.ModelProto) -> list[str]:
    """Return one line per rule that a node breaks, function bodies included; empty when clean.

    A line begins with the node's name; a node without one, as those of functions, goes by its first output.

    Args:
        model: A file with all its functions, in any precision.

    Raises:
        ExportError: A type cannot be inferred, as that of an operator that ONNX does not know.
    """
    flat = inliner.inline_local_functions(model)
    rules = _Rules(flat)
    found = [f"{node.name or node.output[0]}: {line}" for node in flat.graph.node for line in rules.broken(node)]
    return [*_formal_names(model), *found]


def _formal_names(model: onnx.ModelProto) -> Iterator[str]:
    """Where a graph has the name of a function's input, the parser reads that tensor, whatever the node passes."""
    graph = model.graph
    tensors = {entry.name for entry in (*graph.input, *graph.initializer)}
    tensors.update(name for node in graph.node for name in node.output)
    formal = {function.name: (*function.input, *function.output) for function in model.functions}
    for node in graph.node:
        for name in formal.get(node.op_type, ()):
            if name in tensors:
                yield f"{node.name}: its function takes or gives {name}, as a tensor of the graph is named; rename it"


class _Rules:
    """The rules for one node of a graph without functions."""

    def __init__(self, flat: onnx.ModelProto) -> None:
        self.types = element_types(flat)
        self.outputs = {entry.name for entry in flat.graph.output}
        self.constants = {tensor.name: tensor for tensor in flat.graph.initializer}
        self.constants |= {n.output[0]: n.attribute[0].t for n in flat.graph.node if n.op_type == "Constant"}

    def broken(self, node: onnx.NodeProto) -> Iterator[str]:
        kind = node.op_type
        if kind in _UNKNOWN_OPERATORS:
            yield f"{kind} is no operator of the parser"
        for index in _CONSTANT_INPUTS.get(kind, ()):
            if (name := "".join(node.input[index : index + 1])) and name not in self.constants:
                yield f"input {index} of {kind} is computed; expected a constant"
        for entry in node.attribute:
            allowed = _ATTRIBUTES.get(kind, {}).get(entry.name)
            value = helper.get_attribute_value(entry)
            if allowed is not None and value not in allowed:
                yield f"{entry.name} of {kind} is {value}; expected one of {', '.join(map(str, allowed))}"
        if kind == "Resize" and self._value(node, 1).size:
            yield "Resize has a region of interest; expected an empty one"
        check = self._cast if kind == "Cast" else self._quantised if kind in _QDQ else self._computed
        yield from check(node)

    def _cast(self, node: onnx.NodeProto) -> Iterator[str]:
        """Documented: among the float types and 32- and 64-bit integers; uint8 only from and to float and half."""
        source, target = self.types[node.input[0]], helper.get_node_attr_value(node, "to")
        allowed = _BYTE_PARTNERS if TensorProto.UINT8 in (source, target) else _CASTABLE
        if not {source, target} - {TensorProto.UINT8} <= allowed:
            yield f"casts {_names([source])} to {_names([target])}, which TensorRT does not document"
        elif target == TensorProto.UINT8 and node.output[0] not in self.outputs:
            yield "gives UINT8 inside the graph; expected it in inputs and outputs of the graph only"

    def _quantised(self, node: onnx.NodeProto) -> Iterator[str]:
        quantises = node.op_type == "QuantizeLinear"
        kind = self.types[node.output[0] if quantises else node.input[0]]
        scale, zero = self._value(node, 1), self._value(node, 2)
        if kind not in _QUANTISED:
            yield f"{node.op_type} of {_names([kind])}; expected {_names(_QUANTISED)}"
        if not (scale > 0).all():
            yield "has a scale that is not positive"
        if zero.any() or 0 < zero.size != scale.size > 0:
            yield f"has the zero points {zero.ravel()[:4].tolist()}; expected 0, one for each scale"
        if quantises and scale.size > 1 and node.input[0] not in self.constants:
            yield f"has {scale.size} scales; expected one for all channels of an activation"

    def _computed(self, node: onnx.NodeProto) -> Iterator[str]:
        kinds = {self.types[name] for name in (*node.input, *node.output) if name}
        if refused := kinds - _COMPUTED:
            yield f"{node.op_type} on {_names(refused)}; expected {_names(_COMPUTED)}"
        elif node.op_type in _FLOAT_ONLY and self.types[node.input[0]] not in _FLOATS:
            yield f"{node.op_type} on {_names([self.types[node.input[0]]])}; expected {_names(_FLOATS)}"

    def _value(self, node: onnx.NodeProto, index: int) -> np.ndarray:
        """Return a constant input, empty where there is none."""
        tensor = self.constants.get("".join(node.input[index : index + 1]))
        return np.empty(0) if tensor is None else numpy_helper.to_array(tensor).astype(np.float32)


def _names(kinds: Iterable[int]) -> str:
    return ", ".join(TensorProto.DataType.Name(kind) for kind in sorted(kinds))
