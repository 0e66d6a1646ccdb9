"""Whether the scales of quantised activations fit what the activations are, measured anew in PyTorch. NumPy only.

Calibration's own code takes no part: a fault there would be repeated. The magnitudes that PyTorch's operations give on
a few images are counted, and a scale is a fault where its squared error is far above that of the best one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nrd_trt.data.preprocessing import normalise
from nrd_trt.graph.network import FileNetwork, QuantizedTensor
from nrd_trt.program import Program, paired_operations
from nrd_trt.validation.rederive import loss

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

MAX_LOSS = {"wide": 10.0, "narrow": 25.0}
"""Largest squared error of a scale over that of the best one on the same images, for one above the best and for others.

Measured on MobileNetV2 at 64x96 and R18 at 128x160, all recipes, calibrated on 8 drawn scenes or CamVid frames: at most
2.04 and 12.2. A quarter of a sound scale loses 78 or more, four times it above 10 in four of five tensors.
"""
_CLEARLY_WORSE = 9.0
"""Loss from which a scale may be a cause. Four times the right scale loses sixteen times as much at most."""
_CLIPPED, _BEYOND = 0.03, 1.9
"""Share of the values that is clipped, and times of the range that they reach, from where a scale is too small. Ranges
of other images clip as well: those of three training frames up to 2.8 % of two frames of CamVid's validation drive."""
_FEW_LEVELS = 1 / 3
_CANDIDATES = np.geomspace(1 / 64, 1, 97)


@dataclass(frozen=True, kw_only=True)
class ScaleUse:
    """What a scale does to its activation.

    Attributes:
        tensor: The activation.
        loss: Squared error, as a multiple of the least possible.
        best: Scale of the least.
        clipped: Share of the values that are beyond the scale's range.
        reach: Largest magnitude.
    """

    tensor: QuantizedTensor
    loss: float
    best: float
    clipped: float
    reach: float

    def fault(self, images: int) -> str | None:
        """Say that the scale loses far more than the best one would; None where it does not."""
        scale, limit = self.tensor.scale, MAX_LOSS["wide" if self.tensor.scale > self.best else "narrow"]
        if self.loss <= limit:
            return None
        return (
            f"`{self.tensor.name}`: activation scale {scale:.4g} loses {self.loss:.3g} times the squared error of "
            f"{self.best:.4g}, the best on {images} images (at most {limit:g})"
        )

    def cause(self) -> str | None:
        """Say that the scale is clearly too small or too large; None where it is not."""
        scale, steps, levels = self.tensor.scale, self.reach / self.tensor.scale, self.tensor.numbers.largest
        limits = f"±{self.tensor.range:.3g}, PyTorch's values reach ±{self.reach:.3g}"
        if self.loss < _CLEARLY_WORSE:
            return None
        if scale < self.best and self.clipped > _CLIPPED and steps > _BEYOND * levels:
            return f"too small: {self.clipped:.2%} of the values are clipped ({limits})"
        if scale > self.best and steps < _FEW_LEVELS * levels:
            return f"too large: {steps:.0f} of {levels} levels are used ({limits})"
        return None


def scale_uses(
    network: FileNetwork, expected: Program, model: Segmentor, images: Sequence[np.ndarray]
) -> Iterator[ScaleUse]:
    """Yield what the scale of each quantised activation does to what PyTorch computes there.

    Args:
        network: The file's.
        expected: The checkpoint's, as `nrd_trt.model.program` has it.
        model: The checkpoint.
        images: ``(h, w, 3) uint8`` RGB, of a size that the network takes.
    """
    from nrd_trt.model.program import measure_operations

    places = {
        index: expected.operations[theirs].place for theirs, index in paired_operations(network.program, expected)
    }
    wanted = {}
    for tensor in network.quantized:
        place = "pixels" if tensor.operand == "pixels" else None
        if isinstance(tensor.operand, tuple):
            place = places.get(tensor.operand[0])
        if place and np.isfinite(tensor.scale):  # others are faults of a pair
            wanted[tensor] = place
    pixels = [normalise(image[None], model.info) for image in images]
    measured = measure_operations(model, pixels, set(wanted.values()))
    for tensor, place in wanted.items():
        if place in measured and measured[place][1] > 0:
            yield _use(tensor, *measured[place])


def _use(tensor: QuantizedTensor, counts: np.ndarray, largest: float) -> ScaleUse:
    values = (np.arange(len(counts)) + 0.5) * (largest / len(counts))
    used = values[1:], counts[1:]  # the first bin's are taken for zeros
    levels = tensor.numbers.largest

    def squared_error(limit: float) -> float:
        return loss(used[0], limit, used[1], numbers=tensor.numbers) ** 2

    candidates = _CANDIDATES * largest
    errors = [squared_error(limit) for limit in candidates]
    least = int(np.argmin(errors))
    return ScaleUse(
        tensor=tensor,
        loss=squared_error(tensor.range) / max(errors[least], 1e-30),
        best=float(candidates[least]) / levels,
        clipped=float(counts[values > (levels + 0.5) * tensor.scale].sum() / counts.sum()),
        reach=largest,
    )
