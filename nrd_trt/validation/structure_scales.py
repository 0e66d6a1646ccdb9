"""Whether the scales of a file's int8 activations fit what the activations are, measured anew in PyTorch. NumPy only.

Calibration's own code takes no part: a fault there would be repeated. The magnitudes that PyTorch's operations give on
a few images are counted, and a scale is a fault where its squared error is far above that of the best one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nrd_trt.data.preprocessing import normalise
from nrd_trt.graph.network import FileNetwork, QuantizedTensor
from nrd_trt.graph.quantize import LARGEST
from nrd_trt.program import Program, paired_operations

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

MAX_LOSS = {"wide": 10.0, "narrow": 25.0}
"""Largest squared error of a scale over that of the best one on the same images, for one above the best and for others.

Measured on MobileNetV2 at 64x96 and R18 at 128x160, all recipes, calibrated on 8 drawn scenes or CamVid frames: at most
2.04 and 12.2. A quarter of a sound scale loses 78 or more, four times it above 10 in four of five tensors.
"""
_CANDIDATES = np.geomspace(1 / 64, 1, 97)


def scale_faults(
    network: FileNetwork, expected: Program, model: Segmentor, images: Sequence[np.ndarray]
) -> Iterator[str]:
    """Yield the activations whose scale loses far more than the best one would.

    Args:
        network: The file's.
        expected: The checkpoint's, as `nrd_trt.model.program` has it.
        model: The checkpoint.
        images: ``(h, w, 3) uint8`` RGB, of a size that the network takes.
    """
    for tensor, loss, best in scale_losses(network, expected, model, images):
        limit = MAX_LOSS["wide" if tensor.scale > best else "narrow"]
        if not loss <= limit:
            yield (
                f"`{tensor.name}`: activation scale {tensor.scale:.4g} loses {loss:.3g} times the squared error of "
                f"{best:.4g}, the best on {len(images)} images (at most {limit:g})"
            )


def scale_losses(
    network: FileNetwork, expected: Program, model: Segmentor, images: Sequence[np.ndarray]
) -> Iterator[tuple[QuantizedTensor, float, float]]:
    """Yield each activation in int8 with its squared error over the least possible, and the scale of the least."""
    from nrd_trt.model.program import measure_operations

    places = {
        index: expected.operations[theirs].place for theirs, index in paired_operations(network.program, expected)
    }
    wanted = {}
    for tensor in network.quantized:
        place = "pixels" if tensor.operand == "pixels" else None
        if isinstance(tensor.operand, tuple):
            place = places.get(tensor.operand[0])
        if place:
            wanted[tensor] = place
    pixels = [normalise(image[None], model.info) for image in images]
    measured = measure_operations(model, pixels, set(wanted.values()))
    for tensor, place in wanted.items():
        if place in measured and measured[place][1] > 0 and np.isfinite(tensor.scale):  # others are faults of a pair
            counts, largest = measured[place]
            candidates = _CANDIDATES * largest / LARGEST
            errors = [_squared_error(counts, largest, float(scale)) for scale in candidates]
            least = int(np.argmin(errors))
            loss = _squared_error(counts, largest, tensor.scale) / max(errors[least], 1e-30)
            yield tensor, loss, float(candidates[least])


def _squared_error(counts: np.ndarray, largest: float, scale: float) -> float:
    """Return the squared error of int8 at a scale, over counted magnitudes; the first bin's are taken for zeros."""
    values = (np.arange(len(counts)) + 0.5) * (largest / len(counts))
    rounded = np.minimum(np.rint(values / scale), LARGEST) * scale
    return float((counts[1:] * ((values - rounded) ** 2)[1:]).sum())
