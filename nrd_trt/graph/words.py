"""What a file's operations are called where PyTorch names them: the words that both sides of a comparison share.

A GELU is one operation, a linear layer has its weight by output channel and its bias, and what no pixel decides is a
constant. onnx and NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nrd_trt.program import Operand, Operation, Program

LAYOUT = frozenset({"Reshape", "Transpose", "Pad", "Slice"})
"""What moves numbers between maps, tokens, heads and windows, and computes none."""
_LINEAR = ("input", "weight", "bias")
_ARITHMETIC: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
}
_GELU = ("Div", "Erf", "Add", "Mul")
_ROUNDING = 2.0**-8
"""Of a constant of a GELU in bf16, relative."""


def computed(operation: Operation) -> np.ndarray | None:
    """Return what an operation makes of constants; None where it reads anything else."""
    kind = _ARITHMETIC.get(operation.kind)
    if kind is None or not all(isinstance(entry, np.ndarray) for entry in operation.operands):
        return None
    return np.asarray(kind(*map(np.asarray, operation.operands)))


def gelu_input(last: Operation, before: Sequence[Operation]) -> Operand:
    """Return what a GELU reads that a product ends, x·(0.5·(erf(x / √2) + 1)); None where it ends none."""
    steps, first = before[-4:], len(before) - 4
    if last.kind != "Mul" or tuple(step.kind for step in steps) != _GELU:
        return None
    divided, erf, raised, halved = steps
    data = divided.operands[0]
    linked = erf.operands == ((first, 0),) and {*_tensors(last)} == {data, (first + 3, 0)}
    linked &= _tensors(raised) == [(first + 1, 0)] and _tensors(halved) == [(first + 2, 0)]
    factors = [_factor(step) for step in (divided, raised, halved)]
    right = None not in factors and np.allclose(np.asarray(factors, np.float64), (np.sqrt(2), 1, 0.5), _ROUNDING, 0)
    return data if linked and right else None


def _tensors(operation: Operation) -> list[Operand]:
    return [entry for entry in operation.operands if not isinstance(entry, np.ndarray)]


def _factor(operation: Operation) -> float | None:
    constants = [entry for entry in operation.operands if isinstance(entry, np.ndarray) and entry.size == 1]
    return float(constants[0].item()) if len(constants) == 1 else None


def in_words_of_pytorch(operation: Operation) -> Operation:
    """Return an operation as `nrd_trt.model.program` writes it."""
    kind, operands, attributes = operation.kind, operation.operands, dict(operation.attributes)
    if kind == "ReduceMean" and _axes(operation) in ((2, 3), (-2, -1)) and attributes.get("keepdims", 1) == 1:
        return replace(operation, kind="GlobalAveragePool", attributes={}, operands=operands[:1])
    if kind == "MaxPool":
        kept = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode", "auto_pad")
        return replace(operation, attributes={name: attributes[name] for name in kept})
    if kind == "Resize":
        return _resized(operation)
    if kind in _TOKENS:
        return _TOKENS[kind](operation)
    return operation


def _axes(operation: Operation) -> tuple[int, ...]:
    given = operation.attributes.get("axes")
    stored = operation.operands[1] if len(operation.operands) > 1 else None
    axes = stored.ravel().tolist() if isinstance(stored, np.ndarray) else given or ()
    return tuple(sorted(axes))


def _resized(operation: Operation) -> Operation:
    scales = operation.operands[2] if len(operation.operands) > 2 else None
    kept: dict[str, Any] = {
        name: operation.attributes[name] for name in ("mode", "coordinate_transformation_mode", "antialias")
    }
    if kept["coordinate_transformation_mode"] == b"pytorch_half_pixel":
        kept["coordinate_transformation_mode"] = b"half_pixel"  # they differ for an output of one pixel only
    if isinstance(scales, np.ndarray) and scales.size == 4:
        kept["factors"] = tuple(float(scale) for scale in scales[2:])
    return replace(operation, attributes=kept, operands=operation.operands[:1])


def without_shapes(program: Program) -> Program:
    """Return a program that reads no shapes: what does not fit the map beside it does not run."""
    shaped = {"Expand", "Reshape", "Pad"}
    return replace(
        program,
        operations=tuple(
            replace(entry, operands=entry.operands[:1]) if entry.kind in shaped else entry
            for entry in program.operations
        ),
    )


def _product(operation: Operation) -> Operation:
    """A product with one factor for all, which stands second; its constant has one axis."""
    data, factor, *_ = sorted(operation.operands, key=lambda entry: isinstance(entry, np.ndarray))
    if not isinstance(factor, np.ndarray) or factor.size != 1:
        return operation
    return replace(operation, operands=(data, factor.reshape(1)), labels=("input", "factor"))


def _linear(operation: Operation) -> Operation:
    """A product of data with a constant matrix, ``(inputs, outputs)``, which is kept by output as PyTorch does."""
    data, weight = operation.operands
    if not isinstance(weight, np.ndarray) or weight.ndim != 2:
        return operation
    return replace(operation, kind="Gemm", operands=(data, weight.T), attributes={}, labels=_LINEAR)


def _normed(operation: Operation) -> Operation:
    return replace(operation, labels=_LINEAR)


_TOKENS: Mapping[str, Callable[[Operation], Operation]] = {
    "Mul": _product,
    "MatMul": _linear,
    "LayerNormalization": _normed,
}
