"""The verb ``train`` as a function: one run from a recipe to its best checkpoint. PyTorch only on use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrd_trt.model import require_torch
from nrd_trt.specs import Arithmetic, Device

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.training.recipes import Recipe, RecipeChanges


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Outcome of a run.

    Attributes:
        best_miou: Highest validation mIoU of the run, in 0-1.
        teacher_miou: The teacher's mIoU on the same images; None for a run without one.
        checkpoint: The file of the weights that reached it.
        notes: What the user should know, such as why there is no picture of the curves.
    """

    best_miou: float
    teacher_miou: float | None
    checkpoint: Path
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; those of a teacher where there was one."""
        taught = {} if self.teacher_miou is None else {"teacher_miou": self.teacher_miou}
        return {"best_miou": self.best_miou, **taught, "checkpoint": str(self.checkpoint)}


def train(
    recipe: str | Recipe,
    data: Path | str | Sequence[Path | str],
    output: Path | str,
    *,
    init_encoder: Path | str | None = None,
    teacher: Path | str | None = None,
    device: Device = "auto",
    arithmetic: Arithmetic = "auto",
    workers: int = 0,
    accumulate: int = 1,
    threads: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    **changes: Unpack[RecipeChanges],
) -> TrainResult:
    """Train a network and keep the checkpoint with the best validation mIoU.

    Under ``torchrun`` every process calls this with the same arguments; the first one writes the files.

    Args:
        recipe: Name of a recipe in `nrd_trt.training.recipes.RECIPES`, or a recipe.
        data: Folders of labelled images in a layout that `nrd_trt.data.datasets.find_split` knows, or ``"synthetic"``
            for procedural street scenes. Several are mixed.
        output: Folder to write, made if absent.
        init_encoder: Checkpoint whose encoder weights training starts from; None starts from random ones.
        teacher: Checkpoint of a trained network of the same classes, of any encoder and head, that draws every batch
            too: the loss also has the distance of the logits, at a quarter of the image's height and width, from its
            own, and of the encoder's last features through a 1x1 convolution that is dropped after training.
        device: ``"auto"`` takes a GPU if there is one.
        arithmetic: Types of the products; ``"auto"`` is bfloat16 on a GPU and float32 on a CPU.
        workers: Processes that prepare batches; 0 prepares them between the steps.
        accumulate: Micro-batches per optimiser step, on every process.
        threads: CPU threads of PyTorch; None leaves the choice to PyTorch.
        resume: Go on with the run in `output`, which must have had the same recipe, teacher and split of its batches.
        force: Replace the run in `output`.
        progress: Show a bar on stderr.
        **changes: What takes the place of the recipe's own: ``head``, ``output_stride`` (with the dilations in
            proportion), ``steps``, ``seed``, ``evaluations``, ``synthetic_share``, ``encoder_rate`` or
            ``controller_init``; see `Recipe`.

    Returns:
        The best validation mIoU and the checkpoint that reached it.

    Raises:
        MissingDependencyError: PyTorch is not installed.
        ConfigError: An argument is invalid, the teacher has other classes, the data are unusable or the loss is not
            finite; or `output` holds a run and neither `resume` nor `force` is given; or it holds another run than the
            one to resume; or the batch cannot be split.
        ShapeError: A label has another size than its image.
        CheckpointError: The run's state file, the encoder's or the teacher's checkpoint is unusable.
    """
    require_torch("training")
    from nrd_trt.training.loop import Execution, run_recipe
    from nrd_trt.training.recipes import adapted, find_recipe

    chosen = adapted(find_recipe(recipe) if isinstance(recipe, str) else recipe, **changes)
    how = Execution(
        device=device,
        arithmetic=arithmetic,
        workers=workers,
        accumulate=accumulate,
        threads=threads,
        progress=progress,
    )
    folders = [data] if isinstance(data, Path | str) else data
    encoder = None if init_encoder is None else Path(init_encoder)
    return run_recipe(
        chosen,
        list(map(Path, folders)),
        Path(output),
        how,
        init_encoder=encoder,
        teacher=None if teacher is None else Path(teacher),
        resume=resume,
        force=force,
    )
