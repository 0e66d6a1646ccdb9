"""Which activations need a range: those that the Q/DQ pass puts pairs on. onnx only."""

from __future__ import annotations

import onnx

from nrd_trt.calibration.recipes import Recipe
from nrd_trt.graph.quantize import DEFAULT_EXCLUDE, choose_layers, plan_quantization


def tensors_to_calibrate(model: onnx.ModelProto, recipe: Recipe) -> tuple[str, ...]:
    """Return the tensors in the order of the graph.

    Args:
        model: The fp32 graph.
        recipe: Its `include` and `exclude` choose layers by name; what stays out by default stays out.

    Raises:
        ConfigError: An expression matches no layer, or no layer is left.
    """
    layers = choose_layers(model, include=recipe.include, exclude=(*DEFAULT_EXCLUDE, *recipe.exclude))
    return tuple(plan_quantization(model, layers).tensors)
