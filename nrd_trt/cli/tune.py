"""The verb ``tune``: the lowest precision whose masks hold the gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.cli.flags import shell_line

if TYPE_CHECKING:
    from nrd_trt.optimization.tune_record import Tuned

_SHOWN_LAYERS = 5


def tune_command(
    *,
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help=".pth or .safetensors")],
    data: Annotated[Path, common.input_option(metavar="DIR", help="Images that the rungs are judged on.")],
    output: Annotated[Path, common.output_option("-o", metavar="NAME.nrd", help="The winner's bundle.")],
    judged: groups.LabelOptions,
    calibration: groups.CalibrationOption = None,
    ranges: groups.RangeOptions,
    gates: groups.GateOptions,
    sensitivity: Annotated[
        bool, common.checks_option("--sensitivity", help="Measure every layer even where int8 everywhere holds.")
    ] = False,
    resume: Annotated[bool, common.output_option("--resume", help="Go on from where an earlier run stopped.")] = False,
    builder: groups.BuilderOptions,
    run: groups.RunnerOptions,
    size: common.Size = None,
    input_form: groups.InputFormOption = None,
    facts: groups.CheckpointFacts,
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Find the lowest precision whose masks hold the gates, and build its bundle (int8, mixed, fp16, fp32)."""
    from nrd_trt import tune

    tuned = tune(
        checkpoint,
        output,
        data,
        **judged.given(),
        calibration=calibration,
        **ranges.given(),
        **gates.given(),
        **builder.given(),
        **run.given(),
        size=size,
        input_form=input_form,
        sensitivity=sensitivity,
        resume=resume,
        force=force,
        progress=not out.quiet,
        on_stage=out.on_stage,
        on_rung=lambda rung: out.note(f"  {rung}"),
        on_message=out.on_message,
        describe=shell_line,
        **facts.given(),
    )
    out.show(tuned, _lines(tuned, output))
    common.exit_on(tuned.failures, common.MARKED if tuned.bundle else None)


def _lines(tuned: Tuned, path: Path) -> list[str]:
    verdict = ", NOT PASSED" if tuned.failures else ""
    return [
        *common.headline(tuned.warnings),
        *map(str, tuned.rungs),
        *_most_sensitive(tuned),
        f"winner: {tuned.winner}, {path}{verdict}" if tuned.winner else "no winner",
        f"record: {', '.join(map(str, tuned.files))}",
    ]


def _most_sensitive(tuned: Tuned) -> list[str]:
    if not tuned.sensitivity:
        return ["sensitivity of the layers: not measured, as int8 everywhere holds; --sensitivity measures it"]
    worst = sorted(tuned.sensitivity.items(), key=lambda entry: -entry[1])[:_SHOWN_LAYERS]
    return [
        "most sensitive layers (share of the pixels that change with this layer alone in int8):",
        *(f"  {share:.6f}  {layer}" for layer, share in worst),
    ]
