"""The files of a run besides its weights: the state to resume from, the CSV log and the picture of the curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrd_trt.errors import CheckpointError, ConfigError, MissingDependencyError
from nrd_trt.files import PNG, atomic_file, check_file, check_folder
from nrd_trt.json_files import decode_json
from nrd_trt.model.config import NetworkConfig
from nrd_trt.model.pickles import check_pickles
from nrd_trt.optional import require
from nrd_trt.training.recipes import Recipe

BEST, LAST, STATE, LOG, CURVES = "best.safetensors", "last.safetensors", "state.pt", "log.csv", "curves.png"
_COLUMNS = ("step", "loss", "lr", "seconds", "miou")
_MARKS = {STATE: b"PK", BEST: b"__metadata__", LAST: b"__metadata__", LOG: ",".join(_COLUMNS).encode(), CURVES: PNG}
"""What each file of a run begins with, or soon has."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run goes on from.

    Attributes:
        step: Optimiser steps made.
        best: Highest validation mIoU so far; -1 before the first validation.
        objective: State dict of the network with its auxiliary head.
        average: State dict of the averaged network.
        optimizers: State dicts of the optimisers.
        scaler: State dict of the gradient scaler.
        torch_rng: State of PyTorch's generator on the CPU.
        teacher_sha256: Hash of the teacher's checkpoint; None for a run without one.
        teacher_miou: The teacher's mIoU on the validation images.
    """

    step: int
    best: float
    objective: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    scaler: dict[str, Any]
    torch_rng: Tensor
    teacher_sha256: str | None = None
    teacher_miou: float | None = None


@dataclass(frozen=True, kw_only=True)
class _StoredRecipe:
    """What is read of a state's recipe before there is one to compare it with."""

    config: NetworkConfig


def prepare_folder(out: Path, *, resume: bool, force: bool) -> None:
    """Make the folder; refuse to mix two runs in it. With `force` the run in it stays until `clear_folder`.

    Raises:
        ConfigError: `out` holds a run and neither `resume` nor `force` is given, or a run without the state to resume
            from; or there is no folder to resume in.
    """
    if resume and force:
        raise ConfigError("resume= and force= exclude each other; give one of them.")
    check_folder(out)
    present = _present(out)
    if resume and not out.is_dir():
        raise ConfigError(f"{out}: expected the folder of an earlier run, found none; leave out resume=.")
    # A run that was killed before its first state has written nothing but the head of its log: it starts again.
    if resume and out / STATE not in present and set(present) - {out / LOG}:
        raise ConfigError(
            f"{out / STATE}: expected the state of an earlier run, found none; give force=True in place of resume=."
        )
    if present and not (resume or force):
        raise ConfigError(f"{present[0]}: already exists; give resume=True, force=True, or another folder.")
    for path in present if force else ():
        check_file(path, force=True, marks=[_MARKS[path.name]])
    out.mkdir(parents=True, exist_ok=True)


def clear_folder(out: Path) -> None:
    """Remove the files of an earlier run."""
    for path in _present(out):
        path.unlink()


def _present(out: Path) -> list[Path]:
    return [path for name in _MARKS if (path := out / name).exists() or path.is_symlink()]


def write_state(path: Path, recipe: Recipe, parts: int, state: RunState) -> None:
    """Write what resuming needs, atomically.

    Args:
        path: Target; replaced.
        recipe: The run's recipe.
        parts: Into how many parts a step's batch is split, over ranks and micro-batches.
        state: State of the run.
    """
    with atomic_file(path) as temporary:
        torch.save({"recipe": _text(recipe), "parts": parts, **vars(state)}, temporary)


def read_state(path: Path, recipe: Recipe, parts: int, teacher_sha256: str | None = None) -> RunState:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: The file is damaged.
        ConfigError: It belongs to another recipe or teacher, or to another split of the batch.
    """
    with readable(path):
        check_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = RunState(**{field.name: content[field.name] for field in fields(RunState) if field.name in content})
        # What a recipe of an earlier version could not say, it had by default.
        stored = _defaults(Recipe) | decode_json(content["recipe"], dict[str, Any])
        stored["config"] = _defaults(NetworkConfig) | stored["config"]
        stored |= {"parts": content["parts"], "teacher_sha256": state.teacher_sha256}
    asked = {**json.loads(_text(recipe)), "parts": parts, "teacher_sha256": teacher_sha256}
    if differing := [key for key in sorted(stored.keys() | asked.keys()) if stored.get(key) != asked.get(key)]:
        listed = ", ".join(f"{key}={stored.get(key)} (got {asked.get(key)})" for key in differing)
        raise ConfigError(f"{path}: the run has {listed}; resume with the same values.")
    with readable(path):
        if not all(
            isinstance(miou, float) for miou in (state.best, state.teacher_miou or 0.0)
        ) or state.step not in range(recipe.steps + 1):
            raise ValueError(f"step {state.step} of {recipe.steps}, best mIoU {state.best}")
    return state


def read_config(path: Path) -> NetworkConfig:
    """Return the configuration of the network that a state belongs to.

    Raises:
        CheckpointError: The file is damaged.
    """
    with readable(path):
        check_pickles(path)
        text = torch.load(path, map_location="cpu", weights_only=True)["recipe"]
        return decode_json(text, _StoredRecipe).config


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise `CheckpointError` for whatever a damaged state makes PyTorch raise in the block."""
    try:
        yield
    except Exception as exc:
        first_line = (str(exc) or type(exc).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{path}: not a readable training state ({first_line}); start again with force=True."
        ) from exc


def _defaults(kind: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def _text(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)


class Log:
    """The CSV log; on a resumed run, rows after the resumed step are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        rows = list(csv.reader(path.read_text().splitlines())) if step and path.is_file() else []
        self._rows = [row for row in rows[1:] if len(row) == len(_COLUMNS) and int(row[0]) <= step]
        self.seconds = float(self._rows[-1][3]) if self._rows else 0.0
        with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *self._rows])
        self._file = path.open("a", newline="")
        self._writer = csv.writer(self._file)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, step: int, loss: float, lr: float, seconds: float, miou: float | None) -> None:
        """Add a row; it is on disk at once."""
        row = [str(step), f"{loss:.4f}", f"{lr:.2e}", f"{seconds:.0f}", "" if miou is None else f"{miou:.4f}"]
        self._rows.append(row)
        self._writer.writerow(row)
        self._file.flush()

    def draw(self, path: Path, title: str) -> str | None:
        """Draw loss and validation mIoU over the steps.

        Args:
            path: ``.png``; replaced.
            title: First line of the picture.

        Returns:
            Why nothing was drawn, where Matplotlib is absent.
        """
        try:
            figure = require("matplotlib.figure", extra="plot", purpose="drawing the curves").Figure((8, 4.5), dpi=120)
            require("matplotlib.backends.backend_agg", extra="plot", purpose="drawing").FigureCanvasAgg(figure)
        except MissingDependencyError as exc:
            return f"{path.name} was not drawn: {exc}"
        losses = figure.add_subplot()
        losses.plot([int(row[0]) for row in self._rows], [float(row[1]) for row in self._rows], color="#8a8f98")
        losses.set(title=title, xlabel="optimiser step", ylabel="training loss (grey)", ylim=(0, None))
        validated = [(int(row[0]), float(row[4])) for row in self._rows if row[4]]
        scores = losses.twinx()
        scores.plot(*zip(*validated, strict=True), marker="o", color="#1f5fbf") if validated else None
        scores.set(ylabel="validation mIoU (blue)", ylim=(0, 1))
        figure.tight_layout()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png")
        return None
