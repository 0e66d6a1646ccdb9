"""Constants of a file that are not the checkpoint's: attributes, limits, orders and tables. onnx and NumPy only.

They are read where nodes read them and held against the modules of the same names, so that what is found here is in the
file, whatever the tensors do. `nrd_trt.validation.weights` does the same for weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from nrd_trt.graph.constants import Constants
from nrd_trt.graph.outputs import PREFIX, with_taps
from nrd_trt.graph.tensors import needed_nodes
from nrd_trt.specs import ModelInfo
from nrd_trt.validation.stages import STAGES, Finding

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

_ACTIVATIONS = {"ReLU": "Relu", "ReLU6": "Clip"}
_ANY_ACTIVATION = {
    "Relu",
    "Clip",
    "LeakyRelu",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Sigmoid",
    "Softplus",
    "Tanh",
}
_BRANCHES = ("decode_head.image_pool", "decode_head.aspp_modules.")
_RESIZE = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
_RESIZE_DEFAULTS = {"mode": b"nearest", "coordinate_transformation_mode": b"half_pixel"}
_SAME_RESIZE = {"pytorch_half_pixel"}  # but for a single pixel


def find_in_nodes(file: onnx.ModelProto, model: Segmentor) -> Iterator[Finding]:
    """Yield what the nodes of a file have otherwise than the modules of the checkpoint.

    Args:
        file: The bundle's ONNX file.
        model: The checkpoint's network.
    """
    stages, constants = layer_stages(file), Constants(file)
    modules = {name: module for name, module in model.named_modules() if name}
    for text in _preprocessing(file, constants, model.info):
        yield Finding(stage="preprocessing", text=text)
    limits: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in file.graph.node:
        name = node.name.partition("/")[0]
        module = modules.get(name)
        kind = type(module).__name__
        if node.op_type == "Conv" and kind == "Conv2d":
            for said in _convolution(name, node, module):
                yield Finding(stage=stages.get(node.name, "c4"), text=said)
        elif kind in _ACTIVATIONS and node.op_type in _ANY_ACTIVATION:
            if does := _activation(node, kind, constants):
                limits[stages.get(node.name, "c4"), does].append(name)
    for (stage, does), names in limits.items():
        layers = f"`{names[0]}`" if len(names) == 1 else f"{len(names)} layers from `{names[0]}` on"
        yield Finding(stage=stage, text=f"{layers}: {does}")
    if joined := _joined_branches(file, constants):
        yield Finding(stage="theta" if model.config.is_nrd else "logits", text=joined)
    for text in _enlargements(file):
        yield Finding(stage="mask", text=text)


def layer_stages(file: onnx.ModelProto) -> dict[str, str]:
    """Return the first stage that each node of a file is needed for, by the node's name."""
    nodes = list(with_taps(file).graph.node)
    found: dict[str, str] = {}
    for stage in STAGES[:-1]:
        for node in needed_nodes(nodes, [PREFIX + stage]):
            found.setdefault(node.name, stage)
    return found


def _preprocessing(file: onnx.ModelProto, constants: Constants, info: ModelInfo) -> Iterator[str]:
    expected = {"preprocessing/Sub": ("mean", info.mean), "preprocessing/Div": ("standard deviation", info.std)}
    for node in file.graph.node:
        if node.name in expected and (found := constants.read(node.input[1])) is not None:
            what, wanted = expected[node.name]
            got = np.broadcast_to(found.values.ravel(), (3,)) if found.values.size in (1, 3) else found.values.ravel()
            if got.shape != (3,) or not np.allclose(got, np.asarray(wanted, np.float32), rtol=1e-6):
                yield f"another {what} in `{node.name}`: {_listed(got)}, expected {_listed(wanted)}"


