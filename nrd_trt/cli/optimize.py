"""The verb ``optimize``: the best bundle within a budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nrd_trt.cli import common, groups, parse
from nrd_trt.cli.flags import shell_line
from nrd_trt.specs import format_size

if TYPE_CHECKING:
    from nrd_trt.optimization.optimize_record import Optimized


def optimize_command(
    *,
    sources: Annotated[
        list[str], typer.Argument(metavar="CKPT|RECIPE…", help="Checkpoints; recipes are timed with random weights.")
    ],
    output: Annotated[Path, common.output_option("-o", metavar="DIR", help="Where to write the search.")],
    max_latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="Budget: median, image to mask.")] = None,
    min_fps: Annotated[float | None, typer.Option(metavar="N", help="The same as images per second.")] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option(metavar="MB", help="Budget: memory, as `nrd-trt benchmark` tells it of one bundle.")
    ] = None,
    min_miou: Annotated[
        float | None,
        typer.Option(metavar="0-1", help="Smallest mIoU; without a bound on the latency the fastest that has it wins."),
    ] = None,
    sizes: Annotated[
        Any,
        typer.Option(
            metavar="HxW,…", parser=parse.parse_sizes, help="Input sizes (default the network's own, 3/4, 1/2)."
        ),
    ] = None,
    precisions: Annotated[
        Any,
        typer.Option(
            metavar="int8,…",
            parser=parse.parse_names,
            help="int8, mixed, fp8, fp16, bf16, fp32 (default all but fp8, bf16).",
        ),
    ] = None,
    data: common.Data = None,
    judged: groups.LabelOptions,
    latencies: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of `nrd-trt benchmark` from the device.")
    ] = None,
    export_candidates: Annotated[
        Path | None, common.output_option(metavar="DIR", help="Write the candidates, to be timed on the device.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Build at most N candidates, the most promising.")
    ] = None,
    calibration: groups.CalibrationOption = None,
    ranges: groups.RangeOptions,
    gates: groups.GateOptions,
    builder: groups.BuilderOptions,
    run: groups.RunnerOptions,
    input_form: groups.InputFormOption = None,
    facts: groups.CheckpointFacts,
    resume: Annotated[bool, common.output_option("--resume", help="Go on with the search that lies there.")] = False,
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Find the best bundle within a budget: network, input size and precision."""
    from nrd_trt import optimize

    found = optimize(
        sources,
        output,
        data=data,
        **judged.given(),
        sizes=sizes,
        precisions=precisions,
        max_latency_ms=max_latency_ms,
        min_fps=min_fps,
        max_memory_mb=max_memory_mb,
        min_miou=min_miou,
        latencies=latencies,
        export_candidates=export_candidates,
        trials=trials,
        calibration=calibration,
        **ranges.given(),
        **gates.given(),
        **builder.given(),
        **run.given(),
        input_form=input_form,
        resume=resume,
        force=force,
        progress=not out.quiet,
        on_stage=out.on_stage,
        on_candidate=lambda candidate: out.note(f"  {candidate}"),
        on_message=out.on_message,
        describe=shell_line,
        **facts.given(),
    )
    out.show(found, [*_table(found), *_verdict(found)])
    if found.exported is not None:
        for line in _device_lines(found):
            out.note(line)
    common.exit_on(found.failures, f"no {output / 'best.nrd'} was written; the candidates are kept")


def _table(found: Optimized) -> Iterator[str]:
    """Yield a line for each candidate, and below it why it is out."""
    width = max(len(one.name) for one in found.candidates)
    yield f"  {'candidate':<{width}} {'size':>9} {'GMAC':>7} {'ms':>9} {'mIoU':>7} {'images':>6} {'MB':>6}  runner"
    for one in found.candidates:
        mark = "*" if one.name == found.chosen else "+" if one.name in found.front else " "
        yield (
            f"{mark} {one.name:<{width}} {format_size(one.size):>9} {one.gmac:>7.3f} {_number(one.latency_ms, 3):>9} "
            f"{common.fraction(one.miou):>7} {one.images or '–':>6} {_number(one.memory_mb, 0):>6}  {one.runner or '–'}"
        )
        yield from (f"      {reason}" for reason in common.as_typed(one.rejected))
    yield "* chosen   + no other one is faster and more accurate"


def _verdict(found: Optimized) -> Iterator[str]:
    chosen = next((one for one in found.candidates if one.name == found.chosen), None)
    if chosen is not None and found.bundle is not None:
        yield f"chosen: {chosen}, {found.bundle.path}"
        if found.timed == "device":
            yield f"on the device: nrd-trt build {found.bundle.path.name} -o {found.bundle.path.name} --force"
    elif found.exported is not None:
        yield f"candidates: {found.exported}"
    yield f"record: {', '.join(map(str, found.files))}"


def _device_lines(found: Optimized) -> Iterator[str]:
    """Yield what to run on the device, and then here."""
    bundles = " ".join(f"{name}.nrd" for name in found.bundles)
    yield f"On the device, with a copy of {found.exported}, in it:"
    yield f'  for b in {bundles}; do nrd-trt build "$b" -o "$b" --force; done'
    yield f"  nrd-trt benchmark --compare {bundles} --warmup 20 --runs 100 --json > latencies.json"
    yield "Then here the same line with --resume --latencies latencies.json, a budget, and without --export-candidates."


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
