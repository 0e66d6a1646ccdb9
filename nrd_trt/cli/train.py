"""The verb ``train``: options in, one run, its result out. Imports PyTorch only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nrd_trt.cli import common


def train_command(
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME", help="What to train, e.g. camvid_mobilenetv2.")],
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="Holds train/ and val/, or images/ and labels/."),
    ],
    out: Annotated[Path, typer.Option("-o", metavar="DIR", help="Where to write the run.")],
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the recipe's.")] = None,
    threads: common.Threads = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Multiply in bfloat16, faster where the processor can.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    force: common.Force = False,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Train a network from scratch and keep the checkpoint with the best validation mIoU."""
    from nrd_trt.train.loop import train

    result = train(
        recipe,
        data,
        out,
        steps=steps,
        seed=seed,
        threads=threads,
        resume=resume,
        force=force,
        bf16=bf16,
        progress=not quiet,
    )
    if as_json:
        common.print_json({"best_miou": result.best_miou, "checkpoint": str(result.checkpoint)})
    else:
        typer.echo(f"best mIoU {result.best_miou:.4f}: {result.checkpoint}")
