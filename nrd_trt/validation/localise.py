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
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import with_taps
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.validation.causes import causes_in_data, causes_in_file
from nrd_trt.validation.rederive import other_kind
from nrd_trt.validation.stages import PREPROCESSING, STAGES, TITLES, TOLERANCES, Finding, StageMeter, first_beyond
from nrd_trt.validation.twin import stages_of_file

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

LOCALISED_COUNT = 2
"""Number of images whose tensors are compared: the worst ones of the comparison before."""


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
    if other := other_kind(model, graph):
        raise ConfigError(f"localise=True: {other}; two networks of different kinds have no stages in common.")
    tolerance = TOLERANCES[graph.precision]
    meters: dict[str, StageMeter] = {}
    flipped = pixels = most = 0
    shapes: dict[str, Finding] = {}
    with Engine(OrtRunner(with_taps(file), threads=threads), graph) as engine:
        for sample in samples:
            want, got = predict_stages(model, sample.image), stages_of_file(engine, sample.image)
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
