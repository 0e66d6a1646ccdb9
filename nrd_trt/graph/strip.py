"""Pass: take functions out of the file, so that their nodes can only be plugins. onnx only.

TensorRT before 10.7 prefers a function of the file to a registered plugin of the same name.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from nrd_trt.errors import ExportError
from nrd_trt.graph.tensors import copy_model


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
