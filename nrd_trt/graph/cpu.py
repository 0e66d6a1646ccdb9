"""Passes for runtimes on a CPU: the fp32 twin of a 16-bit file, and the mask's ending in the form each runs fastest.

All forms of the ending give the same masks of the same logits, but for pixels whose two largest logits are as close as
fp32 rounds: ``"phases"`` adds in another order. The form of the file is what TensorRT reads; these are made when a
file is opened, and never written. onnx and NumPy only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from nrd_trt.decode.function import CONFIDENCE_OP, LOGITS_OP, MASK_OP
from nrd_trt.graph.tensors import HALF_TYPES, copy_model

Ending = Literal["last_axis", "phases"]
"""``"last_axis"``: the logits of a pixel are brought together before they are enlarged, so that ONNX Runtime's argmax
reads neighbours. ``"phases"``: each place between two neighbours has a map of its own, a weighted sum that OpenVINO
compiles, and what is drawn of these maps is woven; so no kernel writes or reads the enlarged logits as a whole."""
_STAGES = {"Resize": "resize", "Pad": "resize", "ArgMax": "argmax", "ReduceMax": "confidence"}
"""What begins with an operator."""

_HALVES = frozenset(HALF_TYPES.values())
_BOUNDS = {"axis_2": 2, "axis_3": 3, "start_0": 0, "start_1": 1, "start_2": 2, "end_0": -2, "end_1": -1, "end_2": 2**62}
"""Of the slices that move a map by a place."""


def has_16_bits(model: onnx.ModelProto) -> bool:
    """Return whether a file stores weights in 16 bits; fp32 files have fp16 too, in which they pass an index on."""
    return any(tensor.data_type in _HALVES for tensor in model.graph.initializer)


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the fp32 twin of a file: its 16-bit weights, widened, and no rounding of what is computed with them.

    int8 layers stay. One without 16 bits is copied.
    """
    result = copy_model(model)
    widen_weights(result.graph)
    del result.graph.value_info[:]
    for function in result.functions:
        # Of logits, see `nrd_trt.graph.precision`; an index that is given in fp16 is exact there.
        _cast_to_fp32(node for node in function.node if node.input and node.input[0].endswith("_fp32"))
    _cast_to_fp32(result.graph.node)
    return result


