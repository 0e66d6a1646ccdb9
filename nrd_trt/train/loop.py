"""The training loop: optimisation, validation, and the files of a run that can go on after an interruption.

Owns the output folder: ``best.safetensors`` and ``last.safetensors`` (the weights), ``state.pt`` (everything
that ``resume`` needs) and ``log.csv``. Samples come from `nrd_trt.train.samples`, numbers from
`nrd_trt.train.recipes`.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from nrd_trt.data.folders import IGNORE
from nrd_trt.data.preprocessing import fit_image, normalise
from nrd_trt.decode.reference import upsample
from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.files import atomic_file
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.network import NrdSegmentor
from nrd_trt.specs import InputShape
from nrd_trt.train.recipes import Recipe, find_recipe
from nrd_trt.train.samples import Pair, SampleStream, class_weights, read_pair, split_pairs
from nrd_trt.validate.masks import confusion_matrix, mean_iou

BEST, LAST, STATE, LOG = "best.safetensors", "last.safetensors", "state.pt", "log.csv"
_LOG_COLUMNS = ("step", "loss", "lr", "seconds", "miou")
_LOG_EVERY = 20
_SAVE_EVERY = 500


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Outcome of a run.

    Attributes:
        best_miou: Highest validation mIoU of the run, in 0-1.
        checkpoint: The weights that reached it.
    """

    best_miou: float
    checkpoint: Path


