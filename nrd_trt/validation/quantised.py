"""int8 scales of activations against what PyTorch computes there: clipped, or wasted. onnx and NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nrd_trt.graph.constants import Constants
from nrd_trt.graph.quantize import LARGEST
from nrd_trt.validation.stages import Finding

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

_STEPS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of a file's scale that are tried."""
_CLEARLY_WORSE = 3.0
"""How many times the error of the best of them a scale leaves. Four times the right scale leaves four times its error
at most, as rounding grows with it."""
_CLIPPED, _BEYOND = 0.03, 1.9
"""Share of the values that is clipped, and times of the range that they reach, from where a scale is too small. Ranges
of other images clip as well: those of three training frames up to 2.8 % of two frames of CamVid's validation drive."""
_FEW_LEVELS = LARGEST / 3


@dataclass(frozen=True, kw_only=True)
class _Use:
    """What a scale does to the activations of one image."""

    reach: float
    clipped: float
    errors: tuple[float, ...]


def find_in_scales(
    file: onnx.ModelProto, model: Segmentor, image: np.ndarray, stages: Mapping[str, str]
) -> Iterator[Finding]:
    """Yield the inputs of int8 convolutions whose scale is clearly too small or too large for PyTorch's activations.

    Args:
        file: The bundle's ONNX file.
        model: The checkpoint's network.
        image: ``(h, w, 3) uint8`` RGB at the engine's size.
        stages: Stage by the name of a node.
    """
    from nrd_trt.model.stages import visit_conv_inputs

    scales = input_scales(file)
    uses: dict[str, _Use] = {}

    def visit(name: str, values: np.ndarray) -> None:
        if name in scales:
            uses[name] = _use(values, scales[name])

    visit_conv_inputs(model, image, visit)
    found: dict[tuple[str, str], list[str]] = {}
    for name, use in uses.items():
        if said := _describe(use, scales[name]):
            found.setdefault((stages.get(f"{name}/Conv", "c4"), said), []).append(name)
    for (stage, said), names in found.items():
        readers = f"`{names[0]}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        yield Finding(stage=stage, text=f"the int8 scale of what {readers} reads is {said}")


def input_scales(file: onnx.ModelProto) -> dict[str, float]:
    """Return the scale of the int8 input of each convolution that has one."""
    constants, found = Constants(file), {}
    for node in file.graph.node:
        before = constants.made_by.get(node.input[0]) if node.op_type == "Conv" else None
        if before is not None and before.op_type == "DequantizeLinear":
            scale = constants.read(before.input[1])
            if scale is not None and scale.values.size == 1:
                found[node.name.removesuffix("/Conv")] = float(scale.values.ravel()[0])
    return found


def _use(values: np.ndarray, scale: float) -> _Use:
    size = np.abs(values)
    errors = []
    for step in _STEPS:
        rounded = np.clip(np.rint(values / (step * scale)), -LARGEST, LARGEST) * (step * scale)
        errors.append(float(np.sqrt(((rounded - values) ** 2).mean())))
    return _Use(reach=float(size.max()), clipped=float((size > (LARGEST + 0.5) * scale).mean()), errors=tuple(errors))


def _describe(use: _Use, scale: float) -> str | None:
    own, best = use.errors[_STEPS.index(1.0)], min(use.errors)
    if not use.reach or own < _CLEARLY_WORSE * best:
        return None
    better = _STEPS[use.errors.index(best)]
    limits = f"±{LARGEST * scale:.3g}, PyTorch's values reach ±{use.reach:.3g}"
    if better > 1 and use.clipped > _CLIPPED and use.reach > _BEYOND * LARGEST * scale:
        return f"too small: {use.clipped:.2%} of the values are clipped ({limits})"
    levels = use.reach / scale
    if better < 1 and levels < _FEW_LEVELS:
        return f"too large: {levels:.0f} of {LARGEST} levels are used ({limits})"
    return None
