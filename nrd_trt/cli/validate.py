"""The verb ``validate``: an engine's masks against PyTorch's, or against those stored in the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nrd_trt.cli import common


def validate_command(
    bundle: Annotated[Path, typer.Argument(metavar="NAME.nrd", help="The bundle.")],
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="CKPT", help="Reference; default: the bundle's stored masks.")
    ] = None,
    data: common.Data = None,
    labels: common.Labels = None,
    ignore_index: common.IgnoreIndex = None,
    fit: common.FitOption = None,
    min_agreement: common.MinAgreement = None,
    max_miou_drop: common.MaxMiouDrop = None,
    runner: common.Runner = "auto",
    plugin: common.Plugin = None,
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Compare an engine's masks with the reference and hold the figures against the gates."""
    from nrd_trt.pipeline.validate import ValidateRequest, validate_bundle

    validation = validate_bundle(
        ValidateRequest(
            bundle=bundle,
            checkpoint=checkpoint,
            data=data,
            labels=labels,
            ignore_index=ignore_index,
            fit=common.fit_choice(fit),
            min_agreement=min_agreement,
            max_miou_drop=max_miou_drop,
            runner=runner,
            plugin=plugin,
            threads=threads,
            progress=not quiet,
        )
    )
    result = validation.to_dict()
    if as_json:
        common.print_json(result)
    else:
        _print(result)
    if not validation.passed:
        common.note(f"gate failed: {'; '.join(validation.failures)}")
        raise typer.Exit(common.GATE_FAILED)


def _print(result: dict[str, Any]) -> None:
    rows = [
        ("images", f"{result['images']} {result['samples']}, reference: {common.reference_name(result['reference'])}"),
        ("run by", f"{result['runner']}, {result['arithmetic']} arithmetic"),
        ("pixel agreement", f"{common.fraction(result['pixel_agreement'])} (gate {result['gates']['min_agreement']})"),
        ("mIoU between", common.fraction(result["miou_between"])),
        ("mIoU reference", common.fraction(result["miou_reference"])),
        ("mIoU engine", common.fraction(result["miou_engine"])),
        ("near-tie share of flips", common.fraction(result["tie_share"])),
    ]
    for name, value in rows:
        typer.echo(f"{name:<24} {value}")
    for name, value in (result["per_class_iou"] or {}).items():
        typer.echo(f"  IoU {name:<20} {common.fraction(value)}")
    typer.echo("passed" if result["passed"] else "NOT PASSED")