def train(
    recipe: Recipe | str,
    data: Path,
    out: Path,
    *,
    steps: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    resume: bool = False,
    force: bool = False,
    bf16: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a network from scratch on the CPU.

    Args:
        recipe: A recipe or its name.
        data: Labelled images; see `split_pairs` for the layouts.
        out: Folder to write, made if absent.
        steps: Optimiser steps in place of the recipe's; the learning rate's decay ends with them.
        seed: In place of the recipe's.
        threads: CPU threads for PyTorch; its own choice when None.
        resume: Go on with the run in `out`, which must have had the same recipe, steps and seed.
        force: Replace the run in `out`.
        bf16: Multiply in bfloat16, faster where the processor has instructions for it.
        progress: Show a progress bar on a terminal's stderr.

    Returns:
        The best validation mIoU and the checkpoint that reached it.

    Raises:
        ConfigError: The recipe is unknown, the data unusable or the loss not finite; or `out` holds a run and
            neither `resume` nor `force` is given; or it holds another run than the one to resume.
        ShapeError: A label has another size than its image.
        CheckpointError: The run's state file is unreadable.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    changes = {"steps": steps, "seed": seed}
    recipe = replace(recipe, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
    training, validation = split_pairs(data)
    _prepare(out, resume=resume, force=force)
    if threads is not None:
        torch.set_num_threads(threads)
    run = _Run(recipe, training, out, bf16=bf16)
    if resume:
        run.restore()
    run.complete(validation, progress=progress)
    return TrainResult(best_miou=run.best, checkpoint=out / BEST)


def validation_matrix(model: NrdSegmentor, pairs: Sequence[Pair]) -> np.ndarray:
    """Count validation pixels by (label class, predicted class).

    Images are resized to the model's own size and the masks back to the image's size (nearest).

    Args:
        model: The network; left in evaluation mode.
        pairs: ``(image, label)`` paths.

    Returns:
        ``(K, K) int64``.

    Raises:
        ConfigError: A file is unreadable, or a label has a value out of range.
        ShapeError: An image and its label differ in size.
    """
    model.eval()
    info, classes = model.info, model.config.num_classes
    matrix = np.zeros((classes, classes), np.int64)
    for pair in pairs:
        image, label = read_pair(pair, info)
        matrix += confusion_matrix(label, predict_mask(model, image), classes)
    return matrix


def predict_mask(model: NrdSegmentor, image: np.ndarray) -> np.ndarray:
    """Return the mask ``(H, W) uint8`` of an image ``(H, W, 3) uint8`` RGB, run at the model's own size."""
    fitted = fit_image(image, InputShape.static(model.info.size_hw), model.info)
    mask = model.predict(_channels_last(normalise(fitted.image[None], model.info)))[0]
    return fitted.restore(mask.numpy().astype(np.uint8))


class _Run:
    """One run: network, optimiser, and how far it has come."""

    def __init__(self, recipe: Recipe, pairs: Sequence[Pair], out: Path, *, bf16: bool) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.bf16 = recipe, out, bf16
        model = NrdSegmentor(recipe.config, recipe.info)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(recipe, self.model)
        self.stream = SampleStream(recipe, pairs)
        self.weights = torch.from_numpy(class_weights(pairs, recipe.info)) if recipe.weigh_classes else None
        self.step, self.best = 0, -1.0

    def complete(self, validation: Sequence[Pair], *, progress: bool) -> None:
        """Train to the end, validating and saving on the way."""
        losses: list[float] = []
        start, steps = time.monotonic(), self.recipe.steps
        bar = tqdm(total=steps, initial=self.step, unit="step", delay=2, disable=None if progress else True)
        with bar, _Log(self.out / LOG, self.step) as log:
            while self.step < steps:
                losses.append(self.advance())
                bar.update()
                validated = self.step == steps or self.step % math.ceil(steps / self.recipe.evaluations) == 0
                miou = self.validate(validation) if validated else None
                if validated or self.step % _SAVE_EVERY == 0:
                    self.save()
                if validated or self.step % _LOG_EVERY == 0:
                    loss, losses = sum(losses) / len(losses), []
                    bar.set_postfix(loss=f"{loss:.3f}", best=f"{self.best:.3f}")
                    lr = self.recipe.lr_at(self.step - 1)
                    log.write(self.step, loss, lr, time.monotonic() - start, miou)

    def advance(self) -> float:
        """Make one optimiser step and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.step)
        self.model.train()
        loss = self._loss(*self.stream.batch(self.step))
        if not math.isfinite(loss.item()):
            raise ConfigError(
                f"recipe {self.recipe.name}: expected a finite loss, got {loss.item()} at step {self.step}; "
                "lower the learning rate, or check the labels."
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _loss(self, images: np.ndarray, labels: np.ndarray) -> Tensor:
        """Return the cross-entropy of the logits, enlarged to the labels' size, over all counted pixels."""
        target = torch.from_numpy(labels).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(_channels_last(images))
        logits = upsample(logits.float(), self.recipe.config.decode.upsample)
        if not (target != IGNORE).any():
            return logits.sum() * 0  # the mean over no pixel would be NaN
        return functional.cross_entropy(logits, target, self.weights, ignore_index=IGNORE)

    def validate(self, pairs: Sequence[Pair]) -> float:
        """Return the mIoU on `pairs`; write the best weights so far."""
        miou = mean_iou(validation_matrix(self.model, pairs))
        if miou is None:
            raise ConfigError("validation labels: expected pixels of some class, got ignored ones only; check --data.")
        if miou > self.best:
            self.best = miou
            save_checkpoint(self.model, self.out / BEST, extra=self._facts(miou))
        return miou

    def save(self) -> None:
        """Write the latest weights, and the state to resume from."""
        save_checkpoint(self.model, self.out / LAST, extra=self._facts(None))
        state = {
            "recipe": _recipe_text(self.recipe),
            "step": self.step,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        with atomic_file(self.out / STATE) as temporary:
            torch.save(state, temporary)

    def restore(self) -> None:
        """Take up the state that `save` wrote; raise `ConfigError` if it belongs to another run."""
        state = _read_state(self.out / STATE)
        if state["recipe"] != _recipe_text(self.recipe):
            differences = _differences(state["recipe"], self.recipe)
            raise ConfigError(f"{self.out / STATE}: {differences}; resume with the same values.")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        self.step, self.best = state["step"], state["best"]

    def _facts(self, miou: float | None) -> dict[str, str]:
        facts = {"recipe": self.recipe.name, "step": str(self.step), "seed": str(self.recipe.seed)}
        return facts if miou is None else {**facts, "miou": f"{miou:.4f}"}


class _Log:
    """The CSV log; on a resumed run, rows after the resumed step are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        rows = list(csv.reader(path.read_text().splitlines())) if step and path.is_file() else []
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(_LOG_COLUMNS)
        self._writer.writerows(row for row in rows[1:] if int(row[0]) <= step)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, step: int, loss: float, lr: float, seconds: float, miou: float | None) -> None:
        row = (step, f"{loss:.4f}", f"{lr:.2e}", f"{seconds:.0f}", "" if miou is None else f"{miou:.4f}")
        self._writer.writerow(row)
        self._file.flush()


def _channels_last(images: np.ndarray) -> Tensor:
    """Return ``(B, 3, H, W)`` in the memory order that convolutions on the CPU are fastest with."""
    return torch.from_numpy(images).contiguous(memory_format=torch.channels_last)


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)


def _prepare(out: Path, *, resume: bool, force: bool) -> None:
    """Make the folder; refuse to mix two runs in it."""
    if resume and force:
        raise ConfigError("--resume and --force exclude each other; give one of them.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: expected a folder to write to, got a file; choose another name.")
    present = [out / name for name in (STATE, BEST, LAST, LOG) if (out / name).exists()]
    if resume and out / STATE not in present:
        raise ConfigError(f"{out / STATE}: expected the state of an earlier run, found none; leave out --resume.")
    if present and not (resume or force):
        raise ConfigError(f"{present[0]}: already exists; give --resume, --force, or another folder.")
    out.mkdir(parents=True, exist_ok=True)
    for path in present if force else ():
        path.unlink()


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except Exception as exc:  # torch.load raises many types on damaged files
        first_line = (str(exc) or type(exc).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{path}: not a readable training state ({first_line}); start again with --force."
        ) from exc


def _recipe_text(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)


def _differences(stored: str, recipe: Recipe) -> str:
    """Say in which values a stored recipe differs from the one asked for."""
    old, new = json.loads(stored), json.loads(_recipe_text(recipe))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return "the run has " + ", ".join(f"{key}={old.get(key)} (got {new.get(key)})" for key in keys)
