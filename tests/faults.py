"""Faults to plant in a file: each changes a model in place as a faulty exporter or quantizer would have written it.

All take the file in any precision, and most the fp32 file of an exporter as well; see `tests.gallery` for the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from nrd_trt.graph.decode_nodes import decode_nodes
from nrd_trt.graph.formats import FORMATS, FP8, INT8
from nrd_trt.graph.metadata import read_facts, write_facts
from nrd_trt.graph.quantize import weight_scales
from nrd_trt.specs import DecodeSpec

Change = Callable[[onnx.ModelProto], None]
Edit = Callable[[np.ndarray], np.ndarray]

THETA = "decode_head.classifier.classifier.1"


# --- finding and changing parts of a file -----------------------------------------------------------------------------


def weights_of(model: onnx.ModelProto, name: str) -> tuple[onnx.TensorProto, np.ndarray]:
    """Find an initializer by the name that it has in fp32."""
    tensor = _tensors(model, name)[0]
    return tensor, numpy_helper.to_array(tensor).copy()


def edit_tensor(name: str, edit: Edit) -> Change:
    """Change an initializer, in every type that the file has of it."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in _tensors(model, name):
            _store(tensor, edit(numpy_helper.to_array(tensor).astype(np.float32)))

    return change


def edit_weight(layer: str, edit: Edit) -> Change:
    """Change the weights of a convolution; 8-bit ones are quantised anew, as those of a faulty fp32 file would be."""

    def change(model: onnx.ModelProto) -> None:
        operands = weight_operands(model, layer)
        if operands is None:
            edit_tensor(f"{layer}.weight", edit)(model)
            return
        integers, scale = operands
        steps = numpy_helper.to_array(scale).astype(np.float32).reshape(-1, 1, 1, 1)
        store_quantised(integers, scale, edit(numpy_helper.to_array(integers).astype(np.float32) * steps))

    return change


def weight_operands(model: onnx.ModelProto, layer: str) -> tuple[onnx.TensorProto, onnx.TensorProto] | None:
    """Return the numbers and the scales of a layer in 8 bits, or None where it is not."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = find(model, f"{layer}/Conv").input[1]
    for node in model.graph.node:
        if weight in node.output and node.op_type == "DequantizeLinear":
            return tensors[node.input[0]], tensors[node.input[1]]
    return None


def store_quantised(numbers: onnx.TensorProto, scale: onnx.TensorProto, values: np.ndarray) -> None:
    """Quantise weights as the exporter does."""
    kind = helper.tensor_dtype_to_np_dtype(numbers.data_type)
    wanted = next(one for one in FORMATS.values() if one.dtype == kind)
    steps = weight_scales(values, 0, wanted)
    _store(numbers, wanted.nearest(values / steps.reshape(-1, 1, 1, 1)))
    _store(scale, steps)


def find(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """Return the node of a name."""
    return next(node for node in model.graph.node if node.name == name)


def bodies(model: onnx.ModelProto) -> Iterator[tuple[onnx.FunctionProto, DecodeSpec]]:
    """Yield the functions that decode patches."""
    spec = read_facts(model).decode
    assert spec is not None
    for function in model.functions:
        if any(list(node.output) == ["per_patch"] for node in function.node):
            yield function, spec


def step(function: onnx.FunctionProto, output: str) -> tuple[int, onnx.NodeProto]:
    """Return the node of a body that makes a tensor, and its place."""
    return next((place, node) for place, node in enumerate(function.node) if output in node.output)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Replace an attribute."""
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def insert_after(model: onnx.ModelProto, tensor: str, make: Callable[[str, str], list[onnx.NodeProto]]) -> None:
    """Put nodes behind a tensor of the main graph; `make` gets the names that they read and write."""
    nodes = list(model.graph.node)
    place = next(index for index, node in enumerate(nodes) if tensor in node.output)
    nodes[place].output[:] = [f"{tensor}/right" if name == tensor else name for name in nodes[place].output]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: place + 1], *make(f"{tensor}/right", tensor), *nodes[place + 1 :]])


