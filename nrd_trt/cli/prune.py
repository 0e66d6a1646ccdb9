"""The verb ``prune``: a trained network without the channels that matter least."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nrd_trt.cli import groups
from nrd_trt.cli.train import Data, RunFolder, RunOptions
from nrd_trt.specs import Importance


def prune_command(
    *,
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help=".pth or .safetensors of an NRD network.")],
    data: Data,
    output: RunFolder,
    keep: Annotated[float, typer.Option(metavar="0-1", help="Share of the multiply-adds that may stay.")] = 0.6,
    importance: Annotated[
        Importance,
        typer.Option(help="What ranks channels: what the loss would change by, or the norms of their weights."),
    ] = "taylor",
    round_to: Annotated[int, typer.Option(metavar="8|16", help="Numbers of channels become multiples of it.")] = 8,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="How to fine-tune (default what the checkpoint names).")
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill/--no-distill", help="The network as it was, or --teacher, guides the pruned one.")
    ] = True,
    options: RunOptions,
    out: groups.OutputOptions,
) -> None:
    """Remove the channels that matter least from a trained network, and train on what is left."""
    from nrd_trt import prune

    result = prune(
        checkpoint,
        output,
        data,
        keep=keep,
        importance=importance,
        round_to=round_to,
        recipe=recipe,
        distill=distill,
        **options.given(),
        progress=not out.quiet,
        on_stage=out.on_stage,
    )
    for note in result.notes:
        out.note(note)
    out.show(
        result,
        [
            f"{result.macs_before / 1e9:.3f} -> {result.macs_after / 1e9:.3f} GMAC "
            f"({result.macs_after / result.macs_before:.1%})",
            f"mIoU {result.miou_before:.4f} -> {result.miou_after:.4f}: {result.checkpoint}",
        ],
    )
