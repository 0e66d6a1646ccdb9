"""From the fp32 file to another precision, with the ranges measured on images. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from nrd_trt.graph.extremes import out_of_range, read_extremes, with_extremes
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.precision import to_precision
from nrd_trt.runtime.mask_runner import MaskRunner
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import Precision


def derive_precision(
    full: onnx.ModelProto, precision: Precision, images: Sequence[np.ndarray], *, threads: int | None = None
) -> tuple[onnx.ModelProto, frozenset[str]]:
    """Type an fp32 file in `precision`, keeping in fp32 what the images show to leave 16 bits.

    Returns:
        The typed file, and the names of the nodes kept for their range.
    """
    if precision == "fp32":
        return full, frozenset()
    extremes: dict[str, float] = {}
    with OrtRunner(with_extremes(full), threads=threads) as runner:
        masks = MaskRunner(runner, read_facts(full))
        for image in images:
            for name, value in read_extremes(runner.infer(masks.feed(image))).items():
                extremes[name] = max(extremes.get(name, 0.0), np.inf if np.isnan(value) else value)
    kept = out_of_range(full, extremes, precision)
    return to_precision(full, precision, kept), kept
