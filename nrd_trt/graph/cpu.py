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
from nrd_trt.graph.tensors import HALF_TYPES, copy_model, needed_nodes

Ending = Literal["last_axis", "phases"]
"""``"last_axis"``: the logits of a pixel are brought together before they are enlarged, so that ONNX Runtime's argmax
reads neighbours. ``"phases"``: each place between two neighbours has a map of its own, a weighted sum that OpenVINO
compiles, and what is drawn of these maps is woven; so no kernel writes or reads the enlarged logits as a whole."""
_DECODES = (MASK_OP, CONFIDENCE_OP, LOGITS_OP)
_STAGES = {"Resize": "resize", "Pad": "resize", "ArgMax": "argmax", "ReduceMax": "confidence"}
"""What begins with an operator."""

_HALVES = frozenset(HALF_TYPES.values())
# Convolutions of OpenVINO write channels last, so that this moves whole rows of a patch and nothing before it.
_TILES = """
guidance_last = Transpose <perm = [0, 2, 3, 1]> ({guidance})
tile_shape = Concat <axis = 0> (batch, h, f, w, f, m)
tiles = Reshape (guidance_last, tile_shape)
tiles_by_patch = Transpose <perm = [0, 1, 3, 2, 4, 5]> (tiles)
patch_size = Mul (f, f)
pixel_shape = Concat <axis = 0> (last, patch_size, m)
pixels_last = Reshape (tiles_by_patch, pixel_shape)
patch_pixels = Transpose <perm = [0, 2, 1]> (pixels_last)
"""
# A row holds a row of each class of each image, with a neighbour at both ends. So what lies a row or a column further
# on is the same memory, begun later: OpenVINO copies nothing where it splits along the first axis. Bands of rows keep
# what is drawn of them in the cache.
_BORDERED = """
no = Constant <value = int64[1] {{0}}> ()
one_more = Constant <value = int64[1] {{1}}> ()
two_more = Constant <value = int64[1] {{2}}> ()
three_more = Constant <value = int64[1] {{3}}> ()
four_more = Constant <value = int64[1] {{4}}> ()
planes = Mul (batch, k)
wide = Add (width, two_more)
row_size = Mul (planes, wide)
band_size = Mul (h, row_size)
map_shape = Concat <axis = 0> (last, k, wide)
by_row = Transpose <perm = [1, 4, 0, 3, 2, 5]> (patches)
by_row_shape = Concat <axis = 0> (height, planes, width)
planes_by_row = Reshape (by_row, by_row_shape)
around = Constant <value = int64[6] {{2, 0, 1, 2, 0, 1}}> ()
bordered = Pad <mode = "edge"> (planes_by_row, around)
flat = Reshape (bordered, last)
high = Add (height, four_more)
size = Mul (high, row_size)
first = Sub (row_size, one_more)
longer = Add (band_size, four_more)
end = Add (first, longer)
rest = Sub (size, end)
row_less = Sub (no, row_size)
band_less = Sub (no, band_size)
band0_0 = Concat <axis = 0> (first, longer, rest)
next_row = Concat <axis = 0> (row_size, no, row_less)
next_band = Concat <axis = 0> (band_size, no, band_less)
column_0 = Concat <axis = 0> (one_more, band_size, three_more)
column_1 = Concat <axis = 0> (two_more, band_size, two_more)
column_2 = Concat <axis = 0> (three_more, band_size, one_more)
factor = Constant <value = int64[1] {{{factor}}}> ()
bands = Constant <value = int64[1] {{{bands}}}> ()
maps_shape = Concat <axis = 0> (bands, factor, factor, h, batch, wide)
mask_height = Mul (height, factor)
mask_width = Mul (width, factor)
mask_shape = Concat <axis = 0> (batch, mask_height, last)
"""
_WOVEN = """
{name}_narrow = Cast <to = {type}> ({name}_maps)
{name}_by_place = Reshape ({name}_narrow, maps_shape)
{name}_by_pixel = Transpose <perm = [4, 0, 3, 1, 5, 2]> ({name}_by_place)
{name}_wide = Reshape ({name}_by_pixel, mask_shape)
{name} = Slice ({name}_wide, no, mask_width, two_more)
"""


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
    """Return the file with the decode's functions in another form, and the stage in the name of each of their nodes."""
    result = copy_model(model)
    for function in result.functions:
        nodes = list(function.node)
        if function.name in _DECODES and ending == "phases":
            start, end = (_index_of(name, nodes) for name in ("tile_shape", "patch_pixels"))
            guidance = nodes[_index_of("tiles", nodes)].input[0]
            nodes[start : end + 1] = _parsed(_TILES.format(guidance=guidance))
        if function.name in (MASK_OP, CONFIDENCE_OP):
            at = next(index for index, node in enumerate(nodes) if node.op_type == "Resize")
            end = max(index for index, node in enumerate(nodes) if node.op_type in ("ArgMax", "ReduceSum")) + 1
            made = (_on_last_axis if ending == "last_axis" else _in_phases)(nodes[at], nodes[at + 1 : end], nodes)
            nodes[at:end] = made
        if function.name in _DECODES:
            del function.node[:]
            function.node.extend(needed_nodes(nodes, function.output))
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
    """Return the same in another form, see `_on_last_axis`; it begins at the decode's patches."""
    bands, factor = (int(_constant_of(name, nodes)[-1]) for name in ("f", resize.input[2]))
    lines: list[str] = []
    maps: list[str] = []
    for band in range(bands):
        lines += [f"band{band}_0 = Add (band{band - 1}_0, next_band)"] if band else []
        lines += [f"band{band}_{row} = Add (band{band}_{row - 1}, next_row)" for row in (1, 2)]
        for drawn in _between(lines, _views(lines, "flat", f"band{band}"), factor):
            for place in _between(lines, _views(lines, drawn, "column"), factor):
                lines += [f"{place}_map = Reshape ({place}, map_shape)"]
                maps.append(f"{place}_map")
    made = _parsed(_BORDERED.format(factor=factor, bands=bands)) + [parser.parse_node(line) for line in lines]
    made += [_of_map(node, resize.output[0], name) for name in maps for node in reading]
    for node in reading:
        if _attribute(node, "keepdims", 1) == 0:
            name = node.output[0]
            made += [helper.make_node("Concat", [f"{each}_{name}" for each in maps], [f"{name}_maps"], axis=0)]
            kind = TensorProto.UINT8 if node.op_type == "ArgMax" else TensorProto.FLOAT
            made += _parsed(_WOVEN.format(name=name, type=kind))
    return made