def widen_weights(graph: onnx.GraphProto) -> None:
    """Store 16-bit weights in fp32."""
    for tensor in graph.initializer:
        if tensor.data_type in _HALVES:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _cast_to_fp32(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        if _cast_type(node) in _HALVES:
            node.attribute[0].i = TensorProto.FLOAT


def _cast_type(node: onnx.NodeProto) -> int | None:
    return _attribute(node, "to") if node.op_type == "Cast" else None


def with_ending(model: onnx.ModelProto, ending: Ending) -> onnx.ModelProto:
    """Return the file with the mask's function in another form, and the stage in the name of each of its nodes."""
    result = copy_model(model)
    for function in result.functions:
        if function.name in (MASK_OP, CONFIDENCE_OP):
            nodes = list(function.node)
            at = next(index for index, node in enumerate(nodes) if node.op_type == "Resize")
            end = max(index for index, node in enumerate(nodes) if node.op_type in ("ArgMax", "ReduceSum")) + 1
            made = (_on_last_axis if ending == "last_axis" else _in_phases)(nodes[at], nodes[at + 1 : end], nodes)
            del function.node[:]
            function.node.extend([*nodes[:at], *made, *nodes[end:]])
        if function.name in (MASK_OP, CONFIDENCE_OP, LOGITS_OP):
            _name_by_stage(function)
    return result


def _on_last_axis(
    resize: onnx.NodeProto, reading: list[onnx.NodeProto], nodes: list[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """Return nodes in the place of the enlargement and of those that read all enlarged classes of a pixel."""
    logits, region, scales = resize.input
    batch, channels, *factors = _constant_of(scales, nodes)
    moved = helper.make_node("Resize", ["logits_last", region, "scales_last"], resize.output)
    moved.attribute.extend(resize.attribute)
    return [
        helper.make_node("Transpose", [logits], ["logits_last"], perm=[0, 2, 3, 1]),
        _constant("scales_last", np.array([batch, *factors, channels], np.float32)),
        moved,
        *(_with_classes_on(3, node) for node in reading),
    ]


def _with_classes_on(axis: int, node: onnx.NodeProto) -> onnx.NodeProto:
    if node.op_type == "Constant":  # of the operators below, the axis
        return _constant(node.output[0], np.array([axis]))
    if node.op_type == "ArgMax":
        return helper.make_node("ArgMax", node.input, node.output, axis=axis, keepdims=0)
    return node


def _in_phases(
    resize: onnx.NodeProto, reading: list[onnx.NodeProto], nodes: list[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """Return the same in another form, see `_on_last_axis`."""
    factor = int(_constant_of(resize.input[2], nodes)[-1])
    lines = [f"{name} = Constant <value = int64[1] {{{value}}}> ()" for name, value in _BOUNDS.items()]
    lines += ["around = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()"]
    lines += [f'bordered = Pad <mode = "edge"> ({resize.input[0]}, around)']
    sums = [place for row in _between(lines, "bordered", 2, factor) for place in _between(lines, row, 3, factor)]
    made = [parser.parse_node(line) for line in lines]
    made += [_of_place(node, resize.output[0], place) for place in sums for node in reading]
    for name in (node.output[0] for node in reading if _attribute(node, "keepdims", 1) == 0):
        made += [
            helper.make_node("Concat", [f"{place}_{name}" for place in sums], [f"{name}_places"], axis=1),
            # ONNX Runtime weaves no integers.
            helper.make_node("Cast", [f"{name}_places"], [f"{name}_floats"], to=TensorProto.FLOAT),
            helper.make_node("DepthToSpace", [f"{name}_floats"], [f"{name}_woven"], blocksize=factor),
            helper.make_node("Squeeze", [f"{name}_woven", "start_1"], [name]),
        ]
    return made


def _of_place(node: onnx.NodeProto, enlarged: str, place: str) -> onnx.NodeProto:
    """Return a node that reads the map of one place in place of all enlarged logits; its result keeps four axes."""
    moved = copy.deepcopy(node)
    moved.input[:] = [place if name == enlarged else f"{place}_{name}" for name in node.input]
    moved.output[:] = [f"{place}_{name}" for name in node.output]
    for entry in moved.attribute:
        if entry.name == "keepdims":
            entry.i = 1
    return moved


def _between(lines: list[str], name: str, axis: int, factor: int) -> list[str]:
    """Write what lies at each place between two neighbours, of a tensor that has one more at both ends of an axis."""
    lines += [f"{name}_{shift} = Slice ({name}, start_{shift}, end_{shift}, axis_{axis})" for shift in range(3)]
    places = []
    for index in range(factor):
        before, share = divmod((index + 0.5) / factor + 0.5, 1.0)
        near, far = (f"{name}_{int(before) + step}" for step in range(2))
        place = f"{name}_at{index}" if share else near
        if share:
            lines += [f"{place}_share = Constant <value_float = {share!r}> ()"]
            lines += [f"{place}_rest = Constant <value_float = {1 - share!r}> ()"]
            lines += [f"{place}_near = Mul ({near}, {place}_rest)", f"{place}_far = Mul ({far}, {place}_share)"]
            lines += [f"{place} = Add ({place}_near, {place}_far)"]
        places.append(place)
    return places


def _constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def _constant_of(name: str, nodes: list[onnx.NodeProto]) -> np.ndarray:
    return numpy_helper.to_array(next(node for node in nodes if name in node.output).attribute[0].t)


def _name_by_stage(function: onnx.FunctionProto) -> None:
    """Name nodes after the stage, so that profiles tell what each stage takes."""
    stage = "decode"
    for index, node in enumerate(function.node):
        stage = _STAGES.get(node.op_type, stage)
        node.name = f"{stage}/{node.op_type}_{index}"


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return int(next((entry.i for entry in node.attribute if entry.name == name), default))
