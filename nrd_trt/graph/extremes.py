"""Pass: report the largest magnitude of every float tensor, and what it means for 16 bits. onnx and NumPy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.graph.tensors import copy_model, element_types, float_outputs
from nrd_trt.specs import Precision

_SUFFIX = "/extreme"
# Activations of images not seen here may be larger than the largest seen; half of the range is left to them.
_HEADROOM = 2.0
_LARGEST = {"fp32": float(np.finfo(np.float32).max), "fp16": 65504.0, "bf16": 3.38e38}


def with_extremes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with one more scalar output ``NAME/extreme`` = max |x| per float32 tensor.

    Scalars, so that the memory of a run stays that of a plain run.
    """
    result = copy_model(model)
    for _, name in float_outputs(model, element_types(model)):
        magnitude = f"{name}/magnitude"
        result.graph.node.append(helper.make_node("Abs", [name], [magnitude], name=magnitude))
        result.graph.node.append(
            helper.make_node("ReduceMax", [magnitude], [name + _SUFFIX], name=name + _SUFFIX, keepdims=0)
        )
        result.graph.output.append(helper.make_tensor_value_info(name + _SUFFIX, TensorProto.FLOAT, []))
    return result


def read_extremes(outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Pick ``{tensor name: max |x|}`` out of the outputs of a graph made by `with_extremes`."""
    return {name.removesuffix(_SUFFIX): float(value) for name, value in outputs.items() if name.endswith(_SUFFIX)}


def out_of_range(model: onnx.ModelProto, extremes: Mapping[str, float], precision: Precision) -> frozenset[str]:
    """Return the names of the nodes that must stay in fp32.

    A node stays when a tensor that it reads or writes exceeds half of the type's range, or a weight its whole range.

    Args:
        model: The fp32 graph.
        extremes: Largest magnitude per tensor; NaN counts as out of range.
        precision: The target.
    """
    limit = _LARGEST[precision] / _HEADROOM
    too_large = {name for name, value in extremes.items() if not value <= limit}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            weights = numpy_helper.to_array(tensor)
            if weights.size and not np.abs(weights).max() <= _LARGEST[precision]:
                too_large.add(tensor.name)
    return frozenset(node.name for node in model.graph.node if not too_large.isdisjoint([*node.input, *node.output]))
