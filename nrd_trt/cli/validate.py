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
    localise: Annotated[
        bool,
        typer.Option("--localise", help="Name the first stage that is not the checkpoint's (needs --checkpoint)."),
    ] = False,
    rebuild: Annotated[
        int | None, typer.Option("--rebuild", metavar="N", help="Build the file N times and compare the builds.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write one page with every figure.")
    ] = None,
    force: common.Force = False,
    runner: common.Runner = "auto",
    plugin: common.Plugin = None,
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Compare an engine's masks with the reference and hold the figures against the gates."""
    from nrd_trt.engine.messages import stderr_message
    from nrd_trt.validation.validate import ValidateRequest, validate_bundle

    stages = common.Stages(quiet=quiet)
    validation = validate_bundle(
        ValidateRequest(
            bundle=bundle,
            checkpoint=checkpoint,
            data=data,
            labels=labels,
            ignore_index=ignore_index,
            fit=fit,
            min_agreement=min_agreement,
            max_miou_drop=max_miou_drop,
            localise=localise,
            rebuild=rebuild,
            report=report,
            force=force,
            runner=runner,
            plugin=plugin,
            threads=threads,
            progress=not quiet,
            on_stage=stages,
            on_message=stderr_message if verbose else lambda severity, text: None,
        )
    )
    stages.end()
    result = validation.to_dict()
    if as_json:
        common.print_json(result)
    else:
        _print(result)
    if not validation.passed:
        common.note(f"gate failed: {'; '.join(validation.failures)}")
        raise typer.Exit(common.GATE_FAILED)


def _print(result: dict[str, Any]) -> None:
    fraction, flips = common.fraction, result["flips"]
    rows = [
        ("images", f"{result['images']} {result['samples']}, reference: {common.reference_name(result['reference'])}"),
        ("run by", f"{result['runner']}, {result['arithmetic']} arithmetic"),
        ("pixel agreement", f"{fraction(result['pixel_agreement'])} (gate {result['gates']['min_agreement']})"),
        ("flips not near a tie", f"{fraction(flips['far_share'])} of the pixels"),
        ("near-tie share of flips", fraction(result["tie_share"])),
        ("mIoU between", fraction(result["miou_between"])),
        ("mIoU reference", fraction(result["miou_reference"])),
        ("mIoU engine", fraction(result["miou_engine"])),
        ("boundary F between", f"{fraction(result['boundary_between'])} (within {result['boundary_tolerance_px']} px)"),
    ]
    for name, value in rows:
        typer.echo(f"{name:<24} {value}")
    for name, value in (result["per_class_iou"] or {}).items():
        typer.echo(f"  IoU {name:<20} {fraction(value)}")
    for pair in result["flip_pairs"][:3]:
        far = "" if pair["far"] is None else f", {pair['far']} not near a tie"
        typer.echo(f"  flipped {pair['reference']} -> {pair['engine']}: {pair['pixels']} pixels{far}")
    for image in result["worst_images"][:3]:
        typer.echo(f"  worst image {image['name']}: {fraction(image['pixel_agreement'])}")
    _print_stages(result["localisation"])
    _print_rebuilds(result["rebuilds"])
    typer.echo("passed" if result["passed"] else "NOT PASSED")


def _print_stages(found: dict[str, Any] | None) -> None:
    if found is None:
        return
    typer.echo(f"stages ({found['note']})")
    for stage in found["stages"]:
        error = "not finite" if stage["error"] is None else f"{stage['error']:.2e}"
        channel = ""
        if stage["worst_channel"] is not None:
            allowed = f"of {stage['channel_tolerance']:g}"
            channel = f"  worst channel {stage['worst_channel']}: {stage['worst_channel_error']:.2e} {allowed}"
        verdict = "ok    " if stage["within"] else "BEYOND"
        typer.echo(f"  {stage['stage']:<14} {verdict} {error} of {stage['tolerance']:g}{channel}")
    typer.echo(f"  first beyond: {found['first_beyond'] or 'none'}")
    for hint in found["hints"]:
        typer.echo(f"    {hint}")


def _print_rebuilds(found: dict[str, Any] | None) -> None:
    if found is None:
        return
    typer.echo(f"builds: {found['builds']} with {found['builder']} ({found['note']})")
    if found["plans"]:
        alike = "all plans equal" if found["distinct_plans"] == 1 else f"{found['distinct_plans']} different plans"
        typer.echo(f"  {alike}, {found['same_as_bundle']} of {found['builds']} the bundle's, byte for byte")
    if found["agreement"] is not None:
        typer.echo(f"  agreement between builds {common.fraction(found['agreement'])} on {found['images']} images")
