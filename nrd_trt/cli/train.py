"""The verb ``train``: options in, one run, its result out. Imports PyTorch only when it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.specs import Arithmetic, ControllerInit, Device, Head, Resample


@dataclass(frozen=True, kw_only=True)
class RunOptions(groups.Group):
    """How a run is done, of whatever network."""

    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None
    evaluations: Annotated[int | None, typer.Option(min=1, help="How often to validate, instead of the recipe's.")] = (
        None
    )
    synthetic_share: Annotated[
        float | None, typer.Option(metavar="0-1", help="Share of procedural scenes, instead of the recipe's.")
    ] = None
    resample: Annotated[
        Resample | None, typer.Option(help="How validation images are scaled, instead of the recipe's.")
    ] = None
    teacher: Annotated[
        Path | None, typer.Option(metavar="CKPT", help="A trained network of the same classes that guides this one.")
    ] = None
    device: Annotated[Device, typer.Option(help="auto takes a GPU if there is one.")] = "auto"
    arithmetic: Annotated[Arithmetic, typer.Option(help="auto is bf16 on a GPU and fp32 on a CPU.")] = "auto"
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")] = 0
    accumulate: Annotated[int, typer.Option(min=1, help="Micro-batches per optimiser step.")] = 1
    threads: common.Threads = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False
    force: common.Force = False


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(groups.Group):
    """What is trained, where it is not what the recipe says."""

    head: Annotated[Head | None, typer.Option(help="Instead of the recipe's.")] = None
    output_stride: common.OutputStride = None
    controller_init: Annotated[
        ControllerInit | None, typer.Option(help="Instead of the recipe's; perceptron is for short runs.")
    ] = None
    init_encoder: Annotated[
        Path | None, typer.Option(metavar="CKPT", help="Start from this encoder, e.g. mmseg's ImageNet one.")
    ] = None
    encoder_rate: Annotated[
        float | None, typer.Option(help="Share of the learning rates for the encoder; below 1 for a trained one.")
    ] = None


Data = Annotated[
    list[Path],
    typer.Option(
        metavar="DIR",
        help="Labelled images: train/ and val/ (CamVid), images/ and labels/, or the layout of Cityscapes, ADE20K "
        "or Pascal Context; 'synthetic' for procedural scenes. Several are mixed.",
    ),
]
RunFolder = Annotated[Path, typer.Option("-o", metavar="DIR", help="Where to write the run.")]


def train_command(
    *,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="What to train, e.g. camvid_mobilenetv2.")],
    data: Data,
    output: RunFolder,
    network: NetworkOptions,
    options: RunOptions,
    out: groups.OutputOptions,
) -> None:
    """Train a network and keep the checkpoint with the best validation mIoU.

    On several GPUs: torchrun --nproc-per-node N scripts/train.py with the same options.
    """
    from nrd_trt.training.train import train

    result = train(
        recipe,
        data,
        output,
        **network.given(),
        **options.given(),
        progress=not out.quiet,
    )
    if int(os.environ.get("RANK", "0")):
        return  # one process of a run speaks for all
    for note in result.notes:
        out.note(note)
    teacher = "" if result.teacher_miou is None else f" (the teacher's: {result.teacher_miou:.4f})"
    out.show(result, [f"best mIoU {result.best_miou:.4f}{teacher}: {result.checkpoint}"])
