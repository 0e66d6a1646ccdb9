"""From the fp32 file to another precision, with the ranges measured on images. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import onnx

from nrd_trt.errors import ConfigError
from nrd_trt.graph.extremes import Extremes, out_of_range, read_extremes, with_extremes
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.quantize import DEFAULT_EXCLUDE, choose_layers, insert_qdq, layers_in_int8, plan_quantization
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import Precision

Ranges = Mapping[str, float]
"""Largest magnitude to represent in int8, per tensor."""

Feeds = Callable[[onnx.ModelProto], Iterable[Mapping[str, np.ndarray]]]
"""A calibration stream: the feeds of a file's input."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What ranges are measured on, besides the images to validate on.

    Attributes:
        feeds: The images as feeds of a file's input; None where only ranges measured before are given.
        sha256: Of the images, for the record; None before they were read.
        words: Options that ask for this on the command line, for the record; places without their folders.
    """

    feeds: Feeds | None
    sha256: Callable[[], str | None] = lambda: None
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How an int8 file is made.

    Attributes:
        measure: Calibrates an fp32 file: gives the ranges of the tensors named.
        include: Regular expressions of layers, see `nrd_trt.graph.quantize.choose_layers`.
        exclude: Likewise.
        layers: The very layers, in place of the expressions.
        external: Another quantizer, in place of all that: takes the fp32 file, returns it with Q/DQ pairs.
        words: Options that ask for this on the command line besides those of the calibration, for the record.
    """

    measure: Callable[[onnx.ModelProto, Sequence[str]], Ranges]
    include: Sequence[str] = ()
    exclude: Sequence[str] = DEFAULT_EXCLUDE
    layers: tuple[str, ...] | None = None
    external: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Typed:
    """A file in the precision asked for.

    Attributes:
        model: The file.
        kept_fp32: Nodes kept in fp32, each with the reason.
        int8_layers: Layers that compute in int8.
    """

    model: onnx.ModelProto
    kept_fp32: Mapping[str, str] = field(default_factory=dict)
    int8_layers: tuple[str, ...] = ()


def derive_precision(
    full: onnx.ModelProto,
    precision: Precision,
    images: Iterable[np.ndarray],
    *,
    quantization: Quantization | None = None,
    calibration: Calibration | None = None,
    threads: int | None = None,
) -> Typed:
    """Type an fp32 file in `precision`, keeping in fp32 what the images show to leave 16 bits.

    Args:
        full: The fp32 file.
        precision: Of the result.
        images: ``(h, w, 3) uint8`` of a size that the file accepts.
        quantization: How int8 is made; for that precision only.
        calibration: More images that the extremes of 16-bit tensors are measured on.
        threads: CPU threads of ONNX Runtime.

    Raises:
        ConfigError: int8 without a quantization, or the other way round.
        CalibrationError: The calibration cannot be done.
    """
    if (precision == "int8") != (quantization is not None):
        raise ConfigError("--precision int8 and --calibration go together: int8 needs images to take its ranges from.")
    if precision == "fp32":
        return Typed(model=full)
    kept = nodes_to_keep(full, precision, images, calibration, threads=threads)
    return apply_precision(full, precision, kept, quantization)


def nodes_to_keep(
    full: onnx.ModelProto,
    precision: Precision,
    images: Iterable[np.ndarray],
    calibration: Calibration | None = None,
    *,
    threads: int | None = None,
) -> dict[str, str]:
    """Return the nodes of an fp32 file that leave 16 bits on the images, each with the reason; see `derive_precision`.

    They are the same for int8 and fp16: what is not int8 is fp16.
    """
    feeds = calibration.feeds(full) if calibration is not None and calibration.feeds is not None else ()
    return out_of_range(full, measure_extremes(full, precision, images, feeds, threads=threads), precision)


def apply_precision(
    full: onnx.ModelProto, precision: Precision, kept: Mapping[str, str], quantization: Quantization | None = None
) -> Typed:
    """Type an fp32 file in a 16-bit precision, or in int8 with a quantization; the nodes to keep stay in fp32."""
    source = full if quantization is None else _quantized(full, quantization)
    typed = to_precision(source, precision, kept.keys())
    return Typed(model=typed, kept_fp32=kept, int8_layers=layers_in_int8(typed))


def _quantized(full: onnx.ModelProto, quantization: Quantization) -> onnx.ModelProto:
    if quantization.external is not None:
        return quantization.external(full)
    layers = quantization.layers
    if layers is None:
        layers = choose_layers(full, include=quantization.include, exclude=quantization.exclude)
    plan = plan_quantization(full, layers)
    return insert_qdq(full, plan, quantization.measure(full, tuple(plan.tensors)))


def measure_extremes(
    full: onnx.ModelProto,
    precision: Precision,
    images: Iterable[np.ndarray],
    feeds: Iterable[Mapping[str, np.ndarray]] = (),
    *,
    threads: int | None = None,
) -> dict[str, Extremes]:
    """Run images and feeds through an fp32 file and return what was seen of every tensor."""
    extremes: dict[str, Extremes] = {}
    with OrtRunner(with_extremes(full, precision), threads=threads) as runner:
        facts = read_facts(full)
        for feed in chain((image_feed(image, facts) for image in images), feeds):
            for name, seen in read_extremes(runner.infer(feed)).items():
                extremes[name] = seen.merged(extremes[name]) if name in extremes else seen
    return extremes
