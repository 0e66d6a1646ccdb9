"""Passes for runtimes on a CPU: the fp32 twin of a 16-bit file, and the mask's ending in the form each runs fastest.

All forms of the ending give the same masks of the same logits, but for pixels whose two largest logits are as close as
fp32 rounds: these forms enlarge with sums in another order. The form of the file is what TensorRT reads; these are made
when a file is opened, and never written. onnx and NumPy only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from nrd_trt.decode.function import CONFIDENCE_OP, LOGITS_OP, MASK_OP, function_of
from nrd_trt.errors import NrdTrtError
from nrd_trt.graph.tensors import HALF_TYPES, copy_model, needed_nodes
from nrd_trt.specs import STRIDE

Ending = Literal["filters", "phases"]
"""In both each place between neighbours has a map of its own, and the pixels that are drawn of these maps are woven.
``"filters"``, for ONNX Runtime: one convolution makes all maps of a class, and three make the logits where it is known
how many patches there are. ``"phases"``: each map is a weighted sum that OpenVINO compiles, so that no kernel writes or
reads the enlarged logits as a whole."""
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
# The perceptrons of all patches as convolutions with a group for each, which add a bias while sums are in the cache.
# The order of summation is the file's, so the logits are the same bit by bit.
_GROUPED = """
group_shape = Constant <value = int64[3] {{1, -1, {pixels}}}> ()
grouped_pixels = Reshape (patch_pixels, group_shape)
grouped_xy = Reshape (from_xy, group_shape)
weights0_shape = Constant <value = int64[3] {{-1, {guidance}, 1}}> ()
weights_shape = Constant <value = int64[3] {{-1, {hidden}, 1}}> ()
weights0 = Reshape (w0_guidance, weights0_shape)
weights1 = Reshape (w1_flat, weights_shape)
weights2 = Reshape (w2_flat, weights_shape)
bias0 = Reshape (b0_flat, last)
bias1 = Reshape (b1_flat, last)
bias2 = Reshape (b2_flat, last)
grouped_guidance = Conv <group = {groups}> (grouped_pixels, weights0, bias0)
grouped_z0 = Add (grouped_guidance, grouped_xy)
grouped_a0 = Relu (grouped_z0)
grouped_z1 = Conv <group = {groups}> (grouped_a0, weights1, bias1)
grouped_a1 = Relu (grouped_z1)
z2 = Conv <group = {groups}> (grouped_a1, weights2, bias2)
"""
# Between four logits lies a square of places, and beyond the outermost ones half a square more. With a row and a column
# of squares more than of logits a map has an odd number of pixels, so the classes of a pixel lie no power of two apart:
# else the cache holds few of them at a time, and the argmax takes a quarter longer. ONNX Runtime would reorder what a
# flat convolution gives, and back; that of one of volumes it leaves alone.
_FILTERED = """
plane = Constant <value = int64[2] {{1, 1}}> ()
planes_shape = Concat <axis = 0> (last, plane, height, width)
planes = Reshape ({logits}, planes_shape)
around = Constant <value = int64[10] {{0, 0, 0, 1, 1, 0, 0, 0, 1, 1}}> ()
bordered = Pad <mode = "{border}"> (planes, around)
maps = Conv (bordered, filters)
classes_shape = Concat <axis = 0> (batch, k, last)
{enlarged} = Reshape (maps, classes_shape)
one_more = Constant <value = int64[1] {{1}}> ()
high = Add (height, one_more)
wide = Add (width, one_more)
factor = Constant <value = int64[1] {{{factor}}}> ()
place_shape = Concat <axis = 0> (batch, factor, factor, high, wide)
wide_pixels = Mul (wide, factor)
row_shape = Concat <axis = 0> (batch, factor, high, wide_pixels)
large_shape = Concat <axis = 0> (batch, last, wide_pixels)
mask_start = Constant <value = int64[2] {{{half}, {half}}}> ()
mask_height = Mul (height, factor)
mask_width = Mul (width, factor)
mask_size = Concat <axis = 0> (mask_height, mask_width)
mask_end = Add (mask_start, mask_size)
sides = Constant <value = int64[2] {{1, 2}}> ()
"""
# Two transpositions that its fast kernels know; the one that does all takes sixteen times as long.
_WOVEN_BY_ROW = """
{name}_narrow = Cast <to = {type}> ({name}_maps)
{name}_by_place = Reshape ({name}_narrow, place_shape)
{name}_by_column = Transpose <perm = [0, 1, 3, 4, 2]> ({name}_by_place)
{name}_by_row = Reshape ({name}_by_column, row_shape)
{name}_by_pixel = Transpose <perm = [0, 2, 1, 3]> ({name}_by_row)
{name}_large = Reshape ({name}_by_pixel, large_shape)
{name} = Slice ({name}_large, mask_start, mask_end, sides)
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
bands = Constant <value = int64[1] {{{bands}}}> ()
band_height = Div (height, bands)
band_size = Mul (band_height, row_size)
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
maps_shape = Concat <axis = 0> (bands, factor, factor, band_height, batch, wide)
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
    """Return the file with the decode's functions in another form, and the stage in the name of each of their nodes.

    A function that is not, node by node, what its call says keeps its form: the masks shall be those of the file.
    """
    result = copy_model(model)
    patches = _patches_of(model)
    calls = {node.op_type: node for node in model.graph.node}
    for function in result.functions:
        if function.name not in calls or not _is_decode(function, calls[function.name]):
            continue
        nodes = list(function.node)
        if ending == "phases":
            start, end = (_index_of(name, nodes) for name in ("tile_shape", "patch_pixels"))
            guidance = nodes[_index_of("tiles", nodes)].input[0]
            nodes[start : end + 1] = _parsed(_TILES.format(guidance=guidance))
        elif patches:
            at = _index_of("z2", nodes)
            nodes[at : at + 1] = _in_groups(patches, nodes)
        if function.name != LOGITS_OP:
            at = next(index for index, node in enumerate(nodes) if node.op_type == "Resize")
            end = max(index for index, node in enumerate(nodes) if node.op_type in ("ArgMax", "ReduceSum")) + 1
            made = (_by_filters if ending == "filters" else _in_phases)(nodes[at], nodes[at + 1 : end], nodes)
            nodes[at:end] = made
        del function.node[:]
        function.node.extend(needed_nodes(nodes, function.output))
        _name_by_stage(function)
    return result


