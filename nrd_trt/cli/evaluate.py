"""The verb ``evaluate``: the mIoU of a checkpoint or a bundle on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups

if TYPE_CHECKING:
    from nrd_trt.validation.evaluate import Evaluation


def evaluate_command(
    *,
    source: Annotated[Path, typer.Argument(metavar="CKPT|NAME.nrd", help="A checkpoint or a bundle.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Images, or a folder with images/ and labels/.")],
    judged: groups.LabelOptions,
    run: groups.BundleOptions,
    size: common.Size = None,
    views: groups.ViewOptions,
    output_stride: common.OutputStride = None,
    dilations: common.Dilations = None,
    record: Annotated[
        Path | None,
        common.output_option(metavar="FILE.jsonl", help="Add the figures of each image, a line of JSON each."),
    ] = None,
    resume: Annotated[bool, common.output_option("--resume", help="Go on with --record where it exists.")] = False,
    out: groups.OutputOptions,
) -> None:
    """Compare the masks of a checkpoint or a bundle with labels."""
    from nrd_trt import evaluate

    evaluation = evaluate(
        source,
        data,
        **judged.given(),
        size=size,
        **views.given(),
        **run.given(),
        record=record,
        resume=resume,
        progress=not out.quiet,
        dilations=dilations,
        output_stride=output_stride,
    )
    out.show(evaluation, table(evaluation))


def table(evaluation: Evaluation) -> list[str]:
    """Return the printed lines."""
    rows = [
        ("images", f"{evaluation.images}"),
        ("looked at by", _looked_at(evaluation)),
        ("run by", common.run_by(evaluation.runner, evaluation.arithmetic, evaluation.plan_ran)),
        ("mIoU", common.fraction(evaluation.miou)),
        ("pixel accuracy", common.fraction(evaluation.pixel_accuracy)),
    ]
    lines = [*common.headline(evaluation.warnings), *(f"{name:<24} {value}" for name, value in rows)]
    return lines + [f"  IoU {name:<20} {common.fraction(iou)}" for name, iou in evaluation.per_class_iou.items()]


def _looked_at(evaluation: Evaluation) -> str:
    """Say how images were looked at, and how far windows agreed."""
    viewing = evaluation.viewing
    words: list[str] = [viewing.protocol]
    if viewing.scales != (1.0,):
        words.append(f"at {', '.join(f'{scale:g}' for scale in viewing.scales)} times the size")
    words += ["mirrored too"] * viewing.flip
    if evaluation.seam_agreement is not None:
        words.append(f"{common.fraction(evaluation.seam_agreement)} of the pixels alike where windows overlap")
    return ", ".join(words)
