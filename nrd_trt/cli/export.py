"""The verb ``export``: checkpoint to a checked ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.specs import Precision

_PRECISIONS = ("fp32", "fp16", "bf16")  # int8 needs calibration: see `build`


def export_command(
    *,
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help=".pth or .safetensors")],
    output_path: Annotated[Path, typer.Option("-o", metavar="FILE.onnx", help="Where to write the file.")],
    precision: common.PrecisionOption = None,
    form: groups.FormOptions,
    data: common.Data = None,
    fit: common.FitOption = None,
    facts: groups.CheckpointFacts,
    force: common.Force = False,
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Export a checkpoint to one ONNX file and compare it with PyTorch (default precision fp32)."""
    from nrd_trt.building.request import BuildRequest, samples_for
    from nrd_trt.building.sources import export_checkpoint
    from nrd_trt.exporting.export import write_onnx
    from nrd_trt.files import check_absent, sha256_file
    from nrd_trt.model import load_trained

    form_request = form.request()
    chosen: Precision = common.choice("--precision", precision, _PRECISIONS) or "fp32"
    check_absent(output_path, force=force)
    options = facts.options()
    request = BuildRequest(
        source=checkpoint,
        output=output_path,
        form=form_request,
        checkpoint_options=options,
        data=data,
        fit=fit,
        threads=threads,
    )
    model = load_trained(checkpoint, options)
    samples = samples_for(request, form_request.shape(model.info.size_hw), model.info)
    stages = common.Stages(quiet=quiet)
    stages(f"exporting {model.config.encoder} to ONNX, {chosen}")
    exported = export_checkpoint(request, model, samples, chosen)
    stages.end()
    parity = exported.parity
    if parity.passed:
        write_onnx(exported, output_path)
    result = {
        "path": str(output_path),
        "sha256": sha256_file(output_path) if parity.passed else None,
        "opset": next(entry.version for entry in exported.model.opset_import if not entry.domain),
        "parity": asdict(parity),
    }
    if as_json:
        common.print_json(result)
    else:
        _print(result, exported.typed.kept_fp32, passed=parity.passed)
    if not parity.passed:
        output_path.unlink(missing_ok=True)  # with --force: an earlier file must not pass for this one
        common.note(f"gate failed: {'; '.join(parity.failures)}; no file was written")
        raise typer.Exit(common.GATE_FAILED)


def _print(result: dict[str, object], kept: Mapping[str, str], *, passed: bool) -> None:
    parity: dict[str, object] = result["parity"]  # type: ignore[assignment]
    if passed:
        typer.echo(f"{result['path']}  (opset {result['opset']}, sha256 {str(result['sha256'])[:12]}…)")
    typer.echo(
        f"parity with PyTorch fp32: {parity['agreement']:.6f} of the pixels agree, largest logit difference "
        f"{parity['max_abs']:.3g} ({parity['arithmetic']} arithmetic)"
        if parity["max_abs"] is not None
        else "parity with PyTorch fp32: the exported logits are not finite"
    )
    common.print_kept(kept)
