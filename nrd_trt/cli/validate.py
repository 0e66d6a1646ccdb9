"""The verb ``validate``: an engine's masks against PyTorch's, or against those stored in the bundle."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups

if TYPE_CHECKING:
    from nrd_trt.figures import Localisation, Rebuilds, SoundComparison, StageFigures, StructureRecord
    from nrd_trt.validation.validate import Validation


def validate_command(
    *,
    bundle: Annotated[Path, typer.Argument(metavar="NAME.nrd", help="The bundle.")],
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="CKPT", help="Reference; default: the bundle's stored masks.")
    ] = None,
    data: common.Data = None,
    judged: groups.LabelOptions,
    gates: groups.GateOptions,
    structure: Annotated[
        bool | None,
        typer.Option(
            "--structure/--no-structure",
            help="Hold the file against --checkpoint, node by node (default yes).",
        ),
    ] = None,
    localise: Annotated[
        bool,
        typer.Option("--localise", help="Name the first stage that is not the checkpoint's (needs --checkpoint)."),
    ] = False,
    rebuild: Annotated[
        int | None, typer.Option(metavar="N", help="Build the file N times and compare the builds.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write one page with every figure.")] = None,
    force: common.Force = False,
    run: groups.BundleOptions,
    out: groups.OutputOptions,
) -> None:
    """Compare an engine's masks with the reference, and the figures with the gates."""
    from nrd_trt import validate

    validation = validate(
        bundle,
        checkpoint=checkpoint,
        data=data,
        **judged.given(),
        **gates.given(),
        structure=structure,
        localise=localise,
        rebuild=rebuild,
        report=report,
        force=force,
        **run.given(),
        progress=not out.quiet,
        on_stage=out.on_stage,
        on_message=out.on_message,
    )
    out.show(validation, _lines(validation))
    common.exit_on(validation.failures)


def _lines(found: Validation) -> Iterator[str]:
    """Yield the text without ``--json``."""
    fraction, gates = common.fraction, found.gates
    yield from common.headline(found.warnings)
    rows = [
        ("images", f"{found.images} {found.samples}, reference: {common.reference_name(found.reference)}"),
        ("run by", common.run_by(found.runner, found.arithmetic, found.plan_ran if found.has_plan else None)),
        ("pixel agreement", f"{fraction(found.pixel_agreement)} (gate {gates.min_agreement})"),
        *common.finer_gates(found, gates),
        ("flips not near a tie", f"{fraction(found.flips.far_share)} of the pixels"),
        ("near-tie share of flips", fraction(found.tie_share)),
        ("mIoU between", fraction(found.miou_between)),
        ("mIoU reference", fraction(found.miou_reference)),
        ("mIoU engine", fraction(found.miou_engine)),
    ]
    for name, value in rows:
        yield f"{name:<24} {value}"
    for name, iou in (found.per_class_iou or {}).items():
        yield f"  IoU {name:<20} {fraction(iou)}"
    for pair in found.flip_pairs[:3]:
        far = "" if pair.far is None else f", {pair.far} not near a tie"
        yield f"  flipped {pair.reference} -> {pair.engine}: {pair.pixels} pixels{far}"
    for image in found.worst_images[:3]:
        yield f"  worst image {image.name}: {fraction(image.pixel_agreement)}"
    if found.structure is not None:
        yield from _structure_lines(found.structure)
    if found.soundness is not None:
        yield from _sound_lines(found.soundness)
    if found.localisation is not None:
        yield from _stage_lines(found.localisation)
    if found.rebuilds is not None:
        yield from _rebuild_lines(found.rebuilds)
    yield "passed" if found.passed else "NOT PASSED"


def _structure_lines(found: StructureRecord) -> Iterator[str]:
    yield f"structure: {common.structure_line(found)}"
    yield from (f"  {line}" for line in found.differences[:10])
    if found.found > 10:
        yield f"  and {found.found - 10} more"
    yield from (f"  not provable: {line}" for line in found.not_provable)


def _sound_lines(found: SoundComparison) -> Iterator[str]:
    """Yield one line per comparison with the stage that comes nearest to what is allowed."""
    on = f"on {len(found.images)} images"
    yield f"the file beside sound ones made anew from the checkpoint; the twin has the file's own ranges; {on}"
    if found.note:
        yield f"  {found.note}"
    for what, stages in (
        ("fp32 anew, to PyTorch", found.exported),
        ("sound, to PyTorch", found.sound),
        ("the file, to PyTorch", found.bundle),
        ("the file, to its twin", found.twin),
    ):
        if stages:
            nearest = max(stages, key=lambda stage: inf if stage.error is None else stage.error / stage.tolerance)
            yield f"  {what:<22} {_stage_line(nearest)}"
    for one in found.ranges[:1]:
        verdict = "ok    " if one.loss <= one.allowed else "BEYOND"
        loses = f"{one.held:.4g} loses {one.loss:.2f} of {one.allowed:g} times what {one.measured:.4g}, the best, does"
        yield f"  worst of its ranges    {verdict} {one.tensor}: {loses}"


def _stage_lines(found: Localisation) -> Iterator[str]:
    yield f"stages ({found.note})"
    yield from (f"  {_stage_line(stage)}" for stage in found.stages)
    yield f"  first beyond: {found.first_beyond or 'none'}"
    yield from (f"    {hint}" for hint in found.hints)


def _stage_line(stage: StageFigures) -> str:
    error = "not finite" if stage.error is None else f"{stage.error:.2e}"
    channel = ""
    if stage.worst_channel is not None:
        allowed = f"of {stage.channel_tolerance:.3g}"
        channel = f"  worst channel {stage.worst_channel}: {stage.worst_channel_error:.2e} {allowed}"
    verdict = "ok    " if stage.within else "BEYOND"
    return f"{stage.stage:<14} {verdict} {error} of {stage.tolerance:.3g}{channel}"


def _rebuild_lines(found: Rebuilds) -> Iterator[str]:
    yield f"builds: {found.builds} with {found.builder} ({found.note})"
    if found.plans:
        alike = "all plans equal" if found.distinct_plans == 1 else f"{found.distinct_plans} different plans"
        yield f"  {alike}, {found.same_as_bundle} of {found.builds} the bundle's, byte for byte"
    if found.agreement is not None:
        yield f"  agreement between builds {common.fraction(found.agreement)} on {found.images} images"
