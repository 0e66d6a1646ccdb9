"""The stage at which an engine and its checkpoint part: PyTorch against the bundle's file, tensor by tensor.

TensorRT fuses layers and shows no tensor between them, so the stages are always those of the file in ONNX Runtime;
where the plan itself runs, its masks are the last stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from nrd_trt.errors import ConfigError
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.graph.taps import PREFIX, coordinate_tables, stored_weights, with_taps
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.graph_io import first_mask, image_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.validation.compare import Sample
from nrd_trt.validation.hints import describe_channels, describe_pixels, describe_tables, describe_weights
from nrd_trt.validation.stages import STAGES, TITLES, StageFigures, StageMeter, StageTolerance, first_beyond

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

LOCALISED_COUNT = 2
"""Images whose tensors are compared; the worst ones of the comparison before."""

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


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """The stages in order, and where the first goes wrong.

    Attributes:
        stages: Figures of every stage that the network has.
        first_beyond: The first stage beyond its tolerance; ``"plan"`` where only the plan's masks are; None where all
            are within.
        hints: What the difference looks like, where that is known.
        arithmetic: Of the file's run: ``"native"`` or ``"simulated"``.
        note: What was run, for people.
        images: Names of the images compared.
    """

    stages: tuple[StageFigures, ...]
    first_beyond: str | None
    hints: tuple[str, ...]
    arithmetic: str
    note: str
    images: tuple[str, ...]

    @property
    def failure(self) -> str | None:
        """One line where a stage is beyond its tolerance."""
        if self.first_beyond is None:
            return None
        because = f": {'; '.join(self.hints)}" if self.hints else ""
        return f"stage {TITLES.get(self.first_beyond, self.first_beyond)} is the first beyond its tolerance{because}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "first_beyond": self.first_beyond,
            "hints": list(self.hints),
            "arithmetic": self.arithmetic,
            "note": self.note,
            "images": list(self.images),
            "stages": [figures.to_dict() for figures in self.stages],
        }


def localise(
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
        file: Of the bundle.
        samples: At least one; tensors of one image are held at a time.
        mask_tolerance: Largest share of pixels of the masks that may differ.
        plan_disagreement: That share for the plan, where it ran.
        has_plan: Whether the bundle has a plan.
        threads: CPU threads of ONNX Runtime.

    Raises:
        ConfigError: The network is not of the file's kind.
    """
    graph = read_facts(file)
    _check_kind(model, graph)
    meters: dict[str, StageMeter] = {}
    flipped = pixels = 0
    with OrtRunner(with_taps(file), threads=threads) as runner:
        for sample in samples:
            want, got = _tensors(model, runner, graph, sample.image)
            for stage in STAGES[:-1]:
                if stage in got and stage in want:
                    meter = meters.setdefault(stage, StageMeter(len(want[stage])))
                    meter.add(want[stage], got[stage])
            flipped += int((want["mask"] != got["mask"]).sum())
            pixels += want["mask"].size
        arithmetic = runner.arithmetic
        figures = _figures(meters, graph.precision, flipped / pixels, mask_tolerance)
        first = first_beyond(figures)
        if first in (None, "mask") and _shifted(file, want):
            first = "logits"  # coordinates are constants: a fault, however little it shows
        if first is not None:  # what was compared last shows it as well as any
            hints = _hints(first, model, file, want, got)
    if first is None and plan_disagreement is not None and plan_disagreement > mask_tolerance:
        first = "plan"
        hints = ("the file is right and the plan is not: the fault is the builder's, or the plan is of another file",)
    return Localisation(
        stages=tuple(figures.values()),
        first_beyond=first,
        hints=hints if first is not None else (),
        arithmetic=arithmetic,
        note=_note(has_plan, plan_disagreement is not None, arithmetic),
        images=tuple(sample.name for sample in samples),
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


def _tensors(model: Segmentor, runner: BaseRunner, graph: GraphFacts, image: np.ndarray) -> tuple[Tensors, Tensors]:
    """Return the stages of PyTorch and of the file for one image."""
    from nrd_trt.model.stages import predict_stages

    feed = image_feed(image, graph)
    outputs = runner.infer(feed)
    got = {name.removeprefix(PREFIX): array[0] for name, array in outputs.items()}
    if graph.input_form == "float":
        got["preprocessing"] = feed["image"][0]
    got["mask"] = first_mask(outputs, graph)
    return predict_stages(model, image), got


def _figures(
    meters: dict[str, StageMeter], precision: str, flipped: float, mask_tolerance: float
) -> dict[str, StageFigures]:
    found = {}
    for stage, meter in meters.items():
        allowed = PREPROCESSING if stage == "preprocessing" else TOLERANCES[precision]
        found[stage] = meter.figures(stage, tolerance=allowed.tensor, channel_tolerance=allowed.channel)
    return found | {"mask": StageFigures(stage="mask", error=flipped, tolerance=mask_tolerance)}


def _hints(stage: str, model: Segmentor, file: onnx.ModelProto, want: Tensors, got: Tensors) -> tuple[str, ...]:
    """Return what is known of the difference at the first wrong stage, the plainest first."""
    from nrd_trt.model.folding import folded_weights

    precision = read_facts(file).precision
    allowed = TOLERANCES[precision]
    if stage == "preprocessing":
        found = [describe_pixels(want[stage], got[stage])]
    elif stage in ("logits", "mask") and "theta" in want:
        found = _decode_hints(model, file, want, got)
    else:
        found = [
            describe_channels(want[stage], got[stage], allowed.channel, _orders(model) if stage == "theta" else {}),
            describe_weights(folded_weights(model), stored_weights(file), allowed.tensor),
        ]
    return tuple(hint for hint in found if hint)


def _orders(model: Segmentor) -> dict[str, np.ndarray]:
    from nrd_trt.decode.misreadings import transposed_channels

    return {f"{name} is transposed": order for name, order in transposed_channels(model.config.decode).items()}


def _decode_hints(model: Segmentor, file: onnx.ModelProto, want: Tensors, got: Tensors) -> list[str | None]:
    """Look at the coordinates, then decode the file's own theta and guidance in each wrong way that is known."""
    from nrd_trt.decode.misreadings import decode_misread

    allowed = TOLERANCES[read_facts(file).precision]
    if shifted := _shifted(file, want):
        return [shifted]
    tables = want["x_table"], want["y_table"]
    for mistake, logits in decode_misread(got["theta"], got["guidance"], *tables, model.config.decode):
        meter = StageMeter(len(logits))
        meter.add(logits, got["logits"])
        if meter.figures("logits", tolerance=allowed.tensor, channel_tolerance=allowed.channel).within:
            return [f"the file decodes as if {mistake}"]
    return [None]


def _shifted(file: onnx.ModelProto, want: Tensors) -> str | None:
    """Tell by how much the file's coordinates are off, or None where they are right or there are none."""
    if "x_table" not in want:
        return None
    return describe_tables((want["x_table"], want["y_table"]), coordinate_tables(file), tolerance=1e-3)


def _note(has_plan: bool, plan_ran: bool, arithmetic: str) -> str:
    text = f"the stages are those of the bundle's ONNX file in ONNX Runtime, {arithmetic} arithmetic"
    if not has_plan:
        return text
    shown = "its masks are compared as well" if plan_ran else "it did not run here"
    return f"{text}; a plan shows no tensors between its layers, and {shown}"
