"""Check: casts that TensorRT documents. onnx only."""

from __future__ import annotations

import onnx
from onnx import TensorProto, inliner

from nrd_trt.graph.tensors import attribute, element_types

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
_INTEGERS = {TensorProto.INT32, TensorProto.INT64}
_BYTE_PARTNERS = {TensorProto.FLOAT, TensorProto.FLOAT16}


def undocumented_casts(model: onnx.ModelProto) -> list[str]:
    """Return one line per cast outside TensorRT's documented set, function bodies included; empty when clean.

    Documented: among the float types and 32- and 64-bit integers; uint8 only from and to float and half.
    """
    flat = inliner.inline_local_functions(model)
    types = element_types(flat)
    found = []
    for node in flat.graph.node:
        if node.op_type == "Cast":
            source, target = types[node.input[0]], attribute(node, "to").i
            if not _documented(source, target):
                names = (TensorProto.DataType.Name(kind) for kind in (source, target))
                found.append(f"{node.name or node.output[0]}: {' -> '.join(names)}")
    return found


def _documented(source: int, target: int) -> bool:
    if TensorProto.UINT8 in (source, target):
        return {source, target} - {TensorProto.UINT8} <= _BYTE_PARTNERS
    return {source, target} <= _FLOATS | _INTEGERS