def rename(model: onnx.ModelProto) -> None:
    """Give every node and every tensor but inputs and outputs another name; no fault, as names do not count."""
    formal = {name for entry in model.functions for name in (*entry.input, *entry.output)}
    kept = {"", *formal, *(entry.name for entry in (*model.graph.input, *model.graph.output))}
    del model.graph.value_info[:]
    for owner in (model.graph, *model.functions):
        for index, node in enumerate(owner.node):
            node.name = f"n{index}"
            node.input[:] = [name if name in kept else f"t/{name}" for name in node.input]
            node.output[:] = [name if name in kept else f"t/{name}" for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = f"t/{tensor.name}"


def _tensors(model: onnx.ModelProto, name: str) -> list[onnx.TensorProto]:
    names = {name, f"{name}/fp32", f"{name}/fp16", f"{name}/bf16"}
    found = [tensor for tensor in model.graph.initializer if tensor.name in names]
    assert found, f"the file has no {name}"
    return found


def _store(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(np.array(values, kind, order="C"), tensor.name))


def _theta_rows(model: onnx.ModelProto) -> dict[str, slice]:
    """Return the rows of theta by what they are: W0, b0, W1, b1, W2, b2."""
    spec = read_facts(model).decode
    assert spec is not None
    ends = np.cumsum(spec.sections).tolist()
    names = ("W0", "b0", "W1", "b1", "W2", "b2")
    return {name: slice(end - size, end) for name, size, end in zip(names, spec.sections, ends, strict=True)}


def _order_theta(model: onnx.ModelProto, order: np.ndarray) -> None:
    edit_weight(THETA, lambda values: values[order])(model)
    edit_tensor(f"{THETA}.bias", lambda values: values[order])(model)


# --- preprocessing ----------------------------------------------------------------------------------------------------


def swap_rgb(model: onnx.ModelProto) -> None:
    """Read the image as BGR, as a file exported for OpenCV's arrays would."""
    nodes = model.graph.node
    place = next(index for index, node in enumerate(nodes) if node.name == "preprocessing/Sub")
    planes = nodes[place].input[0]
    nodes[place].input[0] = "swapped"
    nodes.insert(place, helper.make_node("Gather", [planes, "order"], ["swapped"], name="preprocessing/swap", axis=1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))


other_mean = edit_tensor("preprocessing.mean", lambda mean: mean / 255)
"""Normalise with the mean in 0-1 instead of 0-255."""

larger_std = edit_tensor("preprocessing.std", lambda std: std * 1.02)

one_std = edit_tensor("preprocessing.std", lambda std: np.full_like(std, std.mean()))
"""One standard deviation for all channels."""


# --- weights ----------------------------------------------------------------------------------------------------------


def double(name: str) -> Change:
    """Double one weight tensor, as a quantisation scale of twice the size does."""
    layer, kind = name.rsplit(".", 1)
    if kind == "weight":
        return edit_weight(layer, lambda values: values * 2)
    return edit_tensor(name, lambda values: values * 2)


def double_row(layer: str, row: int) -> Change:
    """Double the scale of one output channel of a layer."""
    return edit_weight(layer, lambda values: np.concatenate([values[:row], values[row, None] * 2, values[row + 1 :]]))


def zero_channels(layer: str, first: int, stop: int | None = None) -> Change:
    """Let output channels of a convolution be zero."""

    def edit(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[first:stop] = 0
        return values

    def change(model: onnx.ModelProto) -> None:
        edit_weight(layer, edit)(model)
        edit_tensor(f"{layer}.bias", edit)(model)

    return change


def half_zero(layer: str) -> Change:
    """Let the first half of a convolution's channels be zero."""

    def change(model: onnx.ModelProto) -> None:
        zero_channels(layer, 0, len(weights_of(model, f"{layer}.bias")[1]) // 2)(model)

    return change


def lost_bias(layer: str) -> Change:
    """Fold a batch norm without its shift."""
    return edit_tensor(f"{layer}.bias", np.zeros_like)


def noise(layer: str, share: float) -> Change:
    """Add noise to a layer's weights, a share of their spread."""

    def edit(values: np.ndarray) -> np.ndarray:
        drawn = np.random.default_rng(3).standard_normal(values.shape)
        return (values + share * values.std() * drawn).astype(np.float32)

    return edit_weight(layer, edit)


def eight_bits(layer: str) -> Change:
    """Keep eight significant bits of a layer's weights, cut off: bfloat16 by dropping the lower half."""

    def edit(values: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return (bits & np.uint32(0xFFFF0000)).view(np.float32)

    return edit_weight(layer, edit)


def scale_pair(first: str, second: str, factor: float) -> Change:
    """Make a layer's results larger and the weights of the next one smaller: in fp32 nothing changes but the range."""

    def change(model: onnx.ModelProto) -> None:
        edit_weight(first, lambda values: values * factor)(model)
        edit_tensor(f"{first}.bias", lambda values: values * factor)(model)
        edit_weight(second, lambda values: values / factor)(model)

    return change


def class_bias(index: int, value: float) -> Change:
    """Raise one class's bias in every patch."""

    def change(model: onnx.ModelProto) -> None:
        row = _theta_rows(model)["b2"].start + index
        edit_tensor(f"{THETA}.bias", lambda values: values + value * (np.arange(len(values)) == row))(model)

    return change


def class_weights_lost(index: int) -> Change:
    """Let one class's row of W2 be zero."""

    def change(model: onnx.ModelProto) -> None:
        spec = read_facts(model).decode
        assert spec is not None
        start = _theta_rows(model)["W2"].start + index * spec.hidden
        zero_channels(THETA, start, start + spec.hidden)(model)

    return change


def swap_classes(first: int, second: int) -> Change:
    """Exchange two classes: their rows of W2 and b2."""

    def change(model: onnx.ModelProto) -> None:
        spec, rows = read_facts(model).decode, _theta_rows(model)
        assert spec is not None
        order = np.arange(spec.theta_channels)
        for part, width in (("W2", spec.hidden), ("b2", 1)):
            block = order[rows[part]].reshape(-1, width)
            block[[first, second]] = block[[second, first]]
        _order_theta(model, order)

    return change


# --- theta and its decode ---------------------------------------------------------------------------------------------


def transpose_in_theta(matrix: str) -> Change:
    """Let the controller predict a matrix as [in][out]."""

    def change(model: onnx.ModelProto) -> None:
        spec, rows = read_facts(model).decode, _theta_rows(model)[matrix]
        assert spec is not None
        columns = {"W0": 2 + spec.guidance_channels, "W1": spec.hidden, "W2": spec.hidden}[matrix]
        order = np.arange(spec.theta_channels)
        order[rows] = order[rows].reshape(-1, columns).T.ravel()
        _order_theta(model, order)

    return change


def guidance_first_in_theta(model: onnx.ModelProto) -> None:
    """Let the controller predict W0 for the guidance first and the coordinates last."""
    spec = read_facts(model).decode
    assert spec is not None
    order = np.arange(spec.theta_channels)
    block = order[_theta_rows(model)["W0"]].reshape(spec.hidden, -1)
    block[:] = np.roll(block, -2, axis=1)
    _order_theta(model, order)


def swap_biases_in_theta(model: onnx.ModelProto) -> None:
    """Exchange b0 and b1."""
    rows = _theta_rows(model)
    order = np.arange(rows["b2"].stop)
    order[rows["b0"]], order[rows["b1"]] = order[rows["b1"]].copy(), order[rows["b0"]].copy()
    _order_theta(model, order)


def transpose_in_decode(matrix: str) -> Change:
    """Let the decode read a matrix as [in][out]; theta is right."""

    def change(model: onnx.ModelProto) -> None:
        for function, spec in bodies(model):
            place, node = step(function, matrix)
            columns = {"w0": 2 + spec.guidance_channels, "w1": spec.hidden, "w2": spec.hidden}[matrix]
            rows = {"w0": spec.hidden, "w1": spec.hidden, "w2": spec.num_classes}[matrix]
            node.output[0] = f"{matrix}_read"
            _, shape = step(function, node.input[1])
            set_attribute(shape, "value", numpy_helper.from_array(np.array([-1, columns, rows], np.int64)))
            turned = helper.make_node("Transpose", [f"{matrix}_read"], [matrix], perm=[0, 2, 1])
            function.node.insert(place + 1, turned)

    return change


transpose_w1_in_decode = transpose_in_decode("w1")


def guidance_first_in_decode(model: onnx.ModelProto) -> None:
    """Read W0's columns as guidance and then coordinates."""
    for function, spec in bodies(model):
        _, node = step(function, "w0_xy")
        node.output[:] = ["w0_guidance", "w0_xy"]
        _, sizes = step(function, node.input[1])
        set_attribute(sizes, "value", numpy_helper.from_array(np.array([spec.guidance_channels, 2], np.int64)))


def swap_biases_in_decode(model: onnx.ModelProto) -> None:
    """Add b1 where b0 belongs and the other way round."""
    for function, _ in bodies(model):
        (_, first), (_, second) = step(function, "b0"), step(function, "b1")
        first.input[0], second.input[0] = second.input[0], first.input[0]


def transpose_patch(model: onnx.ModelProto) -> None:
    """Draw every patch with its rows as columns."""
    for function, _ in bodies(model):
        set_attribute(step(function, "rows")[1], "perm", [0, 3, 1, 5, 2, 4])


def lost_relu_in_decode(model: onnx.ModelProto) -> None:
    """Leave the second activation of the perceptron out."""
    for function, _ in bodies(model):
        place, node = step(function, "a1")
        function.node[place].CopyFrom(helper.make_node("Identity", node.input, node.output))


def edit_tables(edit: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Change:
    """Change the columns' and the rows' coordinates, on the nodes and in the bodies."""

    def change(model: onnx.ModelProto) -> None:
        for node in decode_nodes(model):
            values = {entry.name: entry for entry in node.attribute}
            if "x_table" in values:
                x, y = edit(*(np.array(values[name].floats, np.float32) for name in ("x_table", "y_table")))
                set_attribute(node, "x_table", x.tolist())
                set_attribute(node, "y_table", y.tolist())
        for function, spec in bodies(model):
            node, f = step(function, "coordinates")[1], spec.patch
            table = numpy_helper.to_array(node.attribute[0].t)
            x, y = edit(table[0, :f], table[1, ::f])
            both = np.stack([np.tile(x, f), np.repeat(y, f)]).astype(np.float32)
            set_attribute(node, "value", numpy_helper.from_array(both))

    return change


def shift_coordinates(model: onnx.ModelProto, steps: float = 0.5) -> None:
    """Take the centres of pixels for their coordinates: half a step off in x and y."""
    edit_tables(lambda x, y: (x + (x[1] - x[0]) * steps, y + (y[1] - y[0]) * steps))(model)


swap_coordinates = edit_tables(lambda x, y: (y, x))
"""Give the perceptron y first and x second."""

plain_coordinates = edit_tables(lambda x, y: (np.arange(len(x)) / len(x), np.arange(len(y)) / len(y)))
"""Forget that coordinates pass through cat_norm."""


def resize(**attributes: str) -> Change:
    """Enlarge the logits in another way."""

    def change(model: onnx.ModelProto) -> None:
        for function, _ in bodies(model):
            for node in function.node:
                if node.op_type == "Resize":
                    for name, value in attributes.items():
                        set_attribute(node, name, value)

    return change


# --- wiring and attributes --------------------------------------------------------------------------------------------


def convolution(layer: str, **attributes: Any) -> Change:
    """Change attributes of a convolution."""

    def change(model: onnx.ModelProto) -> None:
        for name, value in attributes.items():
            set_attribute(find(model, f"{layer}/Conv"), name, value)

    return change


def max_pool(**attributes: Any) -> Change:
    """Change attributes of the pooling behind the stem."""

    def change(model: onnx.ModelProto) -> None:
        for name, value in attributes.items():
            set_attribute(find(model, "backbone.maxpool/MaxPool"), name, value)

    return change


def relu6_at(limit: float) -> Change:
    """Cut all of MobileNetV2's activations off at another value."""
    return edit_tensor("max_val_cast", lambda value: np.full_like(value, limit))


def one_relu6_at(limit: float, node: str) -> Change:
    """Cut one of MobileNetV2's activations off at another value."""

    def change(model: onnx.ModelProto) -> None:
        clip = find(model, node)
        tensor = next(entry for entry in model.graph.initializer if entry.name == clip.input[2])
        model.graph.initializer.append(tensor)
        model.graph.initializer[-1].name = "other_limit"
        _store(model.graph.initializer[-1], np.full(tuple(tensor.dims), limit, np.float32))
        clip.input[2] = "other_limit"

    return change


def lost(node: str) -> Change:
    """Leave a node out: its first input passes through."""

    def change(model: onnx.ModelProto) -> None:
        gone = find(model, node)
        passed = helper.make_node("Identity", list(gone.input[:1]), list(gone.output), name=gone.name)
        gone.CopyFrom(passed)

    return change


def swap_inputs(node: str, first: int, second: int) -> Change:
    """Exchange two inputs of a node."""

    def change(model: onnx.ModelProto) -> None:
        inputs = find(model, node).input
        inputs[first], inputs[second] = inputs[second], inputs[first]

    return change


def rewire(node: str, index: int, source: str) -> Change:
    """Let a node read another tensor of equal shape, by way of a pair or a cast where the right one comes that way."""

    def change(model: onnx.ModelProto) -> None:
        reader = find(model, node)
        makers = {name: entry for entry in model.graph.node for name in entry.output}
        read, ending = source, ""
        if reader.input[index].endswith("/dequantized"):
            ending = "/dequantized"
        elif makers[reader.input[index]].op_type == "Cast":
            ending = reader.input[index][reader.input[index].rindex("/") :]
        if ending and (read := source + ending) not in makers:
            cast = onnx.NodeProto()
            cast.CopyFrom(makers[reader.input[index]])
            cast.name = cast.output[0] = read
            cast.input[0] = source
            model.graph.node.insert(list(model.graph.node).index(reader), cast)
        find(model, node).input[index] = read

    return change


def max_in_pool(model: onnx.ModelProto) -> None:
    """Pool the whole image by its maximum instead of its mean."""
    find(model, "decode_head.image_pool.0/ReduceMean").op_type = "ReduceMax"


def stride_later(first: str, second: str) -> Change:
    """Put a block's stride on its second convolution."""

    def change(model: onnx.ModelProto) -> None:
        convolution(first, strides=[1, 1])(model)
        convolution(second, strides=[2, 2])(model)

    return change


def shift_classes(model: onnx.ModelProto) -> None:
    """Number the classes from one, as some data sets do; the last is drawn as the first."""
    facts = read_facts(model)
    one, count = (
        numpy_helper.from_array(np.asarray(value, np.float16), name)
        for value, name in ((1, "labels/one"), (len(facts.info.class_names), "labels/count"))
    )
    model.graph.initializer.extend([one, count])
    source = find(model, "mask/Cast").input[0]

    def nodes(read: str, written: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Add", [read, one.name], ["labels/raised"], name="labels/Add"),
            helper.make_node("Mod", ["labels/raised", count.name], [written], name="labels/Mod", fmod=1),
        ]

    insert_after(model, source, nodes)


def facts_of(**changes: Any) -> Change:
    """Change what the file says of its classes and preprocessing; what it computes stays."""

    def change(model: onnx.ModelProto) -> None:
        facts = read_facts(model)
        info = replace(facts.info, **{name: make(getattr(facts.info, name)) for name, make in changes.items()})
        write_facts(model, replace(facts, info=info))

    return change


# --- int8 -------------------------------------------------------------------------------------------------------------


def activation_scale(tensor: str, factor: float) -> Change:
    """Store an activation's scale too large or too small."""
    return edit_tensor(f"{tensor}/scale", lambda scale: scale * factor)


def roll_weight_scales(layer: str) -> Change:
    """Give every channel the scale of its neighbour."""

    def change(model: onnx.ModelProto) -> None:
        operands = weight_operands(model, layer)
        assert operands is not None
        _store(operands[1], np.roll(numpy_helper.to_array(operands[1]), 1))

    return change


def one_weight_scale(layer: str) -> Change:
    """Quantise a layer's weights with one scale for all channels."""

    def change(model: onnx.ModelProto) -> None:
        operands = weight_operands(model, layer)
        assert operands is not None
        integers, scale = operands
        steps = numpy_helper.to_array(scale).astype(np.float32)
        values = numpy_helper.to_array(integers) * steps.reshape(-1, 1, 1, 1)
        _store(integers, np.clip(np.rint(values / steps.max()), -INT8.largest, INT8.largest))
        _store(scale, np.full_like(steps, steps.max()))

    return change


def scales_of_two(layer: str) -> Change:
    """Round a layer's weight scales to powers of two, the integers staying as they are."""

    def change(model: onnx.ModelProto) -> None:
        operands = weight_operands(model, layer)
        assert operands is not None
        steps = numpy_helper.to_array(operands[1]).astype(np.float32)
        _store(operands[1], 2 ** np.rint(np.log2(steps)))

    return change


def wrapped_weights(layer: str) -> Change:
    """Let the largest weights of a layer overflow: 128 becomes -128."""

    def change(model: onnx.ModelProto) -> None:
        operands = weight_operands(model, layer)
        assert operands is not None
        values = numpy_helper.to_array(operands[0]).astype(np.int16)
        _store(operands[0], np.where(values == INT8.largest, -128, values))

    return change


def zero_point(layer: str) -> Change:
    """Store a layer's weights with a zero point that is not zero."""

    def change(model: onnx.ModelProto) -> None:
        weight = find(model, f"{layer}/Conv").input[1]
        dequantize = next(node for node in model.graph.node if weight in node.output)
        zeros = next(tensor for tensor in model.graph.initializer if tensor.name == dequantize.input[2])
        _store(zeros, np.ones_like(numpy_helper.to_array(zeros)))

    return change


def scale_of_another(tensor: str, other: str) -> Change:
    """Quantise a tensor with the scale of another one."""

    def change(model: onnx.ModelProto) -> None:
        _, values = weights_of(model, f"{other}/scale")
        edit_tensor(f"{tensor}/scale", lambda _: values)(model)

    return change


def quantise_before(node: str) -> Change:
    """Put an activation's pair in front of the activation function instead of behind it."""

    def change(model: onnx.ModelProto) -> None:
        act = onnx.NodeProto()
        act.CopyFrom(find(model, node))
        find(model, f"{node}/Q").input[0] = act.input[0]

        def nodes(read: str, written: str) -> list[onnx.NodeProto]:
            act.name, act.input[0], act.output[0] = f"{node}/late", read, written
            return [act]

        insert_after(model, find(model, f"{node}/DQ").output[0], nodes)
        model.graph.node.remove(find(model, node))

    return change


# --- fp8 --------------------------------------------------------------------------------------------------------------


def e5m2(tensor: str) -> Change:
    """Quantise an activation to E5M2 instead of E4M3."""

    def change(model: onnx.ModelProto) -> None:
        zero = numpy_helper.from_array(np.zeros((), ml_dtypes.float8_e5m2), f"{tensor}/e5m2")
        model.graph.initializer.append(zero)
        for end in ("Q", "DQ"):
            find(model, f"{tensor}/{end}").input[2] = zero.name

    return change


def not_saturating(tensor: str, factor: float = 1.0) -> Change:
    """Let what is beyond so many times the range of an activation become NaN."""

    def change(model: onnx.ModelProto) -> None:
        set_attribute(find(model, f"{tensor}/Q"), "saturate", 0)
        activation_scale(tensor, factor)(model)

    return change


def overflowing_weights(layer: str) -> Change:
    """Let the largest weights of a layer become NaN."""

    def change(model: onnx.ModelProto) -> None:
        operands = weight_operands(model, layer)
        assert operands is not None
        _store(operands[0], numpy_helper.to_array(operands[0]).astype(np.float32) * 1.25)  # whose cast does not clip

    return change


def quantise_too(layer: str, largest: float) -> Change:
    """Quantise a convolution that TensorRT has no fast kernel in fp8 for, with a range of its activations."""

    def change(model: onnx.ModelProto) -> None:
        convolution, (_, weights) = find(model, f"{layer}/Conv"), weights_of(model, f"{layer}.weight")
        steps = weight_scales(weights.astype(np.float32), 0, FP8)
        made = {
            "range": np.float16(largest / FP8.largest),
            "zero": np.zeros((), FP8.dtype),
            "numbers": FP8.nearest(weights / steps.reshape(-1, 1, 1, 1)).astype(FP8.dtype),
            "steps": steps.astype(np.float16),
            "zeros": np.zeros(len(steps), FP8.dtype),
        }
        names = {name: f"{layer}/{name}" for name in (*made, "quantised", "read", "weights")}
        for name, value in made.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), names[name]))
        pair = [names["range"], names["zero"]]
        nodes = [
            helper.make_node("QuantizeLinear", [convolution.input[0], *pair], [names["quantised"]], f"{layer}/Q"),
            helper.make_node("DequantizeLinear", [names["quantised"], *pair], [names["read"]], f"{layer}/DQ"),
            helper.make_node(
                "DequantizeLinear",
                [names[name] for name in ("numbers", "steps", "zeros")],
                [names["weights"]],
                f"{layer}.weight/DQ",
                axis=0,
            ),
        ]
        convolution.input[:2] = [names["read"], names["weights"]]
        place = list(model.graph.node).index(convolution)
        for node in reversed(nodes):
            model.graph.node.insert(place, node)

    return change
