"""The nodes of the per-patch decode: find them, check their constants, leave the decode to a plugin or a function.

TensorRT before 10.7 prefers a function of the file to a registered plugin of the same name, from 10.7 on it prefers the
plugin where the node names one, and from 10.10 on it may take the node's domain for the plugin's namespace. onnx only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nrd_trt.decode.function import DOMAIN
from nrd_trt.errors import ExportError
from nrd_trt.graph.tensors import copy_model

PLUGIN_ATTRIBUTES = ("plugin_namespace", "plugin_version")
"""What makes TensorRT's parser look for a plugin of the node's name."""

_RENAMED = "_function"


def decode_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the decode nodes of the main graph."""
    return [node for node in model.graph.node if node.domain == DOMAIN]


def coordinate_tables(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the columns' and the rows' table ``(f,)`` by where the file has them: on a node, or in a function."""
    found = {}
    for node in decode_nodes(model):
        values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if "x_table" in values:
            found[f"node {node.op_type}"] = (np.array(values["x_table"]), np.array(values["y_table"]))
    for function in model.functions:
        for node in function.node:
            if function.domain == DOMAIN and list(node.output) == ["coordinates"]:
                x, y = numpy_helper.to_array(node.attribute[0].t)
                patch = int(np.sqrt(x.size))
                found[f"function {function.name}"] = (x[:patch], y[::patch])
    return found


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


def strip_functions(model: onnx.ModelProto, op_types: Collection[str]) -> onnx.ModelProto:
    """Return the graph without the functions named; their nodes stay as they are.

    Args:
        model: A file of this toolkit; only a builder with the plugins can read the result.
        op_types: Names of functions, e.g. ``"NrdPatchDecodeMask"``.

    Raises:
        ExportError: The file has no such function, or another function calls it.
    """
    result = copy_model(model)
    present = {function.name for function in result.functions}
    if missing := sorted(set(op_types) - present):
        raise ExportError(
            f"cannot strip {', '.join(missing)}: the file has the functions {', '.join(sorted(present)) or 'none'}; "
            "export it again."
        )
    kept = [function for function in result.functions if function.name not in op_types]
    for function in kept:
        if called := sorted({node.op_type for node in function.node if node.op_type in op_types}):
            raise ExportError(f"cannot strip {', '.join(called)}: function {function.name} calls it; strip both.")
    del result.functions[:]
    result.functions.extend(kept)
    return result


def only_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with decode nodes that no plugin can take, whatever is registered.

    Nodes and functions get another name, as a parser looks plugins up by it, and lose the attributes that name a
    plugin; what they compute is the same.

    Args:
        model: A file of this toolkit.

    Raises:
        ExportError: A decode node has no function in the file.
    """
    result = copy_model(model)
    names = {node.op_type for node in decode_nodes(result)}
    if missing := sorted(names - {function.name for function in result.functions}):
        raise ExportError(
            f"{', '.join(missing)}: expected a function of that name in the file, got none, so only a plugin could "
            "compute it; export it again."
        )
    for node in decode_nodes(result):
        kept = [entry for entry in node.attribute if entry.name not in PLUGIN_ATTRIBUTES]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.op_type += _RENAMED
    for function in result.functions:
        if function.name in names:
            function.name += _RENAMED
            function.attribute[:] = [name for name in function.attribute if name not in PLUGIN_ATTRIBUTES]
    return result


def _listed(allowed: Collection[int]) -> str:
    """Return ``"8, 16 or 32"``, or ``"2 to 256"`` for a range."""
    values = sorted(allowed)
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}" if most else last
