"""The nodes of the per-patch decode in a graph: which there are, and the constants that they carry. onnx only."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import helper

from nrd_trt.decode.function import DOMAIN

PLUGIN_ATTRIBUTES = ("plugin_namespace", "plugin_version")
"""What makes TensorRT's parser look for a plugin of the node's name."""


def decode_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the decode nodes of the main graph."""
    return [node for node in model.graph.node if node.domain == DOMAIN]


def unsupported(model: onnx.ModelProto, supported: Mapping[str, Collection[int]]) -> list[str]:
    """Return one line per constant of a decode node that a plugin is not written for; empty when it can take all.

    Args:
        model: Any file of this toolkit.
        supported: Allowed values by attribute; an attribute that a node does not have is not checked.
    """
    found: dict[str, None] = {}  # in order, each once
    for node in decode_nodes(model):
        values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        for name in PLUGIN_ATTRIBUTES:
            if name not in values:
                found[f"{node.op_type} without {name}"] = None
        for name, allowed in supported.items():
            if name in values and values[name] not in allowed:
                found[f"{name} {values[name]} (expected {_listed(allowed)})"] = None
    return list(found)


def _listed(allowed: Collection[int]) -> str:
    """Return ``"8, 16 or 32"``, or ``"2 to 256"`` for a range."""
    values = sorted(allowed)
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}" if most else last
