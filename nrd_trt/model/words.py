"""What PyTorch executes, operation by operation, in ONNX's words. torch and NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nrd_trt.errors import ExportError
from nrd_trt.program import Operand

_WEIGHTED = ("input", "weight", "bias")

Reading = tuple[str, tuple[Operand, ...], dict[str, Any], tuple[str, ...]]
ToOperand = Callable[[object], Operand]


def _convolution(of: ToOperand, args: Any) -> Reading:
    data, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed:
        raise ExportError("expected a convolution, got a transposed one; the network computes otherwise.")
    attributes = {
        "kernel_shape": tuple(weight.shape[2:]),
        "strides": tuple(stride),
        "pads": (*padding, *padding),
        "dilations": tuple(dilation),
        "group": groups,
        "auto_pad": b"NOTSET",
    }
    return "Conv", (of(data), of(weight), of(bias)), attributes, _WEIGHTED


def _batch_norm(of: ToOperand, args: Any) -> Reading:
    data, weight, bias, mean, variance, *_, eps = args
    return "BatchNormalization", tuple(map(of, (data, weight, bias, mean, variance))), {"epsilon": eps}, ()


def _hardtanh(of: ToOperand, args: Any) -> Reading:
    data, low, high = args
    return "Clip", (of(data), np.asarray(low, np.float64), np.asarray(high, np.float64)), {}, ("input", "min", "max")


def _max_pool(of: ToOperand, args: Any) -> Reading:
    data, kernel, stride, padding, dilation, ceil = (*args, *(None,) * 6)[:6]
    attributes = {
        "kernel_shape": tuple(kernel),
        "strides": tuple(stride or kernel),
        "pads": (*(padding or (0, 0)), *(padding or (0, 0))),
        "dilations": tuple(dilation or (1, 1)),
        "ceil_mode": int(bool(ceil)),
        "auto_pad": b"NOTSET",
    }
    return "MaxPool", (of(data),), attributes, ()


def _mean(of: ToOperand, args: Any) -> Reading:
    data, axes, keep = args
    if sorted(axes) != [-2, -1] or not keep:
        raise ExportError(f"expected a mean over both axes of the map, got {axes}; the network computes otherwise.")
    return "GlobalAveragePool", (of(data),), {}, ()


def _resize(of: ToOperand, args: Any) -> Reading:
    data, size, corners, *_ = args
    if size is None:
        size = [round(side * scale) for side, scale in zip(data.shape[2:], args[3], strict=True)]
    attributes = {
        "mode": b"linear",
        "coordinate_transformation_mode": b"align_corners" if corners else b"half_pixel",
        "antialias": 0,
        "factors": tuple(out / side for out, side in zip(size, data.shape[2:], strict=True)),
    }
    return "Resize", (of(data),), attributes, ()


def _linear(of: ToOperand, args: Any) -> Reading:
    bias, data, weight = args  # the weight is transposed, (inputs, outputs)
    stored = of(weight)
    if not isinstance(stored, np.ndarray):
        raise ExportError("expected a linear layer with constant weights; the network computes otherwise.")
    return "Gemm", (of(data), stored.T, of(bias)), {}, _WEIGHTED


def _matrices(of: ToOperand, args: Any) -> Reading:
    """A product of two tensors, or a linear layer before its bias: PyTorch's form for tokens that lie by channel."""
    data, other = args
    stored = of(other)
    if isinstance(stored, np.ndarray):
        return "Gemm", (of(data), stored[0].T), {}, _WEIGHTED
    return "MatMul", (of(data), stored), {}, ()


def _layer_norm(of: ToOperand, args: Any) -> Reading:
    data, shape, weight, bias, eps = args
    if len(shape) != 1:
        raise ExportError(
            f"expected a norm over channels, got one over {len(shape)} axes; the network computes otherwise."
        )
    attributes = {"axis": -1, "epsilon": float(np.float32(eps)), "stash_type": 1}
    return "LayerNormalization", (of(data), of(weight), of(bias)), attributes, _WEIGHTED


def _softmax(of: ToOperand, args: Any) -> Reading:
    data, axis, _ = args
    return "Softmax", (of(data),), {"axis": axis - data.ndim if axis >= 0 else axis}, ()


def _product(of: ToOperand, args: Any) -> Reading:
    data, factor = args
    return "Mul", (of(data), np.asarray([factor], np.float64)), {}, ("input", "factor")


READINGS: Mapping[str, Callable[[ToOperand, Any], Reading]] = {
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "relu": lambda of, args: ("Relu", (of(args[0]),), {}, ()),
    "hardtanh": _hardtanh,
    "add": lambda of, args: ("Add", (of(args[0]), of(args[1])), {}, ()),
    "max_pool2d_with_indices": _max_pool,
    "mean": _mean,
    "expand": lambda of, args: ("Expand", (of(args[0]),), {}, ()),
    "cat": lambda of, args: ("Concat", tuple(map(of, args[0])), {"axis": args[1]}, ()),
    "upsample_bilinear2d": _resize,
    "addmm": _linear,
    "bmm": _matrices,
    "native_layer_norm": _layer_norm,
    "_softmax": _softmax,
    "mul": _product,
    "gelu": lambda of, args: ("Gelu", (of(args[0]),), {}, ()),
}
IGNORED = frozenset({"empty", "detach", "lift_fresh", "alias"})
LAYOUT = frozenset({"view", "_unsafe_view", "transpose", "permute", "clone", "slice", "constant_pad_nd"})
"""What moves numbers between maps, tokens, heads and windows, and computes none."""
