"""Passes: a decode that can only be a plugin, and one that can only be a function. onnx only.

TensorRT before 10.7 prefers a function of the file to a registered plugin of the same name, from 10.7 on it prefers the
plugin where the node names one, and from 10.10 on it may take the node's domain for the plugin's namespace.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from nrd_trt.errors import ExportError
from nrd_trt.graph.decode_nodes import PLUGIN_ATTRIBUTES, decode_nodes
from nrd_trt.graph.tensors import copy_model

_RENAMED = "_function"


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
            declared = [name for name in function.attribute if name not in PLUGIN_ATTRIBUTES]
            function.attribute[:] = declared
    return result
