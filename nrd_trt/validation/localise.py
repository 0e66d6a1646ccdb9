"""The stage at which an engine and its checkpoint part: PyTorch against the bundle's file, tensor by tensor.

TensorRT fuses layers and shows no tensor between them, so the stages are always those of the file in ONNX Runtime;
where the plan itself runs, its masks are the last stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nrd_trt.data.samples import Sample
from nrd_trt.errors import ConfigError
from nrd_trt.figures import Localisation, StageFigures
from nrd_trt.graph.decode_nodes import coordinate_tables
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.graph.outputs import PREFIX, with_taps
from nrd_trt.graph.tensors import stored_weights
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.graph_io import first_mask
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.validation.hints import describe_channels, describe_pixels, describe_tables, describe_weights
from nrd_trt.validation.stages import STAGES, StageMeter, StageTolerance, first_beyond

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

LOCALISED_COUNT = 2
"""Number of images whose tensors are compared: the worst ones of the comparison before."""

PREPROCESSING = StageTolerance(tensor=1e-5, channel=1e-5)
"""In fp32 in every file, one subtraction and one division per value: equal, or a few units in the last place apart."""

TOLERANCES = {
    "fp32": StageTolerance(tensor=1e-4, channel=1e-3),
    "fp16": StageTolerance(tensor=0.015, channel=0.07),
    "bf16": StageTolerance(tensor=0.07, channel=0.65),
    "int8": StageTolerance(tensor=0.4, channel=0.7),
}
"""Four times and more of what sound files show (the zoo's checkpoints on street scenes, R101 with random weights).

Their worst stage is off by 2e-6 in fp32 (order of summation), 3.6e-3 in fp16 and 1.8e-2 in bf16 (rounding by up to
2^-11 and 2^-8 per layer), their worst channel by 1e-5, 1.7e-2 and 0.16. Another checkpoint, a scale of 2 or a wrong
layout are off by more than 0.1, and their worst channel by about its own spread. In int8 with ranges from min to max
the zoo's checkpoints are off by 0.18, their worst channel by 0.24; twice and more of that is allowed."""

Tensors = dict[str, np.ndarray]


def compare_stages(
    model: Segmentor,
    file: onnx.ModelProto,
    samples: Sequence[Sample],
    *,
    mask_tolerance: float,
    plan_disagreement: float | None = None,
    has_plan: bool = False,
    threads: int | None = None,
) -> Localisation:
    """Compare a checkpoint and a file stage by stage.

    Args:
        model: The checkpoint, in evaluation mode.
        file: The bundle's ONNX file.
        samples: At least one; tensors of one image are held at a time.
        mask_tolerance: Largest share of pixels of the masks that may differ.
        plan_disagreement: That share for the plan, where it ran.
        has_plan: Whether the bundle has a plan.
        threads: CPU threads of ONNX Runtime.

    Raises:
        ConfigError: The network is not of the file's kind.
    """
    from nrd_trt.model.stages import predict_stages

    graph = read_facts(file)
    _check_kind(model, graph)
    tolerance = TOLERANCES[graph.precision]
    meters: dict[str, StageMeter] = {}
    flipped = pixels = 0
    with Engine(OrtRunner(with_taps(file), threads=threads), graph) as engine:
        for sample in samples:
            want, got = predict_stages(model, sample.image), _stages_of_file(engine, sample.image)
            for stage in STAGES[:-1]:
                if stage in got and stage in want:
                    meters.setdefault(stage, StageMeter(len(want[stage]))).add(want[stage], got[stage])
            flipped += int((want["mask"] != got["mask"]).sum())
            pixels += want["mask"].size
    figures = {
        stage: meter.figures(stage, PREPROCESSING if stage == "preprocessing" else tolerance)
        for stage, meter in meters.items()
    }
    share = flipped / pixels
    figures["mask"] = StageFigures(stage="mask", error=share, tolerance=mask_tolerance, within=share <= mask_tolerance)
    first, hints = first_beyond(figures), tuple[str, ...]()
    if first in (None, "mask") and _shifted(file, want):
        first = "logits"  # coordinates are constants: a fault, however little it shows
    if first is not None:  # the image that was compared last shows it as well as any
        hints = _hints(first, model, file, want, got, tolerance)
    elif plan_disagreement is not None and plan_disagreement > mask_tolerance:
        first = "plan"
        hints = ("the file is right and the plan is not: the fault is the builder's, or the plan is of another file",)
    note = f"the stages are those of the bundle's ONNX file in ONNX Runtime, {engine.arithmetic} arithmetic"
    if has_plan:
        shown = "it did not run here" if plan_disagreement is None else "its masks are compared as well"
        note += f"; a plan shows no tensors between its layers, and {shown}"
    return Localisation(
        first_beyond=first,
        hints=hints,
        arithmetic=engine.arithmetic,
        note=note,
        images=tuple(sample.name for sample in samples),
        stages=tuple(figures.values()),
    )


def _check_kind(model: Segmentor, graph: GraphFacts) -> None:
    config = model.config
    got = (config.encoder, config.head, config.decode if config.is_nrd else None)
    expected = (graph.encoder, graph.head, graph.decode)
    if got != expected:
        listed = [" ".join(map(str, kind)) for kind in (expected, got)]
        raise ConfigError(
            f"localise=True: expected a checkpoint of the bundle's kind ({listed[0]}), got {listed[1]}; two "
            "networks of different kinds have no stages in common."
        )


def _stages_of_file(engine: Engine, image: np.ndarray) -> Tensors:
    """Run a file with taps on one image and return its stages without the batch axis."""
    feed = engine.feed(image)
    outputs = engine.runner.infer(feed)
    stages = {name.removeprefix(PREFIX): array[0] for name, array in outputs.items()}
    if engine.graph.input_form == "float":
        stages["preprocessing"] = feed["image"][0]
    return {**stages, "mask": first_mask(outputs, engine.graph)}


def _hints(
    stage: str, model: Segmentor, file: onnx.ModelProto, want: Tensors, got: Tensors, tolerance: StageTolerance
) -> tuple[str, ...]:
    """Return what is known of the difference at the first wrong stage, the plainest first."""
    from nrd_trt.decode.reference import transposed_channels
    from nrd_trt.model.folding import folded_weights

    if stage == "preprocessing":
        found = [describe_pixels(want[stage], got[stage])]
    elif stage in ("logits", "mask") and "theta" in want:
        found = [_shifted(file, want) or _misread(model, want, got, tolerance)]
    else:
        orders = transposed_channels(model.config.decode) if stage == "theta" else {}
        known = {f"{name} is transposed": order for name, order in orders.items()}
        found = [
            describe_channels(want[stage], got[stage], tolerance.channel, known),
            describe_weights(folded_weights(model), stored_weights(file), tolerance.tensor),
        ]
    return tuple(hint for hint in found if hint)


def _misread(model: Segmentor, want: Tensors, got: Tensors, tolerance: StageTolerance) -> str | None:
    """Decode the file's own theta and guidance in each wrong way that is known, and tell which gives its logits."""
    from nrd_trt.decode.reference import decode_misread

    tables = want["x_table"], want["y_table"]
    for mistake, logits in decode_misread(got["theta"], got["guidance"], *tables, model.config.decode):
        meter = StageMeter(len(logits))
        meter.add(logits, got["logits"])
        if meter.figures("logits", tolerance).within:
            return f"the file decodes as if {mistake}"
    return None


def _shifted(file: onnx.ModelProto, want: Tensors) -> str | None:
    """Tell by how much the file's coordinates are off, or None where they are right or there are none."""
    if "x_table" not in want:
        return None
    return describe_tables((want["x_table"], want["y_table"]), coordinate_tables(file), tolerance=1e-3)
