"""The verb ``prune`` as a function: a trained network without the channels that matter least, trained on.

PyTorch on use only; `nrd_trt.training.pruning` chooses the channels, and the fine-tuning is a run as of ``train``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrd_trt.errors import ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.model import load_model, require_torch
from nrd_trt.progress import OnStage, silent
from nrd_trt.specs import Arithmetic, Device, Importance, Resample

if TYPE_CHECKING:
    from nrd_trt.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """Outcome of a pruning.

    Attributes:
        macs_before: Multiply-adds of the network as it was, at its own size.
        macs_after: Those of the pruned one.
        miou_before: mIoU of the network as it was on the validation images, in 0-1.
        miou_after: That of the pruned and fine-tuned one, the highest of its run.
        checkpoint: The file of the weights that reached it.
        notes: What the user should know, such as why there is no picture of the curves.
    """

    macs_before: int
    macs_after: int
    miou_before: float
    miou_after: float
    checkpoint: Path
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = ("macs_before", "macs_after", "miou_before", "miou_after")
        return {**{name: getattr(self, name) for name in names}, "checkpoint": str(self.checkpoint)}


def prune(
    checkpoint: Path | str,
    output: Path | str,
    data: Path | str | Sequence[Path | str],
    *,
    keep: float = 0.6,
    importance: Importance = "taylor",
    round_to: int = 8,
    recipe: str | Recipe | None = None,
    distill: bool = True,
    teacher: Path | str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    evaluations: int | None = None,
    synthetic_share: float | None = None,
    resample: Resample | None = None,
    device: Device = "auto",
    arithmetic: Arithmetic = "auto",
    workers: int = 0,
    accumulate: int = 1,
    threads: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    on_stage: OnStage = silent,
) -> PruneResult:
    """Remove the channels of a trained NRD network that matter least, and train on what is left.

    Args:
        checkpoint: The trained network; pruned ones can be pruned again. It stays as it is.
        output: Folder to write the run of the fine-tuning to, as `nrd_trt.train` does; made if absent.
        data: Folders of labelled images, as for `nrd_trt.train`.
        keep: Share of the multiply-adds that may stay, above 0 and below 1.
        importance: What ranks channels: ``"taylor"``, how much the loss would change without one, to first order, on
            some batches of `data`; or ``"group_norm"``, the norm of the weights that give and take it.
        round_to: Every number of channels that changes becomes a multiple of this: 8, or 16 for int8.
        recipe: Recipe of the fine-tuning, a name or a recipe; None takes the one that the checkpoint was trained by.
            Learning rates are half of the recipe's.
        distill: Let a trained network guide the fine-tuning.
        teacher: Its checkpoint; None takes the network as it was before.
        steps: Optimiser steps; None takes a third of the recipe's.
        seed: In place of the recipe's.
        evaluations: How often to validate, in place of the recipe's.
        synthetic_share: Share in 0-1 of procedural scenes, in place of the recipe's.
        resample: How validation images are scaled, in place of the recipe's.
        device: Where to train; ``"auto"`` takes a GPU if there is one.
        arithmetic: Types of the products; ``"auto"`` is bfloat16 on a GPU and float32 on a CPU.
        workers: Processes that prepare batches; 0 prepares them between the steps.
        accumulate: Micro-batches per optimiser step.
        threads: CPU threads of PyTorch; None leaves the choice to PyTorch.
        resume: Go on with the run in `output`, which must have had the same checkpoint, share, teacher and recipe.
        force: Replace the run in `output`.
        progress: Show a bar on stderr.
        on_stage: Receives one line when a stage begins.

    Returns:
        Multiply-adds and mIoU before and after, and the checkpoint.

    Raises:
        MissingDependencyError: PyTorch or torch-pruning is not installed.
        ConfigError: An argument is invalid, the head is none of NRD's, the share cannot be reached, the data are
            unusable, or `output` holds another run.
        ShapeError: A label has another size than its image.
        CheckpointError: The checkpoint, the teacher's or the run's state is unusable.
    """
    require_torch("pruning")
    from nrd_trt.training.loop import Execution, run_recipe, score
    from nrd_trt.training.pruning import cost, pruned
    from nrd_trt.training.recipes import Pruning, fine_tuning
    from nrd_trt.training.record import STATE, prepare_folder, read_config
    from nrd_trt.training.samples import Samples

    source, out = Path(checkpoint), Path(output)
    if teacher is not None and not distill:
        raise ConfigError("teacher= and distill=False exclude each other; give one of them.")
    model = load_model(source)
    if not model.config.is_nrd:
        raise ConfigError(
            f"{source}: expected an NRD head, got {model.config.head}, whose channels are not pruned; give the "
            "checkpoint of an NRD network."
        )
    run = Execution(
        device=device,
        arithmetic=arithmetic,
        workers=workers,
        accumulate=accumulate,
        threads=threads,
        progress=progress,
    )
    run.set_threads()
    how = Pruning(source_sha256=sha256_file(source), keep=keep, importance=importance, round_to=round_to)
    plain = fine_tuning(
        _recipe(source, recipe),
        steps=steps,
        seed=seed,
        evaluations=evaluations,
        synthetic_share=synthetic_share,
        resample=resample,
    )
    plain = replace(plain, config=model.config, info=model.info, pruning=how)
    prepare_folder(out, resume=resume, force=force)
    samples = Samples(plain, folders := [Path(folder) for folder in ([data] if isinstance(data, Path | str) else data)])
    start = None
    if resume and (out / STATE).is_file():
        config = read_config(out / STATE)
    else:
        on_stage(f"choosing channels by {importance}")
        start = pruned(model, how, samples)
        config = start.config
        share = cost(start) / cost(model)
        on_stage(f"{share:.1%} of the multiply-adds stay; mIoU {score(start, samples):.4f} before fine-tuning")
    trained = run_recipe(
        replace(plain, config=config),
        folders,
        out,
        run,
        start=start,
        teacher=Path(teacher or source) if distill else None,
        resume=resume,
        force=force,
    )
    before = trained.teacher_miou if distill and teacher is None else None
    return PruneResult(
        macs_before=cost(model),
        macs_after=cost(load_model(trained.checkpoint)),
        miou_before=score(model, samples) if before is None else before,
        miou_after=trained.best_miou,
        checkpoint=trained.checkpoint,
        notes=trained.notes,
    )


def _recipe(source: Path, recipe: str | Recipe | None) -> Recipe:
    """Return the recipe that was given, or the one that a checkpoint was trained by."""
    from nrd_trt.model.checkpoint import read_metadata
    from nrd_trt.training.recipes import RECIPES, find_recipe

    if recipe is not None:
        return find_recipe(recipe) if isinstance(recipe, str) else recipe
    name = read_metadata(source).get("recipe")
    if name not in RECIPES:
        raise ConfigError(
            f"{source}: expected a checkpoint that names the recipe it was trained by, got {name or 'none'}; give "
            f"recipe= one of {', '.join(RECIPES)}."
        )
    return RECIPES[name]
