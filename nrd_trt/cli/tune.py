"""The verb ``tune``: the lowest precision whose masks hold the gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nrd_trt.cli import common, groups, quantization
from nrd_trt.cli.parse import parse_size

if TYPE_CHECKING:
    from nrd_trt.building.tune_record import Tuned


def tune_command(
    *,
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help=".pth or .safetensors")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Images that the rungs are judged on.")],
    output_path: Annotated[Path, typer.Option("-o", metavar="NAME.nrd", help="Where to write the winner's bundle.")],
    labels: common.Labels = None,
    ignore_index: common.IgnoreIndex = None,
    fit: common.FitOption = None,
    calibration: quantization.CalibrationOption = None,
    ranges: quantization.RangeOptions,
    max_miou_drop: common.MaxMiouDrop = None,
    min_agreement: common.MinAgreement = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from where an earlier run stopped.")] = False,
    builder: common.Builder = "auto",
    size: common.Size = None,
    facts: groups.CheckpointFacts,
    force: common.Force = False,
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Find the lowest precision whose masks hold the gates, and build its bundle (int8, mixed, fp16, fp32)."""
    from nrd_trt.building.request import BuildRequest, FormRequest
    from nrd_trt.building.tune import TuneRequest, tune
    from nrd_trt.engine.compat import stderr_message

    stages = common.Stages(quiet=quiet)
    calibrator = quantization.Calibrator(calibration or str(data), ranges, fit=fit, threads=threads, progress=not quiet)
    build = BuildRequest(
        source=checkpoint,
        output=output_path,
        form=FormRequest(size=parse_size(size) if size else None),
        quantization=calibrator.quantization(),
        calibration=calibrator.calibration(),
        builder=builder,
        checkpoint_options=facts.options(),
        data=data,
        labels=labels,
        ignore_index=ignore_index,
        fit=fit,
        min_agreement=min_agreement,
        max_miou_drop=max_miou_drop,
        force=force,
        threads=threads,
        progress=not quiet,
        on_message=stderr_message if verbose else lambda severity, text: None,
        on_stage=stages,
    )
    request = TuneRequest(
        build=build,
        resume=resume,
        calibrated_on_data=_warn_of_same_images(calibration, data),
        on_rung=lambda text: common.note(f"  {text}", quiet=quiet),
    )
    tuned = tune(request)
    stages.end()
    _finish(tuned, output_path, as_json=as_json)


def _warn_of_same_images(calibration: str | None, data: Path) -> bool:
    """Return whether the rungs are judged on the images that they are calibrated on, and say so."""
    same = calibration is None or Path(calibration).resolve() == data.resolve()
    if same:
        common.note(
            f"warning: the ranges are measured on {data}, the images that the rungs are judged on, so the figures "
            "flatter int8; give others with --calibration."
        )
    return same


def _finish(tuned: Tuned, path: Path, *, as_json: bool) -> None:
    """Write the record and tell what came of it; raise `typer.Exit` where a gate failed."""
    from nrd_trt.building.tune_record import write_record

    written = write_record(tuned, path)
    if as_json:
        common.print_json({"path": str(path) if tuned.winner else None, "files": written, **tuned.to_dict()})
    else:
        _print(tuned, path, written)
    if tuned.failures:
        kept = "; the bundle is kept and marked as not passed" if tuned.bundle else ""
        common.note(f"gate failed: {'; '.join(tuned.failures)}{kept}")
        raise typer.Exit(common.GATE_FAILED)


def _print(tuned: Tuned, path: Path, written: list[str]) -> None:
    from nrd_trt.building.tune_record import describe

    for rung in tuned.rungs:
        typer.echo(describe(rung))
    worst: list[tuple[str, Any]] = sorted(tuned.sensitivity.items(), key=lambda entry: -entry[1])[:5]
    typer.echo("most sensitive layers (share of the pixels that change with this layer alone in int8):")
    for layer, share in worst:
        typer.echo(f"  {share:.6f}  {layer}")
    verdict = ", NOT PASSED" if tuned.failures else ""
    typer.echo(f"winner: {tuned.winner}, {path}{verdict}" if tuned.winner else "no winner")
    typer.echo(f"record: {', '.join(written)}")
