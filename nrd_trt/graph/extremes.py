"""Pass: report what 16 bits would do to every float tensor, and which nodes must stay in fp32. onnx and NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.decode.function import CONFIDENCE
from nrd_trt.graph.tensors import copy_model, element_types, float_outputs
from nrd_trt.specs import Precision

MAX_UNDERFLOW = 0.01
"""Largest share of a tensor's values, zeros left out, that may become zero. In the trained networks of the zoo nothing
does; a tensor that loses more than this is scaled too small for fp16 as a whole."""

_LARGEST_SUFFIX, _LOST_SUFFIX, _USED_SUFFIX = "/largest", "/lost", "/used"
# Activations of images not seen here may be larger than the largest seen; half of the range is left to them.
_HEADROOM = 2.0
_LARGEST = {
    "fp32": float(np.finfo(np.float32).max),
    "fp16": 65504.0,
    "bf16": 3.38e38,
    "int8": 65504.0,  # what is not quantised is fp16
    "fp8": 65504.0,
}
_ROUNDS_TO_ZERO = {"fp32": 0.0, "fp16": 2.0**-25, "bf16": 2.0**-134, "int8": 2.0**-25, "fp8": 2.0**-25}


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """What was seen of one tensor.

    Attributes:
        largest: Largest magnitude; infinity where a value was not finite.
        underflow: Share of the values that are not zero and would round to zero, 0-1.
    """

    largest: float
    underflow: float = 0.0

    def merged(self, other: Extremes) -> Extremes:
        """Return the worse of both."""
        return Extremes(largest=max(self.largest, other.largest), underflow=max(self.underflow, other.underflow))


def with_extremes(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Return the graph with three more scalar outputs per float32 tensor, from which `read_extremes` reads.

    Scalars, so that the memory of a run stays that of a plain run.
    """
    result = copy_model(model)
    zero = numpy_helper.from_array(np.zeros((), np.float32), "extremes/zero")
    smallest = numpy_helper.from_array(np.asarray(_ROUNDS_TO_ZERO[precision], np.float32), "extremes/smallest")
    result.graph.initializer.extend([zero, smallest])
    for _, name in float_outputs(model, element_types(model)):
        result.graph.node.extend(_measure(name))
        for suffix in (_LARGEST_SUFFIX, _LOST_SUFFIX, _USED_SUFFIX):
            result.graph.output.append(helper.make_tensor_value_info(name + suffix, TensorProto.FLOAT, []))
    return result


def read_extremes(outputs: Mapping[str, np.ndarray]) -> dict[str, Extremes]:
    """Pick ``{tensor name: extremes}`` out of the outputs of a graph made by `with_extremes`."""
    found = {}
    for output, value in outputs.items():
        if output.endswith(_LARGEST_SUFFIX):
            name = output.removesuffix(_LARGEST_SUFFIX)
            used, lost = float(outputs[name + _USED_SUFFIX]), float(outputs[name + _LOST_SUFFIX])
            largest = float(value) if np.isfinite(value) else np.inf
            found[name] = Extremes(largest=largest, underflow=lost / used if used else 0.0)
    return found


def out_of_range(model: onnx.ModelProto, extremes: Mapping[str, Extremes], precision: Precision) -> dict[str, str]:
    """Return the nodes that must stay in fp32, each with the reason.

    A node stays when a tensor that it reads or writes exceeds half of the type's range or loses more than
    `MAX_UNDERFLOW` of its values, or a weight exceeds the whole range.

    Args:
        model: The fp32 graph.
        extremes: What was seen of each tensor.
        precision: The target.
    """
    limit = _LARGEST[precision]
    unfit = {}
    for name, seen in extremes.items():
        if not seen.largest <= limit / _HEADROOM:
            unfit[name] = f"{name} reaches {seen.largest:.3g}, half of the range is {limit / _HEADROOM:.3g}"
        elif seen.underflow > MAX_UNDERFLOW:
            unfit[name] = f"{seen.underflow:.1%} of {name} would become zero"
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor) if tensor.data_type == TensorProto.FLOAT else np.empty(0)
        largest = float(np.abs(weights).max(initial=0))
        if not largest <= limit:
            unfit[tensor.name] = f"weights {tensor.name} reach {largest:.3g}, the range is {limit:.3g}"
    reasons = {}
    for node in model.graph.node:
        found = [unfit[name] for name in (*node.input, *node.output) if name in unfit]
        if found and not node.name.startswith(CONFIDENCE):  # which is in fp32 anyway
            reasons[node.name] = found[0]
    return reasons


def _measure(name: str) -> list[onnx.NodeProto]:
    """Return the nodes that write the three scalars of one tensor."""
    magnitude, used, lost = f"{name}/magnitude", f"{name}/nonzero", f"{name}/vanishing"
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Abs", [name], magnitude, {}),
        ("ReduceMax", [magnitude], name + _LARGEST_SUFFIX, {"keepdims": 0}),
        ("Greater", [magnitude, "extremes/zero"], used, {}),
        ("LessOrEqual", [magnitude, "extremes/smallest"], f"{lost}/small", {}),
        ("And", [f"{lost}/small", used], lost, {}),
    ]
    for mark, suffix in ((used, _USED_SUFFIX), (lost, _LOST_SUFFIX)):
        steps.append(("Cast", [mark], f"{mark}/float", {"to": TensorProto.FLOAT}))
        steps.append(("ReduceMean", [f"{mark}/float"], name + suffix, {"keepdims": 0}))
    return [helper.make_node(op, inputs, [output], name=output, **given) for op, inputs, output, given in steps]
