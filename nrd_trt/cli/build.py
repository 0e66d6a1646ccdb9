"""The verb ``build``: checkpoint, ONNX file or bundle to a validated bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nrd_trt.cli import common, groups, quantization
from nrd_trt.specs import PRECISIONS

if TYPE_CHECKING:
    from nrd_trt.engine.bundle import Bundle
    from nrd_trt.engine.compat import ConfigOptions


def build_command(
    *,
    source: Annotated[Path, typer.Argument(metavar="CKPT|m.onnx|NAME.nrd", help="What to build from.")],
    output_path: Annotated[Path, typer.Option("-o", metavar="NAME.nrd", help="Where to write the bundle.")],
    precision: common.PrecisionOption = None,
    form: groups.FormOptions,
    builder: common.Builder = "auto",
    decode: Annotated[
        str,
        typer.Option(
            "--decode", metavar="FORM", help="auto (the plugin where it fits), plugin or onnx (the function)."
        ),
    ] = "auto",
    plugin: common.Plugin = None,
    calibration: quantization.CalibrationOption = None,
    options: quantization.QuantizationOptions,
    data: common.Data = None,
    labels: common.Labels = None,
    ignore_index: common.IgnoreIndex = None,
    fit: common.FitOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="CKPT", help="Reference of a build from an ONNX file.")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option("--compute-capability", metavar="8.6,8.9", help="Target GPUs (TensorRT-RTX).")
    ] = None,
    workspace_mib: Annotated[
        int | None, typer.Option("--workspace-mib", metavar="N", help="Scratch memory of a layer.")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option("--optimization-level", metavar="0-5", help="Builder effort.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", metavar="FILE", help="Read before, written after the build.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="The plan loads in later TensorRT versions too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="The plan loads on other Ampere or later GPUs.")
    ] = False,
    min_agreement: common.MinAgreement = None,
    max_miou_drop: common.MaxMiouDrop = None,
    facts: groups.CheckpointFacts,
    force: common.Force = False,
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Build an engine bundle and prove its masks (default precision fp16)."""
    from nrd_trt.building.build import BuildRequest, build_bundle
    from nrd_trt.engine.compat import stderr_message

    stages = common.Stages(quiet=quiet)
    calibrator = quantization.calibrator_of(
        calibration, options, precision=precision, fit=fit, threads=threads, progress=not quiet
    )
    request = BuildRequest(
        source=source,
        output=output_path,
        form=form.request(),
        precision=common.choice("--precision", precision, PRECISIONS),
        quantization=calibrator.quantization() if calibrator and precision == "int8" else None,
        calibration=calibrator.calibration() if calibrator else None,
        builder=builder,
        decode=decode,
        plugin=plugin,
        checkpoint=checkpoint,
        checkpoint_options=facts.options(),
        data=data,
        labels=labels,
        ignore_index=ignore_index,
        fit=fit,
        config=_config(workspace_mib, optimization_level, version_compatible, hardware_compatible, compute_capability),
        timing_cache=timing_cache,
        min_agreement=min_agreement,
        max_miou_drop=max_miou_drop,
        force=force,
        threads=threads,
        progress=not quiet,
        on_message=stderr_message if verbose else lambda severity, text: None,
        on_stage=stages,
    )
    bundle = build_bundle(request)
    stages.end()
    _finish(bundle, as_json=as_json)


def _config(
    workspace_mib: int | None,
    optimization_level: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    compute_capability: str | None,
) -> ConfigOptions:
    from nrd_trt.engine.compat import ConfigOptions

    capabilities = compute_capability.split(",") if compute_capability else []
    return ConfigOptions(
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        compute_capabilities=tuple(part.strip() for part in capabilities),
    )


def _finish(bundle: Bundle, *, as_json: bool) -> None:
    """Tell what was built; raise `typer.Exit` where a gate failed."""
    if as_json:
        common.print_json(bundle.to_dict())
    else:
        _print(bundle.path, bundle.record.to_dict())
    if not bundle.passed:
        common.note(f"gate failed: {'; '.join(bundle.failures)}; the bundle is kept and marked as not passed")
        raise typer.Exit(common.GATE_FAILED)


def _print(path: Path, facts: dict[str, Any]) -> None:
    validation, builder, precision = facts["validation"], facts["builder"], facts["precision"]
    made = f"{builder['name']} {builder['version']}" if builder["version"] else "ONNX Runtime (no plan)"
    decode = f"decode as {facts['decode']}" if facts["model"]["decode"] else "no per-patch decode"
    typer.echo(f"{path}  ({precision['asked']}, {made}, {decode})")
    if precision["found"]:
        typer.echo("layer types: " + ", ".join(f"{count} {kind}" for kind, count in precision["found"].items()))
    if precision["int8_layers"]:
        typer.echo(f"int8: {len(precision['int8_layers'])} layers")
    common.print_kept(precision["kept_because"])
    typer.echo(
        f"masks: {common.fraction(validation['pixel_agreement'])} of the pixels agree with "
        f"{common.reference_name(validation['reference'])} on {validation['images']} {validation['samples']} "
        f"(run by {validation['runner']}, {validation['arithmetic']} arithmetic"
        f"{'; the plan was built but not run here' if builder['version'] and not validation['plan_run'] else ''})"
    )
    if validation["miou_engine"] is not None:
        typer.echo(
            f"mIoU against labels: engine {common.fraction(validation['miou_engine'])}, "
            f"reference {common.fraction(validation['miou_reference'])}"
        )
    typer.echo("passed" if facts["passed"] else "NOT PASSED")
