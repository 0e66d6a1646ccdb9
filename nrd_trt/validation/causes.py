"""Why a file and its checkpoint part: what is wrong in the file itself, then what the tensors of each stage say.

What stands in the file is true whatever the tensors do. Tensors are judged stage by stage, each against what PyTorch
makes of the inputs that the file has there, so that a fault before it makes no cause, and only where nothing in the
file tells why already. The right reading is tried first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nrd_trt.decode.function import CONFIDENCE_OP, LOGITS_OP, MASK_OP
from nrd_trt.graph.decode_nodes import coordinate_tables
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.network import file_network
from nrd_trt.graph.outputs import PREFIX, with_taps
from nrd_trt.graph.program import layer_name
from nrd_trt.graph.tensors import needed_nodes
from nrd_trt.specs import QUANTIZED, DecodeSpec
from nrd_trt.validation.drawing import describe_drawing
from nrd_trt.validation.hints import describe_channels, describe_pixels, describe_tables
from nrd_trt.validation.stages import CLEARLY, STAGES, Finding, StageMeter, StageTolerance
from nrd_trt.validation.structure import executed_program, layer_differences
from nrd_trt.validation.structure_ends import enlargement_differences, preprocessing_differences
from nrd_trt.validation.structure_scales import scale_uses

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

DECODE = {
    "fp32": StageTolerance(tensor=1e-4, channel=1e-3),
    "fp16": StageTolerance(tensor=0.0025, channel=0.0125),
    "bf16": StageTolerance(tensor=0.02, channel=0.1),
    "int8": StageTolerance(tensor=0.0025, channel=0.0125),
    "fp8": StageTolerance(tensor=0.0025, channel=0.0125),
}
"""The decode computes in fp32 in every precision; its logits are rounded once where they are stored in 16 bits."""
_BEFORE_DECODE = ("c1", "c4", "theta", "guidance")
_SHOWN = 4
"""Differences of layers of one stage that are told."""
_EXPLAINED = 0.1
"""Share of a channel's spread that a description of a stage before the decode may leave, at most."""

Tensors = Mapping[str, np.ndarray]


def causes_in_file(file: onnx.ModelProto, model: Segmentor, want: Tensors) -> list[Finding]:
    """Return what is otherwise in a file than in its checkpoint, as the structural proof tells it, by stage.

    Args:
        file: The bundle's ONNX file.
        model: The checkpoint, in evaluation mode.
        want: PyTorch's stages of an image, for its tables of coordinates.
    """
    found, network, expected = [], file_network(file), executed_program(model, read_facts(file).shape.opt_hw)[0]
    if network is not None:
        lines = preprocessing_differences(file, network, model, read_facts(file))
        found += [Finding(stage="preprocessing", text=line.removeprefix("preprocessing: ")) for line in lines]
    if network is not None and expected.operations:
        found += _by_stage(layer_differences(network, expected, model), file, model)
    found += [Finding(stage="mask", text=line) for line in enlargement_differences(file)]
    if "x_table" in want:
        said = describe_tables((want["x_table"], want["y_table"]), coordinate_tables(file))
        found += [Finding(stage="logits", text=text) for text in said]
    return found


def layer_stages(file: onnx.ModelProto) -> dict[str, str]:
    """Return the first stage that each layer of a file is needed for, by the layer's name."""
    nodes = list(with_taps(file).graph.node)
    found: dict[str, str] = {}
    for stage in STAGES[:-1]:
        for node in needed_nodes(nodes, [PREFIX + stage]):
            found.setdefault(layer_name(node.name, node.op_type), stage)
    return found


def _by_stage(lines: Iterable[str], file: onnx.ModelProto, model: Segmentor) -> Iterator[Finding]:
    """Yield what the structural proof says of layers by stage: what it says of many alike once, and not all of many."""
    stages, last = layer_stages(file), "theta" if model.config.is_nrd else "logits"
    alike: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        layer, _, text = line.removeprefix("`").partition("`: ")
        stage = stages.get(layer, "c4" if layer.startswith("backbone") else last)
        alike[stage][text or line].append(layer)
    for stage, said in alike.items():
        told = [_together(layers, text) for text, layers in said.items()]
        if len(told) > _SHOWN:
            told[_SHOWN - 1 :] = [f"{told[_SHOWN - 1]}; and {len(told) - _SHOWN} more differences"]
        yield from (Finding(stage=stage, text=text) for text in told)


def _together(layers: list[str], text: str) -> str:
    """Return what is said of layers; a line that is of none stands alone."""
    if text == layers[0]:
        return text
    return f"`{layers[0]}`{f' and {len(layers) - 1} more' if len(layers) > 1 else ''}: {text}"


