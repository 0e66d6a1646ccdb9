"""From the fp32 file to another precision, with the ranges measured on images. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np
import onnx

from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.errors import ConfigError
from nrd_trt.graph.extremes import Extremes, out_of_range, read_extremes, with_extremes
from nrd_trt.graph.metadata import TypeChoices, read_facts, write_choices
from nrd_trt.graph.precision import beside_quantized, to_precision
from nrd_trt.graph.quantize import quantized_layers
from nrd_trt.progress import bar
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import QUANTIZED, Precision


def derive_precision(
    full: onnx.ModelProto,
    precision: Precision,
    images: Iterable[np.ndarray],
    *,
    calibrator: Calibrator | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> onnx.ModelProto:
    """Type an fp32 file in `precision`, keeping in fp32 what the images show to leave 16 bits.

    Args:
        full: The fp32 file.
        precision: Precision of the result.
        images: ``(h, w, 3) uint8`` of a size that the file accepts.
        calibrator: Makes int8 and fp8, and has more images that the extremes of 16-bit tensors are measured on.
        threads: CPU threads of ONNX Runtime.
        progress: Show a bar on stderr.

    Returns:
        The file, which also tells how its types were chosen (`nrd_trt.graph.metadata.read_choices`).

    Raises:
        ConfigError: int8 or fp8 without a calibrator.
        CalibrationError: The calibration cannot be done.
    """
    if precision == "fp32":
        return full
    kept = nodes_to_keep(full, precision, images, calibrator, threads=threads, progress=progress)
    return apply_precision(full, precision, kept, calibrator)


def nodes_to_keep(
    full: onnx.ModelProto,
    precision: Precision,
    images: Iterable[np.ndarray],
    calibrator: Calibrator | None = None,
    *,
    threads: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Return the nodes of an fp32 file that leave 16 bits on the images, each with the reason; see `derive_precision`.

    They are the same for int8, fp8 and fp16: what is not quantised is fp16. Files for a CPU have nothing in 16 bits.
    """
    if calibrator is not None and calibrator.target == "cpu":
        return {}
    feeds = calibrator.feeds(full) if calibrator is not None and calibrator.has_images else ()
    extremes: dict[str, Extremes] = {}
    with OrtRunner(with_extremes(full, precision), threads=threads) as runner:
        facts = read_facts(full)
        of_images = (image_feed(image, facts) for image in images)
        for feed in bar(chain(of_images, feeds), desc="measuring activations", unit="feed", show=progress):
            for name, seen in read_extremes(runner.infer(feed)).items():
                extremes[name] = seen.merged(extremes[name]) if name in extremes else seen
    return out_of_range(full, extremes, precision)


def apply_precision(
    full: onnx.ModelProto, precision: Precision, kept: Mapping[str, str], calibrator: Calibrator | None = None
) -> onnx.ModelProto:
    """Type an fp32 file in a 16-bit precision, or in an 8-bit one by a calibrator; the nodes to keep stay in fp32.

    The file tells these choices (`nrd_trt.graph.metadata.read_choices`).

    Raises:
        ConfigError: int8 or fp8 without a calibrator that quantises to it.
        CalibrationError: The calibration cannot be done.
    """
    if precision in QUANTIZED and (calibrator is None or calibrator.precision != precision):
        raise ConfigError(f"precision={precision!r}: give calibration= images like those of deployment for its ranges.")
    by = calibrator if precision in QUANTIZED else None
    if by is None:
        typed = to_precision(full, precision, kept.keys())
    else:
        typed = beside_quantized(by.quantize(full), by.precision, by.target, kept.keys())
    layers = quantized_layers(typed)
    choices = TypeChoices(
        kept_fp32=kept,
        int8_layers=layers if precision == "int8" else (),
        fp8_layers=layers if precision == "fp8" else (),
        ranges=by.used_ranges(full) if by else None,
        quantizer=by.quantizer if by else None,
        target=by.target if by else "gpu",
    )
    write_choices(typed, choices)
    return typed
