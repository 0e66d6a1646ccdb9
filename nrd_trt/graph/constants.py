"""Constants of a graph as its nodes read them: through casts and quantisation, with what their storage may lose."""

from __future__ import annotations

import re
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

_PASSED_THROUGH = frozenset({"Cast", "Identity"})
_BITS = {np.dtype(np.float16): 11, np.dtype(ml_dtypes.bfloat16): 8}
"""Significant bits of the types that round."""
_FLOOR = 2.0**-24
"""Smallest step of fp16, which is lost whatever the value."""
_INT8_STEPS = 0.6
"""Half a step, and what the largest value loses where its scale is rounded to fp16."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant:
    """A stored tensor.

    Attributes:
        name: Its name in fp32.
        values: What it stands for, as float32.
        loss: Largest error of storing each value in its type, an array that broadcasts to `values`.
        scales: Those of int8, one for each row or one for all; other types have None.
    """

    name: str
    values: np.ndarray
    loss: np.ndarray
    scales: np.ndarray | None = None


class Constants:
    """Finds the constant behind a tensor's name.

    Args:
        model: A file of this toolkit, in any precision, or a function of one.
    """

    def __init__(self, model: onnx.ModelProto | onnx.FunctionProto) -> None:
        graph = model.graph if isinstance(model, onnx.ModelProto) else None
        nodes = model.node if isinstance(model, onnx.FunctionProto) else model.graph.node
        self._tensors = {tensor.name: tensor for tensor in (graph.initializer if graph else ())}
        self.made_by = {name: node for node in nodes for name in node.output}

    def read(self, name: str) -> Constant | None:
        """Return what a tensor holds, or None where it is no constant, or int8 with scales that do not fit it."""
        if name in self._tensors:
            return _stored(name, numpy_helper.to_array(self._tensors[name]))
        node = self.made_by.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
            return None if value is None else _stored(name, numpy_helper.to_array(value))
        if node.op_type in _PASSED_THROUGH:
            return self.read(node.input[0])
        return self._dequantized(node) if node.op_type == "DequantizeLinear" else None

    def _dequantized(self, node: onnx.NodeProto) -> Constant | None:
        integers, scale = (self.read(name) for name in node.input[:2])
        if integers is None or scale is None:
            return None
        axis = next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == "axis"), 1)
        rank = integers.values.ndim
        axis += rank if axis < 0 else 0
        if scale.values.size not in (1, integers.values.shape[axis] if axis < rank else 1):
            return None
        shape = [-1 if index == axis and scale.values.size > 1 else 1 for index in range(rank)]
        scales = scale.values.reshape(shape) if scale.values.ndim else scale.values
        return Constant(
            name=integers.name.removesuffix("/int8"),
            values=integers.values * scales,
            loss=_INT8_STEPS * np.abs(scales),
            scales=scale.values,
        )


def _stored(name: str, array: np.ndarray) -> Constant:
    values = array.astype(np.float32)
    bits = _BITS.get(array.dtype)
    loss = np.zeros(()) if bits is None else np.abs(values) * 2.0**-bits + _FLOOR
    return Constant(name=re.sub(r"/(fp32|fp16|bf16)$", "", name), values=values, loss=loss)
