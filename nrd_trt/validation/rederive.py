"""A bundle's file made anew from its checkpoint: what a sound file of its form and precision computes.

Ranges for 8 bits are measured here by code of its own. A calibration that is wrong everywhere would be just as wrong in
a file that it made anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.graph.formats import INT8, NumberFormat
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.graph.precision import to_precision, to_quantized
from nrd_trt.graph.quantize import plan_quantization
from nrd_trt.graph.tensors import copy_model
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import Precision

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

_PICKED = "picked/"
_VALUES = 20_000
"""About so many values of a tensor are picked per image: the step that loses least changes by under 1 % with more."""
_CANDIDATES = np.linspace(0.1, 1.0, 46)
"""Ranges that are tried, as shares of the largest magnitude."""


def rederive_full(model: Segmentor, graph: GraphFacts) -> onnx.ModelProto:
    """Export a checkpoint in fp32 again, in the form that a file records, with every output of that form.

    Args:
        model: The checkpoint, in evaluation mode.
        graph: Facts of the file whose form is wanted.

    Raises:
        ConfigError: The file's form is not one of this network's.
        ExportError: The graph is not valid.
    """
    from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx

    form = ExportOptions(
        shape=graph.shape,
        input_form=graph.input_form,
        mask_encoding=graph.mask_encoding,
        confidence="confidence" in graph.outputs,
    )
    return export_onnx(model, form, checkpoint_sha256=graph.checkpoint_sha256)


def other_kind(model: Segmentor, graph: GraphFacts) -> str | None:
    """Say that a checkpoint and a file are of different encoder, head or decode, or None where they are not."""
    config = model.config
    got = (config.encoder, config.head, config.decode if config.is_nrd else None)
    expected = (graph.encoder, graph.head, graph.decode)
    if got == expected:
        return None
    listed = [" ".join(map(str, kind)) for kind in (expected, got)]
    return f"expected a checkpoint of the bundle's kind ({listed[0]}), got {listed[1]}"


def sound_file(
    full: onnx.ModelProto,
    precision: Precision,
    int8_layers: Iterable[str],
    kept_fp32: Set[str],
    images: Sequence[np.ndarray],
    threads: int | None = None,
) -> onnx.ModelProto:
    """Derive a file in a precision, for int8 with ranges that lose least on these very images.

    Args:
        full: An fp32 file of this toolkit.
        precision: Precision of the result.
        int8_layers: Layers that compute in int8; of other precisions they are not read.
        kept_fp32: Nodes that compute in fp32.
        images: ``(h, w, 3) uint8`` of a size that the file accepts.
        threads: CPU threads of ONNX Runtime.

    Raises:
        ConfigError: The file has no layer of one of these names.
        CalibrationError: An activation is not finite.
    """
    if precision != "int8":
        return to_precision(full, precision, kept_fp32)
    plan = plan_quantization(full, int8_layers)
    return to_quantized(full, plan, measure_anew(full, plan.tensors, images, threads), kept_fp32)


def measure_anew(
    full: onnx.ModelProto, tensors: Iterable[str], images: Iterable[np.ndarray], threads: int | None = None
) -> dict[str, float]:
    """Return the range of each tensor that loses least in int8 on these images."""
    return {name: least_lossy(values) for name, values in pick_magnitudes(full, tensors, images, threads).items()}


def pick_magnitudes(
    full: onnx.ModelProto, tensors: Iterable[str], images: Iterable[np.ndarray], threads: int | None = None
) -> dict[str, np.ndarray]:
    """Return ``(N,)`` magnitudes of each tensor: of every image about `_VALUES`, evenly spaced, and the largest."""
    wanted, facts = list(tensors), read_facts(full)
    picked: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    with OrtRunner(_with_picked(full, wanted), threads=threads) as runner:
        for image in images:
            outputs = runner.infer(image_feed(image, facts))
            for name, values in picked.items():
                values.append(np.abs(outputs[_PICKED + name]))
    return {name: np.concatenate(values) for name, values in picked.items()}


def least_lossy(magnitudes: np.ndarray, numbers: NumberFormat = INT8) -> float:
    """Return the range that represents magnitudes ``(N,)`` in 8-bit numbers with the least loss."""
    largest = float(magnitudes.max(initial=0.0))
    if not np.isfinite(largest) or largest == 0.0:
        return largest
    limits = [float(share) * largest for share in _CANDIDATES]
    return min(limits, key=lambda limit: loss(magnitudes, limit, numbers=numbers))


def loss(
    magnitudes: np.ndarray, limit: float, counts: np.ndarray | None = None, *, numbers: NumberFormat = INT8
) -> float:
    """Return the root mean square of what rounding changes of magnitudes, each counted so often.

    Args:
        magnitudes: ``(N,)``.
        limit: The range.
        counts: ``(N,)``; None counts each once.
        numbers: What they are rounded to.
    """
    step = limit / numbers.largest
    represented = numbers.nearest(magnitudes / step) * step
    return float(np.sqrt(np.average(np.square(represented - magnitudes), weights=counts)))


def _with_picked(full: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return the graph with one more output ``(values,)`` per tensor: every n-th value, and the largest twice.

    In reverse order: ONNX Runtime then picks of each tensor as soon as it is there, and frees it.
    """
    result = copy_model(full)
    bounds = {"flat": [-1], "start": [0], "end": [np.iinfo(np.int64).max], "axis": [0]}
    for name, value in (*bounds.items(), ("wanted", [_VALUES]), ("two", [2]), ("one", [1])):
        result.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), _PICKED + name))
    for tensor in reversed(tensors):
        result.graph.node.extend(_pick(tensor))
        result.graph.output.append(helper.make_tensor_value_info(_PICKED + tensor, TensorProto.FLOAT, [None]))
    return result


def _pick(tensor: str) -> list[onnx.NodeProto]:
    """Return the nodes that pick the values of one tensor; the step is odd, as most rows have an even length."""
    place = f"{_PICKED}{tensor}/"
    steps = [
        ("Reshape", [tensor, f"{_PICKED}flat"], "line"),
        ("Size", [tensor], "size"),
        ("Div", [f"{place}size", f"{_PICKED}wanted"], "times"),
        ("Div", [f"{place}times", f"{_PICKED}two"], "half"),
        ("Mul", [f"{place}half", f"{_PICKED}two"], "even"),
        ("Add", [f"{place}even", f"{_PICKED}one"], "step"),
        ("Slice", [f"{place}line", *(f"{_PICKED}{name}" for name in ("start", "end", "axis")), f"{place}step"], "some"),
        ("ReduceMax", [f"{place}line"], "high"),
        ("ReduceMin", [f"{place}line"], "low"),
    ]
    nodes = [helper.make_node(kind, inputs, [place + output], name=place + output) for kind, inputs, output in steps]
    parts = [f"{place}{part}" for part in ("some", "high", "low")]
    return [*nodes, helper.make_node("Concat", parts, [_PICKED + tensor], name=_PICKED + tensor, axis=0)]