def _is_decode(function: onnx.FunctionProto, call: onnx.NodeProto) -> bool:
    """Return whether a function is the decode that its call describes, but for casts of what goes in and out."""
    if function.name not in _DECODES:
        return False
    try:
        due = [node.SerializeToString() for node in function_of(call).node]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, NrdTrtError, parser.ParseError):
        return False  # the attributes are those of no decode
    found = []
    for node in map(copy.deepcopy, function.node):
        for names in (node.input, node.output):
            names[:] = [name.removesuffix("_fp32") for name in names]
        node.ClearField("name")
        if node.op_type != "Cast" or list(node.input) != list(node.output):
            found.append(node.SerializeToString())
    return found == due


def _patches_of(model: onnx.ModelProto) -> int:
    """Return how many patches a file draws of its images, or 0 where that is not known before it runs."""
    image = model.graph.input[0]
    sides = [side.dim_value for side in image.type.tensor_type.shape.dim] if image.name == "image" else [0]
    return math.prod(sides) // (3 * STRIDE**2)


def _in_groups(patches: int, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the perceptrons in another form, in the place of the last node of theirs."""
    _, guidance, pixels = _constant_of("pixel_shape", nodes)
    hidden = _constant_of("w1_shape", nodes)[-1]
    return _parsed(_GROUPED.format(groups=patches, hidden=hidden, guidance=guidance, pixels=pixels))


def _by_filters(
    resize: onnx.NodeProto, reading: list[onnx.NodeProto], nodes: list[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """Return nodes in the place of the enlargement and of those that read all enlarged classes of a pixel."""
    logits, _, scales = resize.input
    factor = int(_constant_of(scales, nodes)[-1])
    # Zeros around scale all logits of an outer pixel alike, which changes no argmax, and ONNX Runtime makes them a part
    # of the convolution. A softmax needs the nearest logits there.
    border = "edge" if any(node.op_type == "Exp" for node in reading) else "constant"
    text = _FILTERED.format(logits=logits, enlarged=resize.output[0], factor=factor, half=factor // 2, border=border)
    made = [_constant("filters", _filters(factor)), *_parsed(text)]
    for node in reading:
        moved = copy.deepcopy(node)
        if _attribute(node, "keepdims", 1) == 0:
            moved.output[:] = [f"{node.output[0]}_maps"]
            made += [moved, *_parsed(_WOVEN_BY_ROW.format(name=node.output[0], type=_woven_type(node)))]
        else:
            made.append(moved)
    return made


def _filters(factor: int) -> np.ndarray:
    """Return what each place of a square takes of the logits at its corners, ``(factor², 1, 1, 2, 2)``."""
    share = (np.arange(factor) + 0.5) / factor if factor > 1 else np.ones(1)
    line = np.stack([1 - share, share], axis=1).astype(np.float32)
    filters: np.ndarray = line[:, None, :, None] * line[None, :, None, :]
    return filters.reshape(-1, 1, 1, 2, 2)


def _in_phases(
    resize: onnx.NodeProto, reading: list[onnx.NodeProto], nodes: list[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """Return the same in another form, see `_by_filters`; it begins at the decode's patches."""
    patch, factor = (int(_constant_of(name, nodes)[-1]) for name in ("f", resize.input[2]))
    bands = max(1, patch // 4)  # more of them keep more of a large map in the cache, and make as many more nodes
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
            made += _parsed(_WOVEN.format(name=name, type=_woven_type(node)))
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


def _woven_type(node: onnx.NodeProto) -> int:
    return TensorProto.UINT8 if node.op_type == "ArgMax" else TensorProto.FLOAT


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
