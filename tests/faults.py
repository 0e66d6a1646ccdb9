"""Faults to plant in a file: each changes a model in place as a faulty exporter would have written it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nrd_trt.decode.misread import transposed_channels
from nrd_trt.graph.decode_nodes import decode_nodes
from nrd_trt.graph.metadata import read_facts

Change = Callable[[onnx.ModelProto], None]


def weights_of(model: onnx.ModelProto, name: str) -> tuple[onnx.TensorProto, np.ndarray]:
    """Find an initializer by the name that it has in fp32."""
    tensor = next(t for t in model.graph.initializer if t.name.removesuffix("/fp16").removesuffix("/bf16") == name)
    return tensor, numpy_helper.to_array(tensor).copy()


def swap_rgb(model: onnx.ModelProto) -> None:
    """Read the image as BGR, as a file exported for OpenCV's arrays would."""
    nodes = model.graph.node
    place = next(index for index, node in enumerate(nodes) if node.name == "preprocessing/Sub")
    planes = nodes[place].input[0]
    nodes[place].input[0] = "swapped"
    nodes.insert(place, helper.make_node("Gather", [planes, "order"], ["swapped"], name="preprocessing/swap", axis=1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))


def other_mean(model: onnx.ModelProto) -> None:
    """Normalise with the mean in 0-1 instead of 0-255."""
    tensor, mean = weights_of(model, "preprocessing.mean")
    tensor.CopyFrom(numpy_helper.from_array(mean / np.float32(255), tensor.name))


def shift_coordinates(model: onnx.ModelProto, steps: float = 0.5) -> None:
    """Take the centres of pixels for their coordinates: half a step off in x and y, in the nodes and the bodies."""
    for node in decode_nodes(model):
        for entry in node.attribute:
            if entry.name in ("x_table", "y_table"):
                step = entry.floats[1] - entry.floats[0]
                entry.floats[:] = [value + step * steps for value in entry.floats]
    for function in model.functions:
        for node in function.node:
            if list(node.output) == ["coordinates"]:
                table = numpy_helper.to_array(node.attribute[0].t).copy()
                patch = int(np.sqrt(table.shape[1]))
                table[0] += (table[0, 1] - table[0, 0]) * steps
                table[1] += (table[1, patch] - table[1, 0]) * steps
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(table))


def transpose_w1_in_theta(model: onnx.ModelProto) -> None:
    """Let the controller predict W1 as [in][out]."""
    order = transposed_channels(read_facts(model).decode)["W1"]  # type: ignore[arg-type]
    for name in ("decode_head.classifier.classifier.1.weight", "decode_head.classifier.classifier.1.bias"):
        tensor, values = weights_of(model, name)
        tensor.CopyFrom(numpy_helper.from_array(values[order], tensor.name))


def transpose_w1_in_decode(model: onnx.ModelProto) -> None:
    """Let the decode read W1 as [in][out]; theta is right."""
    for function in model.functions:
        place, node = next((i, n) for i, n in enumerate(function.node) if list(n.output) == ["w1"])
        node.output[0] = "w1_read"
        function.node.insert(place + 1, helper.make_node("Transpose", ["w1_read"], ["w1"], perm=[0, 2, 1]))


def double(name: str) -> Change:
    """Double one weight tensor, as a quantisation scale of twice the size does."""

    def change(model: onnx.ModelProto) -> None:
        tensor, values = weights_of(model, name)
        tensor.CopyFrom(numpy_helper.from_array(values * values.dtype.type(2), tensor.name))

    return change


def double_one_row(model: onnx.ModelProto) -> None:
    """Double the scale of one output channel of a layer in the encoder."""
    tensor, values = weights_of(model, "backbone.layer5.1.conv.2.conv.weight")
    values[7] *= 2
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