def _views(lines: list[str], name: str, sizes: str) -> list[str]:
    """Write three views of a flat tensor, each a row or a column further on."""
    views = [f"{name}_{sizes}_{step}" for step in range(3)]
    lines += [
        f"{view}_before, {view}, {view}_after = Split <axis = 0> ({name}, {sizes}_{step})"
        for step, view in enumerate(views)
    ]
    return views


def _between(lines: list[str], views: list[str], factor: int) -> list[str]:
    """Write what lies at each place between two neighbours, of views of what is before, at and after each pixel."""
    places = []
    for index in range(factor):
        before, share = divmod((index + 0.5) / factor + 0.5, 1.0)
        near, far = views[int(before) :][:2] if share else (views[1], "")
        place = f"{views[0]}_at{index}" if share else near
        if share:
            lines += [f"{place}_share = Constant <value_float = {share!r}> ()"]
            lines += [f"{place}_rest = Constant <value_float = {1 - share!r}> ()"]
            lines += [f"{place}_near = Mul ({near}, {place}_rest)", f"{place}_far = Mul ({far}, {place}_share)"]
            lines += [f"{place} = Add ({place}_near, {place}_far)"]
        places.append(place)
    return places


def _of_map(node: onnx.NodeProto, enlarged: str, name: str) -> onnx.NodeProto:
    """Return a node that reads the map of one place in place of all enlarged logits."""
    moved = copy.deepcopy(node)
    moved.input[:] = [name if entry == enlarged else f"{name}_{entry}" for entry in node.input]
    moved.output[:] = [f"{name}_{entry}" for entry in node.output]
    return moved


def _parsed(text: str) -> list[onnx.NodeProto]:
    return [parser.parse_node(line) for line in text.strip().splitlines()]


def _constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def _constant_of(name: str, nodes: list[onnx.NodeProto]) -> np.ndarray:
    return numpy_helper.to_array(nodes[_index_of(name, nodes)].attribute[0].t)


def _index_of(name: str, nodes: list[onnx.NodeProto]) -> int:
    return next(index for index, node in enumerate(nodes) if name in node.output)


def _name_by_stage(function: onnx.FunctionProto) -> None:
    """Name nodes after the stage, so that profiles tell what each stage takes."""
    stage = "decode"
    for index, node in enumerate(function.node):
        stage = _STAGES.get(node.op_type, stage)
        node.name = f"{stage}/{node.op_type}_{index}"


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return int(next((entry.i for entry in node.attribute if entry.name == name), default))
