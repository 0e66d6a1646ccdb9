"""The verb ``calibrate``: ranges of activations for int8 and fp8, measured on images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups

if TYPE_CHECKING:
    from nrd_trt.building.calibrate import Calibration


def calibrate_command(
    *,
    source: Annotated[Path, typer.Argument(metavar="CKPT|m.onnx", help="A checkpoint, or a file exported in fp32.")],
    data: Annotated[
        Path, common.input_option(metavar="DIR", help="Images, a folder with images/, a video, or 'synthetic'.")
    ],
    output: Annotated[Path, common.output_option("-o", metavar="ranges.json", help="Where to write them.")],
    ranges: groups.RangeOptions,
    size: common.Size = None,
    judged: groups.LabelOptions,
    facts: groups.CheckpointFacts,
    force: common.Force = False,
    threads: common.Threads = None,
    out: groups.OutputOptions,
) -> None:
    """Measure the ranges of activations that int8 and fp8 need, on images like those of deployment."""
    from nrd_trt import calibrate

    calibration = calibrate(
        source,
        data,
        output=output,
        **ranges.given(),
        size=size,
        **judged.given(),
        force=force,
        threads=threads,
        progress=not out.quiet,
        on_stage=out.on_stage,
        **facts.given(),
    )
    out.show(calibration, _lines(calibration))


def _lines(found: Calibration) -> list[str]:
    lines = [f"{found.path}: ranges of {len(found.tensors)} tensors from {found.images} images"]
    if (coverage := found.coverage) is None:
        return lines
    labels = coverage.labels
    title = "classes by the model's own prediction: share of the pixels, images that show them"
    lines.append(f"{title}; beside it by the labels of {labels.labelled} images" if labels else title)
    for name in coverage.pixel_share:
        counted = [
            f"{common.fraction(one.pixel_share[name])}  {one.images[name]:<6}" for one in (coverage, labels) if one
        ]
        lines.append(f"  {name:<24} {'  '.join(counted)}".rstrip())
    return lines