def _scales(file: onnx.ModelProto, model: Segmentor, image: np.ndarray, stages: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the activations whose scale in 8 bits is clearly too small or too large for PyTorch's."""
    network = file_network(file)
    if network is None:
        return
    for use in scale_uses(network, executed_program(model, read_facts(file).shape.opt_hw)[0], model, [image]):
        if (said := use.cause()) and use.tensor.readers:
            reader = network.program.operations[use.tensor.readers[0][0]].name
            text = f"the {use.tensor.numbers.name} scale of what `{reader}` reads is {said}"
            yield Finding(stage=stages.get(reader, "c4"), text=text)


def causes_in_data(
    file: onnx.ModelProto,
    model: Segmentor,
    image: np.ndarray,
    want: Tensors,
    got: Tensors,
    known: Sequence[Finding],
    *,
    tolerance: StageTolerance,
    pixels: StageTolerance,
) -> list[Finding]:
    """Return what the tensors of each stage say that nothing in the file tells already.

    Args:
        file: The bundle's ONNX file.
        model: The checkpoint, in evaluation mode.
        image: ``(h, w, 3) uint8`` RGB.
        want: PyTorch's stages of it.
        got: The file's.
        known: What was found in the file.
        tolerance: What the stages from ``c1`` to ``guidance`` may be off.
        pixels: What ``preprocessing`` may be off.
    """
    from nrd_trt.decode.misread import misread_orders
    from nrd_trt.model.stages import predict_stages_from

    graph, stages = read_facts(file), layer_stages(file)
    found = list(_scales(file, model, image, stages)) if graph.precision in QUANTIZED else []
    explained = {finding.stage for finding in (*known, *found)}
    due = {**predict_stages_from(model, got), "preprocessing": want["preprocessing"]}

    def add(stage: str, texts: Iterable[str | None]) -> None:
        found.extend(Finding(stage=stage, text=text) for text in texts if text)

    if (
        "preprocessing" in got
        and "preprocessing" not in explained
        and _score(due["preprocessing"], got["preprocessing"], pixels) > 1
    ):
        add("preprocessing", [describe_pixels(due["preprocessing"], got["preprocessing"])])
    if "c1" in explained or ("c1" in due.keys() & got.keys() and _score(due["c1"], got["c1"], tolerance) > 1):
        explained.add("c4")  # computed from the same pixels, through C1
    for stage in _BEFORE_DECODE if model.config.is_nrd else (*_BEFORE_DECODE, "logits"):
        if stage not in due or stage not in got or stage in explained:
            continue
        rounding = min(_EXPLAINED, tolerance.channel)
        orders = misread_orders(model.config.decode) if stage == "theta" else ()
        add(stage, describe_channels(due[stage], got[stage], tolerance.channel, rounding=rounding, known_orders=orders))
    if model.config.is_nrd and "logits" in due and "logits" in got:
        add("logits", _decode(file, model.config.decode, want, got, DECODE[graph.precision], graph.info.class_names))
    if "mask" in due and "logits" in got:
        add("mask", describe_drawing(got["logits"], got["mask"], graph.info.class_names))
    return found


def _decode(
    file: onnx.ModelProto,
    spec: DecodeSpec,
    want: Tensors,
    got: Tensors,
    tolerance: StageTolerance,
    class_names: Sequence[str],
) -> list[str]:
    """Decode the file's own theta and guidance rightly, then in each wrong way; tell which one gives its logits.

    Coordinates are those of the file: what is wrong with them is told on its own.
    """
    from nrd_trt.decode.misread import decode_arrays, decode_misread

    inputs = got["theta"], got["guidance"], *_tables(file, want), spec
    right = decode_arrays(*inputs)
    wrong = _score(right, got["logits"], tolerance)
    if wrong <= 1:
        return []
    scores: dict[str, float] = {}
    for mistake, logits in decode_misread(*inputs):
        score = _score(logits, got["logits"], tolerance)
        scores[mistake] = min(score, scores.get(mistake, score))
    best, second = sorted(scores, key=lambda mistake: scores[mistake])[:2]
    if scores[best] <= min(1, wrong / CLEARLY) and scores[second] > max(1, CLEARLY * scores[best]):
        return [f"the file decodes as if {best}"]
    return describe_channels(right, got["logits"], tolerance.channel, names=class_names)


def _tables(file: onnx.ModelProto, want: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates that the mask is drawn with in ONNX Runtime, or PyTorch's where the file shows none."""
    found = coordinate_tables(file)
    for operator in (MASK_OP, CONFIDENCE_OP, LOGITS_OP):
        if (place := f"function {operator}") in found:
            return found[place]
    return want["x_table"], want["y_table"]


def _score(want: np.ndarray, got: np.ndarray, tolerance: StageTolerance) -> float:
    """Return the error in tolerances: beyond 1 it is too large."""
    meter = StageMeter(len(want))
    meter.add(want, got)
    figures = meter.figures("", tolerance)
    if figures.error is None or figures.worst_channel_error is None:
        return math.inf
    return max(figures.error / tolerance.tensor, figures.worst_channel_error / tolerance.channel)
