"""The verb ``export``: checkpoint to a checked ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nrd_trt.cli import common, groups

if TYPE_CHECKING:
    from nrd_trt.exporting.export import ExportResult


def export_command(
    *,
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help=".pth or .safetensors")],
    output: Annotated[Path, common.output_option("-o", metavar="FILE.onnx", help="Where to write the file.")],
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], common.precision_option(help="Types of the graph; int8 and fp8 only to build.")
    ] = "fp32",
    form: groups.FormOptions,
    inline: Annotated[
        bool, common.output_option("--inline", help="Plain ONNX operators, for OpenVINO itself, Hailo, QNN, Ascend.")
    ] = False,
    data: common.Data = None,
    fit: common.FitOption = None,
    resample: common.ResampleOption = None,
    facts: groups.CheckpointFacts,
    force: common.Force = False,
    threads: common.Threads = None,
    out: groups.OutputOptions,
) -> None:
    """Export a checkpoint to one ONNX file and compare it with PyTorch."""
    from nrd_trt import export

    result = export(
        checkpoint,
        output,
        precision=precision,
        **form.given(),
        inline=inline,
        data=data,
        fit=fit,
        resample=resample,
        force=force,
        threads=threads,
        progress=not out.quiet,
        on_stage=out.on_stage,
        **facts.given(),
    )
    out.show(result, _lines(result))
    common.exit_on(result.parity.failures, "no file was written")


def _lines(result: ExportResult) -> list[str]:
    parity, lines = result.parity, []
    if result.sha256:
        lines.append(f"{result.path}  (opset {result.opset}, sha256 {result.sha256[:12]}…)")
    if parity.max_abs is None:
        lines.append("parity with PyTorch fp32: the exported logits are not finite")
    else:
        lines.append(
            f"parity with PyTorch fp32: {parity.agreement:.6f} of the pixels agree, largest logit difference "
            f"{parity.max_abs:.3g} ({parity.arithmetic} arithmetic)"
        )
    return [*lines, *common.kept_lines(result.kept_fp32)]
