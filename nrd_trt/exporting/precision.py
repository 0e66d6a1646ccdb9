"""From the fp32 file to another precision, with the ranges measured on images. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import onnx

from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.errors import ConfigError
from nrd_trt.graph.extremes import Extremes, out_of_range, read_extremes, with_extremes
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.quantize import layers_in_int8
from nrd_trt.progress import bar
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import Precision, Quantizer


@dataclass(frozen=True, kw_only=True)
class Typed:
    """A file in the precision asked for.

    Attributes:
        model: The file.
        kept_fp32: Nodes kept in fp32, each with the reason.
        int8_layers: Layers that compute in int8.
        ranges: Largest magnitude that int8 represents of each activation; None where there is none, or it is not known.
        quantizer: What placed the Q/DQ pairs; None likewise.
    """

    model: onnx.ModelProto
    kept_fp32: Mapping[str, str] = field(default_factory=dict)
    int8_layers: tuple[str, ...] = ()
    ranges: Mapping[str, float] | None = None
    quantizer: Quantizer | None = None


def derive_precision(
    full: onnx.ModelProto,
    precision: Precision,
    images: Iterable[np.ndarray],
    *,
    calibrator: Calibrator | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Typed:
    """Type an fp32 file in `precision`, keeping in fp32 what the images show to leave 16 bits.

    Args:
        full: The fp32 file.
        precision: Precision of the result.
        images: ``(h, w, 3) uint8`` of a size that the file accepts.
        calibrator: Makes int8, and has more images that the extremes of 16-bit tensors are measured on.
        threads: CPU threads of ONNX Runtime.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: int8 without a calibrator.
        CalibrationError: The calibration cannot be done.
    """
    if precision == "int8" and calibrator is None:
        raise ConfigError("precision='int8': give calibration= images like those of deployment for its ranges.")
    if precision == "fp32":
        return Typed(model=full)
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

    They are the same for int8 and fp16: what is not int8 is fp16.
    """
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
) -> Typed:
    """Type an fp32 file in a 16-bit precision, or in int8 by a calibrator; the nodes to keep stay in fp32."""
    if precision != "int8" or calibrator is None:
        return Typed(model=to_precision(full, precision, kept.keys()), kept_fp32=kept)
    typed = to_precision(calibrator.quantize(full), precision, kept.keys())
    return Typed(
        model=typed,
        kept_fp32=kept,
        int8_layers=layers_in_int8(typed),
        ranges=calibrator.used_ranges(full),
        quantizer=calibrator.quantizer,
    )
