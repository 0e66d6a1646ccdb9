"""Pass: a file for the compilers of other vendors, which read ONNX's common operators only. onnx and NumPy only.

OpenVINO refuses functions of a file, Qualcomm's QNN has no tensors of six axes, and compilers for one device want
shapes that stand in the file. So the decode becomes nodes of the graph, shapes become constants, and its two moves of
six axes become two of four each. No value changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference

from nrd_trt.decode.function import DOMAIN
from nrd_trt.errors import ExportError
from nrd_trt.graph.decode_nodes import decode_nodes
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.tensors import needed_nodes, replace_nodes

OPERATORS = frozenset(
    {
        *("Add", "ArgMax", "Cast", "Clip", "Concat", "Conv", "Div", "Expand", "Gather", "MatMul", "MaxPool", "Mul"),
        *("ReduceMean", "Relu", "Reshape", "Resize", "Split", "Sub", "Transpose", "Unsqueeze"),
        *("Exp", "GreaterOrEqual", "ReduceMax", "ReduceSum", "Round", "Where"),  # of the confidence
    }
)
"""What an inlined file may consist of: all stand in the lists that are published for QNN and for Ascend."""
MOST_AXES = 4


def is_inlined(model: onnx.ModelProto) -> bool:
    """Return whether a file of this toolkit has its decode as nodes of the graph, where no plugin finds it."""
    return read_facts(model).decode is not None and not decode_nodes(model)


def inline_decode(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the file in the operators of `OPERATORS`, with at most `MOST_AXES` axes.

    Args:
        model: A file of this toolkit for one size and one number of images, whose mask is not packed.

    Raises:
        ExportError: Another operator, more axes, or a shape that only a run knows would be left.
    """
    flat = inliner.inline_local_functions(model)
    opsets = [entry for entry in flat.opset_import if entry.domain != DOMAIN]
    del flat.opset_import[:]
    flat.opset_import.extend(opsets)
    _Rewriter(flat).run()
    if problems := list(inline_problems(flat)):
        raise ExportError(
            f"inline=True: expected operators and shapes that every compiler reads, got {'; '.join(problems[:5])}. "
            "Export without inline=, and report this model."
        )
    return flat


def inline_problems(model: onnx.ModelProto) -> Iterator[str]:
    """Yield what compilers of other vendors may not read of a file."""
    yield from (f"the function {entry.name}" for entry in model.functions)
    yield from (f"operators of {entry.domain!r}" for entry in model.opset_import if entry.domain)
    yield from (f"the operator {name}" for name in sorted({node.op_type for node in model.graph.node} - OPERATORS))
    shapes = _inferred(model)[1]
    for name in (name for node in model.graph.node for name in node.output):
        if name not in shapes:
            yield f"the shape of {name}, which only a run knows"
        elif len(shapes[name]) > MOST_AXES:
            yield f"{len(shapes[name])} axes of {name}"


class _Rewriter:
    """One walk over the nodes; what they hold or compute as constants becomes weights of the graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.types, self.shapes = _inferred(model)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made_by = {name: node for node in model.graph.node for name in node.output}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in self.graph.node:
            target = node.output[0]
            node.name = node.name or f"decode/{target}"
            if node.op_type == "Constant":
                self._store(numpy_helper.to_array(node.attribute[0].t), target)
            elif node.op_type == "Reshape" and target in self.shapes:
                self._reshape(node.input[0], target, self.shapes[target], node.name)
            elif node.op_type == "Transpose" and (views := _views(node, self.shapes)):
                self._move(node, views)
            else:
                self.nodes.append(self._plain(node))
        replace_nodes(
            self.graph,
            needed_nodes(self.nodes, [entry.name for entry in self.graph.output]),
            self.weights.values(),
        )

    def _plain(self, node: onnx.NodeProto) -> onnx.NodeProto:
        if node.op_type == "Resize" and not self.weights[node.input[1]].dims[0]:
            node.input[1] = ""  # no region at all, in place of an empty one
        elif node.op_type == "Cast" and node.input[0] in self.made_by:
            if self.made_by[node.input[0]].op_type in ("ArgMax", "Round"):
                node.attribute[
                    0
                ].i = TensorProto.FLOAT  # a whole number on its way to uint8, in fp16 for a plugin's sake
        return node

    def _move(self, node: onnx.NodeProto, views: list[tuple[int, ...]]) -> None:
        """Move six axes in two steps, from what was reshaped to them; no one reads that reshape any more."""
        name = self.made_by[node.input[0]].input[0]
        for step, view in enumerate(views, start=1):
            target = node.output[0] if step == len(views) else f"{node.output[0]}/moved"
            viewed = f"{node.output[0]}/view{step}"
            self._reshape(name, viewed, view, viewed)
            self.nodes.append(helper.make_node("Transpose", [viewed], [target], name=target, perm=[0, 2, 1, 3]))
            name = target

    def _reshape(self, source: str, target: str, shape: tuple[int, ...], name: str) -> None:
        self._store(np.array(shape, np.int64), f"{target}/shape")
        self.nodes.append(helper.make_node("Reshape", [source, f"{target}/shape"], [target], name=name))

    def _store(self, array: np.ndarray, name: str) -> None:
        self.weights[name] = numpy_helper.from_array(array, name)


def _views(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the shapes that six axes have before each of two swaps of the middle axes, which do what `node` does."""
    match list(node.attribute[0].ints), shapes.get(node.input[0]):
        case [0, 2, 4, 1, 3, 5], (a, b, c, d, e, f):  # a map (a, b, c·d, e·f) to its tiles (a, c, e, b, d, f)
            return [(a * b * c, d, e, f), (a, b, c * e, d * f)]
        case [0, 3, 1, 4, 2, 5], (a, b, c, d, e, f):  # and back
            return [(a, b * c, d, e * f), (a * d * b, c, e, f)]
    return []


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Return the type of each tensor, and the shape of each that is known without a run."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    types, shapes = {}, {}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = info.type.tensor_type
        types[info.name] = kind.elem_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[info.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return types, shapes
