"""The stage at which an engine and its checkpoint part: PyTorch against the bundle's file, tensor by tensor.

TensorRT fuses layers and shows no tensor between them, so the stages are always those of the file in ONNX Runtime;
where the plan itself runs, its masks are the last stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nrd_trt.data.samples import Sample
from nrd_trt.errors import ConfigError
from nrd_trt.figures import Localisation, StageFigures
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.graph.outputs import PREFIX, with_taps
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.graph_io import first_mask
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.validation.causes import causes_in_data, causes_in_file
from nrd_trt.validation.stages import STAGES, TITLES, Finding, StageMeter, StageTolerance, first_beyond

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
        samples: At least one; tensors of two images are held at a time.
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
    flipped = pixels = most = 0
    shapes: dict[str, Finding] = {}
    with Engine(OrtRunner(with_taps(file), threads=threads), graph) as engine:
        for sample in samples:
            want, got = predict_stages(model, sample.image), _stages_of_file(engine, sample.image)
            others = [stage for stage in STAGES[:-1] if stage in got and got[stage].shape != want[stage].shape]
            shapes |= {stage: Finding(stage=stage, text=_other_shape(want[stage], got.pop(stage))) for stage in others}
            for stage in STAGES[:-1]:
                if stage in got:
                    meters.setdefault(stage, StageMeter(len(want[stage]))).add(want[stage], got[stage])
            flips = int((want["mask"] != got["mask"]).sum())
            flipped, pixels = flipped + flips, pixels + want["mask"].size
            if flips >= most:  # the image that shows it best
                most, image, shown = flips, sample.image, (want, got)
    figures = {
        stage: meter.figures(stage, PREPROCESSING if stage == "preprocessing" else tolerance)
        for stage, meter in meters.items()
    }
    share = flipped / pixels
    figures["mask"] = StageFigures(stage="mask", error=share, tolerance=mask_tolerance, within=share <= mask_tolerance)
    found = [*shapes.values(), *causes_in_file(file, model, shown[0])]
    first = _earliest([first_beyond(figures), *(finding.stage for finding in found)])
    if first is not None:
        found += causes_in_data(file, model, image, *shown, found, tolerance=tolerance, pixels=PREPROCESSING)
    elif plan_disagreement is not None and plan_disagreement > mask_tolerance:
        first = "plan"
        found = [
            Finding(stage="plan", text="every stage of the file is within its tolerance, the plan's masks are not")
        ]
    note = f"the stages are those of the bundle's ONNX file in ONNX Runtime, {engine.arithmetic} arithmetic"
    if has_plan:
        ran = "it did not run here" if plan_disagreement is None else "its masks are compared as well"
        note += f"; a plan shows no tensors between its layers, and {ran}"
    return Localisation(
        first_beyond=first,
        hints=_hints(found, first),
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


def _other_shape(want: np.ndarray, got: np.ndarray) -> str:
    return f"its shape is {got.shape}, expected {want.shape}: nothing after it can be compared"


def _earliest(stages: Iterable[str | None]) -> str | None:
    """Return the first of some stages in the order of the data; None where there is none.

    Constants of a file are exact or rounded once, so that another one is a fault, however little it shows.
    """
    return min((stage for stage in stages if stage is not None), key=STAGES.index, default=None)


def _hints(found: Iterable[Finding], first: str | None) -> tuple[str, ...]:
    """Return what was found in the order of the data, each thing once, with its stage where that is a later one."""
    order = sorted(found, key=lambda finding: STAGES.index(finding.stage) if finding.stage in STAGES else len(STAGES))
    lines = (
        finding.text if finding.stage == first else f"{TITLES.get(finding.stage, finding.stage)}: {finding.text}"
        for finding in order
    )
    return tuple(dict.fromkeys(lines))
