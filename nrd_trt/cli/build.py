"""The verb ``build``: checkpoint, ONNX file or bundle to a validated bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.cli.flags import shell_line

if TYPE_CHECKING:
    from nrd_trt.engine.bundle import Bundle


def build_command(
    *,
    source: Annotated[Path, typer.Argument(metavar="CKPT|m.onnx|NAME.nrd", help="What to build from.")],
    output: Annotated[Path, common.output_option("-o", metavar="NAME.nrd", help="Where to write it.")],
    precision: common.PrecisionOption = None,
    form: groups.FormOptions,
    calibration: groups.CalibrationOption = None,
    quantization: groups.QuantizationOptions,
    data: common.Data = None,
    judged: groups.LabelOptions,
    checkpoint: Annotated[
        Path | None, common.checks_option(metavar="CKPT", help="Reference of a build from an ONNX file or a bundle.")
    ] = None,
    engine: groups.EngineOptions,
    run: groups.BundleOptions,
    gates: groups.GateOptions,
    facts: groups.CheckpointFacts,
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Build an engine bundle and prove its masks (default precision fp16)."""
    from nrd_trt import build

    bundle = build(
        source,
        output,
        precision=precision,
        **form.given(),
        calibration=calibration,
        **quantization.given(),
        data=data,
        **judged.given(),
        checkpoint=checkpoint,
        **engine.given(),
        **run.given(),
        **gates.given(),
        force=force,
        progress=not out.quiet,
        on_stage=out.on_stage,
        on_message=out.on_message,
        describe=shell_line,
        **facts.given(),
    )
    out.show(bundle, _lines(bundle))
    common.exit_on(bundle.failures, common.MARKED)


def _lines(bundle: Bundle) -> list[str]:
    record = bundle.record
    validation, builder, precision = record.validation, record.builder, record.precision
    made = f"{builder.name} {builder.version}" if builder.version else "ONNX Runtime (no plan)"
    decode = f"decode as {record.decode}" if record.model.decode else "no per-patch decode"
    lines = common.headline(validation.warnings)
    lines += [f"{bundle.path}  ({precision.asked}, {made}, {decode})"]
    if precision.found:
        lines.append("layer types: " + ", ".join(f"{count} {kind}" for kind, count in precision.found.items()))
    if precision.quantized_layers:
        lines.append(f"{precision.asked}: {len(precision.quantized_layers)} layers")
    lines += common.kept_lines(precision.kept_because)
    run = common.run_by(validation.runner, validation.arithmetic, validation.plan_ran if builder.version else None)
    lines.append(
        f"masks: {common.fraction(validation.pixel_agreement)} of the pixels agree with "
        f"{common.reference_name(validation.reference)} on {validation.images} {validation.samples} "
        f"(run by {run})"
    )
    if validation.miou_engine is not None:
        lines.append(
            f"mIoU against labels: engine {common.fraction(validation.miou_engine)}, "
            f"reference {common.fraction(validation.miou_reference)}"
        )
    if finer := common.finer_gates(validation, validation.gates):
        lines.append("also gated: " + "; ".join(f"{name} {figure}" for name, figure in finer))
    if validation.structure is not None:
        lines.append(f"structure: {common.structure_line(validation.structure)}")
    return [*lines, "passed" if bundle.passed else "NOT PASSED"]