def _convolution(name: str, node: onnx.NodeProto, module: Any) -> Iterator[str]:
    """Yield the attributes of a convolution that are not its module's."""
    rank = len(module.kernel_size)
    defaults = {
        "auto_pad": b"NOTSET",
        "dilations": [1] * rank,
        "group": 1,
        "pads": [0] * 2 * rank,
        "strides": [1] * rank,
    }
    found = defaults | {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    expected = {
        "dilations": list(module.dilation),
        "pads": [*module.padding, *module.padding],
        "strides": list(module.stride),
        "group": module.groups,
    }
    if found["auto_pad"] != b"NOTSET":
        yield f"`{name}`: auto_pad {found['auto_pad'].decode()}, expected pads {expected.pop('pads')}"
    for key, wanted in expected.items():
        got = list(found[key]) if isinstance(wanted, list) else found[key]
        if got != wanted:
            yield f"`{name}`: {key} {got}, expected {wanted}"


def _activation(node: onnx.NodeProto, kind: str, constants: Constants) -> str | None:
    """Tell what a node does in place of its module's activation."""
    if node.op_type != _ACTIVATIONS[kind]:
        return f"{node.op_type}, expected {_ACTIVATIONS[kind]} ({kind})"
    if kind != "ReLU6":
        return None
    limits = [constants.read(name) if name else None for name in (*node.input[1:], "", "")[:2]]
    if any(limit is not None and limit.values.size != 1 for limit in limits):
        return f"{kind} clips each channel at limits of its own, expected [0, 6]"
    got = [None if limit is None else limit.values.item() for limit in limits]
    return None if got == [0, 6] else f"{kind} clips at {_listed(got)}, expected [0, 6]"


def _joined_branches(file: onnx.ModelProto, constants: Constants) -> str | None:
    """Tell in which order the branches of the atrous pooling are joined where it is another one."""
    reader = next((node for node in file.graph.node if node.name == "decode_head.bottleneck.conv/Conv"), None)
    join = reader and _producer(constants, reader.input[0], lambda node: node.op_type == "Concat")
    if join is None:
        return None
    found = []
    for name in join.input:
        node = _producer(constants, name, lambda node: node.name.startswith(_BRANCHES))
        scope = node.name.partition("/")[0].split(".") if node is not None else []
        found.append(scope[1] if scope[1:2] == ["image_pool"] else ".".join(scope[1:3]))
    expected = sorted(found, key=lambda name: (name != "image_pool", name))
    if found == expected or "" in found or len(set(found)) < len(found):
        return None
    return f"the branches of the atrous pooling are joined as {', '.join(found)}, expected {', '.join(expected)}"


def _producer(constants: Constants, name: str, wanted: Any) -> onnx.NodeProto | None:
    """Walk up the first inputs to a node that is wanted."""
    while (node := constants.made_by.get(name)) is not None and not wanted(node):
        name = node.input[0] if node.input else ""
    return node


def _enlargements(file: onnx.ModelProto) -> Iterator[str]:
    """Yield the attributes of what draws the mask, in the graph and in functions, that are not the network's."""
    for place, owner in [("the graph", file), *((f"function {entry.name}", entry) for entry in file.functions)]:
        constants = Constants(owner)
        for node in constants.made_by.values():
            if node.op_type != "ArgMax":
                continue
            values: Mapping[str, Any] = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            if values.get("select_last_index", 0):
                yield f"the ArgMax of {place}: select_last_index 1, expected 0: ties go to the highest class"
            resize = _producer(constants, node.input[0], lambda node: node.op_type == "Resize")
            if resize is None:
                continue
            found = {entry.name: helper.get_attribute_value(entry) for entry in resize.attribute}
            got = {key: found.get(key, default).decode() for key, default in _RESIZE_DEFAULTS.items()}
            for key, wanted in _RESIZE.items():
                if got[key] != wanted and got[key] not in _SAME_RESIZE:
                    yield f"the Resize of {place}: {key} {got[key]}, expected {wanted}"


def _listed(values: Any) -> str:
    return "[" + ", ".join("none" if value is None else f"{value:g}" for value in values) + "]"
