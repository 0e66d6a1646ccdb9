"""The training loop: optimisation and validation of one run that can go on after an interruption.

Samples come from `nrd_trt.training.samples`, numbers from `nrd_trt.training.recipes`, the loss from
`nrd_trt.training.objective`; `nrd_trt.training.record` writes the files, `nrd_trt.model.checkpoint` the weights.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from nrd_trt.data.preprocessing import fit_image, normalise
from nrd_trt.errors import ConfigError, NrdTrtError
from nrd_trt.model.checkpoint import load_encoder, save_checkpoint
from nrd_trt.model.heads import NrdHead
from nrd_trt.model.network import Segmentor
from nrd_trt.progress import bar
from nrd_trt.specs import Arithmetic, Device, Fit, InputShape, Resample, check_choice
from nrd_trt.training.distillation import Teacher
from nrd_trt.training.objective import Objective
from nrd_trt.training.optimizers import make_optimizers, restore_optimizer, set_rate
from nrd_trt.training.parallel import World, joined_world
from nrd_trt.training.recipes import Recipe
from nrd_trt.training.record import (
    BEST,
    CURVES,
    LAST,
    LOG,
    STATE,
    Log,
    RunState,
    clear_folder,
    prepare_folder,
    read_state,
    readable,
    write_state,
)
from nrd_trt.training.samples import Samples
from nrd_trt.training.train import TrainResult
from nrd_trt.validation.metrics import confusion_matrix, mean_iou

Batch = tuple[Tensor, Tensor]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LOG_EVERY = 20
_SAVE_EVERY = 200


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is computed; none of it changes what is learnt but for rounding.

    Attributes:
        device: ``"auto"`` takes a GPU if there is one.
        arithmetic: Types of the products: ``"auto"`` is bfloat16 on a GPU and float32 on a CPU.
        workers: Processes that prepare batches; 0 prepares them between the steps.
        accumulate: Micro-batches per optimiser step, on every process.
        threads: CPU threads of PyTorch; None leaves the choice to PyTorch.
        progress: Show a bar on stderr.
    """

    device: Device = "auto"
    arithmetic: Arithmetic = "auto"
    workers: int = 0
    accumulate: int = 1
    threads: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_choice("device", self.device, Device)
        check_choice("arithmetic", self.arithmetic, Arithmetic)
        for name, lowest in (("workers", 0), ("accumulate", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name}={value}: expected {lowest} or more.")

    def set_threads(self) -> None:
        """Give PyTorch the threads that were asked for."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)


def run_recipe(
    recipe: Recipe,
    data: Sequence[Path],
    output: Path,
    how: Execution,
    *,
    init_encoder: Path | None = None,
    start: Segmentor | None = None,
    teacher: Path | None,
    resume: bool,
    force: bool,
) -> TrainResult:
    """Do what `nrd_trt.training.train.train` describes, once its arguments are known.

    A run that is no resumed one begins with the weights of `start`, where one is given, or with an encoder's.
    """
    samples = Samples(recipe, data)
    how.set_threads()
    with joined_world(how.device) as world:
        if world.is_first:
            prepare_folder(output, resume=resume, force=force)
        guided_by = None if teacher is None else Teacher(teacher, recipe.info, world.device)
        run = _Run(recipe, samples, output, how, world, guided_by)
        resumed = resume and (output / STATE).is_file()
        if resumed:
            run.restore()
        elif init_encoder is not None:
            load_encoder(run.segmentor.backbone, init_encoder)
        elif start is not None:
            run.segmentor.load_state_dict(start.state_dict())
        if not resumed:
            run.average.load_state_dict(run.segmentor.state_dict())
        if guided_by is not None and not resumed:
            run.teacher_miou = score(guided_by.network, samples, world)
        if force and world.is_first:
            clear_folder(output)  # only now, when data, labels and encoder have been found usable
        world.barrier()
        notes = run.complete()
    return TrainResult(best_miou=run.best, teacher_miou=run.teacher_miou, checkpoint=output / BEST, notes=notes)


def predict_mask(model: Segmentor, image: np.ndarray, fit: Fit = "resize", resample: Resample = "pillow") -> np.ndarray:
    """Return the mask ``(H, W) uint8`` of an image ``(H, W, 3) uint8`` RGB, run at the model's own size."""
    fitted = fit_image(image, InputShape.static(model.info.size_hw), model.info, fit, resample=resample)
    device = next(model.parameters()).device
    images = torch.from_numpy(normalise(fitted.image[None], model.info)).to(device, memory_format=torch.channels_last)
    return fitted.restore(model.predict(images)[0].cpu().numpy().astype(np.uint8))


def score(network: Segmentor, samples: Samples, world: World | None = None) -> float:
    """Return a network's mIoU on the validation images, each rank counting its part.

    Raises:
        ConfigError: An image or a label is unusable, or no label has a class.
    """
    world, recipe, classes = world or World(), samples.recipe, network.config.num_classes
    matrix = np.zeros((classes, classes), np.int64)
    for index in range(world.rank, samples.validation_count(), world.size):
        image, label = samples.validation_sample(index)
        mask = predict_mask(network, image, recipe.fit, recipe.resample)
        matrix += confusion_matrix(label, mask, classes)
    total = world.sum(torch.from_numpy(matrix).to(world.device))
    miou = mean_iou(total.cpu().numpy())
    if miou is None:
        raise ConfigError("validation labels: expected pixels of some class, got ignored ones only; check data=.")
    return miou


class _Batches(Dataset[Any]):
    """The micro-batches of one rank, in the order of the run."""

    def __init__(self, samples: Samples, world: World, accumulate: int) -> None:
        self.samples, self.rank, self.ranks = samples, world.rank, world.size
        self.accumulate = accumulate
        self.count = micro_batch(samples.recipe, world.size * accumulate)

    def __getitem__(self, index: int) -> Batch | NrdTrtError:
        step, part = divmod(index, self.accumulate)
        first = step * self.samples.recipe.batch + (part * self.ranks + self.rank) * self.count
        try:
            images, labels = self.samples.batch(first, self.count)
            return torch.from_numpy(images), torch.from_numpy(labels)
        except NrdTrtError as exc:  # raised in a worker it would reach the user as a traceback in a message
            return exc


def micro_batch(recipe: Recipe, parts: int) -> int:
    """Return the crops per micro-batch.

    Raises:
        ConfigError: The recipe's batch cannot be split into so many equal parts of at least two crops.
    """
    if recipe.batch % parts:
        raise ConfigError(
            f"recipe {recipe.name}: expected the batch of {recipe.batch} to be a multiple of processes times "
            f"accumulate=, got {parts} parts; change one of them."
        )
    if recipe.batch // parts < 2:
        raise ConfigError(
            f"recipe {recipe.name}: expected at least 2 crops per micro-batch, as batch norm after global pooling has "
            f"no variance over one, got a batch of {recipe.batch} in {parts} parts; take fewer processes or lower "
            "accumulate=."
        )
    return recipe.batch // parts


class _Run:
    """One run: network, optimiser, and how far it has come."""

    def __init__(
        self, recipe: Recipe, samples: Samples, out: Path, how: Execution, world: World, teacher: Teacher | None
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.samples, self.out, self.how, self.world = recipe, samples, out, how, world
        self.parts = world.size * how.accumulate
        self.batches = _Batches(samples, world, how.accumulate)
        weights = torch.from_numpy(samples.class_weights()) if recipe.weigh_classes else None
        segmentor = Segmentor(recipe.config, recipe.info)
        if recipe.controller_init == "perceptron" and isinstance(segmentor.decode_head, NrdHead):
            segmentor.decode_head.start_as_perceptron()
        objective = Objective(segmentor, recipe, weights, None if teacher is None else teacher.channels)
        self.objective = objective.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        on_gpu = world.device.type == "cuda"
        if world.size > 1 and on_gpu:
            self.objective = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)  # type: ignore[no-untyped-call]
        self.segmentor: Segmentor = self.objective.segmentor
        self.average = copy.deepcopy(self.segmentor).eval().requires_grad_(False)
        arithmetic = how.arithmetic if how.arithmetic != "auto" else ("bf16" if on_gpu else "fp32")
        self.autocast = torch.autocast(
            world.device.type, _TYPES.get(arithmetic, torch.bfloat16), enabled=arithmetic != "fp32"
        )
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=arithmetic == "fp16")
        self.optimizers = make_optimizers(recipe, self.objective)
        self.step, self.best = 0, -1.0
        self.teacher = teacher
        self.teacher_miou: float | None = None

    def complete(self) -> tuple[str, ...]:
        """Train to the end, validating and saving on the way; return what the user should know."""
        if not self.world.is_first:
            for _ in self._steps():
                pass
            return ()
        notes: set[str] = set()
        losses: list[float] = []
        shown: Any = bar(desc="training", unit="step", total=self.recipe.steps, done=self.step, show=self.how.progress)
        with shown, Log(self.out / LOG, self.step) as log:
            start = time.monotonic() - log.seconds
            for loss, miou in self._steps():
                losses.append(loss)
                shown.update()
                if miou is None and self.step % _LOG_EVERY:
                    continue
                shown.set_postfix(loss=f"{loss:.3f}", best=f"{self.best:.3f}", refresh=False)
                mean, losses = sum(losses) / len(losses), []
                log.write(self.step, mean, self.recipe.lr_at(self.step - 1), time.monotonic() - start, miou)
                if miou is not None and (
                    note := log.draw(self.out / CURVES, f"{self.recipe.name}, seed {self.recipe.seed}")
                ):
                    notes.add(note)
        return tuple(notes)

    def _steps(self) -> Iterator[tuple[float, float | None]]:
        """Make the steps that are left; yield each one's loss, and the mIoU where it was validated."""
        network: nn.Module = self.objective
        if self.world.size > 1:
            network = DistributedDataParallel(self.objective, broadcast_buffers=False)
        batches = iter(self._loader())
        self.save()  # so that a run can be resumed from its first step on
        every = math.ceil(self.recipe.steps / self.recipe.evaluations)
        while self.step < self.recipe.steps:
            loss = self.advance(network, batches)
            validated = self.step == self.recipe.steps or self.step % every == 0
            yield loss, self.validate() if validated else None
            # After the step was logged: a run that is killed in between makes the step again, and logs it again.
            if validated or self.step % _SAVE_EVERY == 0:
                self.save()

    def _loader(self) -> DataLoader[Any]:
        indices = range(self.step * self.how.accumulate, self.recipe.steps * self.how.accumulate)
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=indices,
            num_workers=self.how.workers,
            pin_memory=self.world.device.type == "cuda",
            generator=torch.Generator(),  # its own, so that the run's random state does not depend on workers
        )

    def advance(self, network: nn.Module, batches: Iterator[Any]) -> float:
        """Make one optimiser step and return its loss, the mean over all micro-batches and ranks."""
        set_rate(self.optimizers, self.recipe.lr_at(self.step) / self.recipe.lr)
        self.objective.train()
        self.objective.zero_grad()
        statistics = _Statistics(self.objective, self.how.accumulate)
        total = torch.zeros((), device=self.world.device)
        for part in range(self.how.accumulate):
            last = part == self.how.accumulate - 1
            with network.no_sync() if self.world.size > 1 and not last else nullcontext():  # type: ignore[operator]
                total += self._backward(network, next(batches)) / self.how.accumulate
            statistics.add(last=last)
        for tensor in statistics.tensors:
            self.world.mean(tensor)
        loss = self.world.mean(total).item()
        if not math.isfinite(loss):
            raise ConfigError(
                f"recipe {self.recipe.name}: expected a finite loss, got {loss} at step {self.step}; "
                "lower the learning rate, or check the labels."
            )
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self._update_average()
        self.step += 1
        return loss

    def _backward(self, network: nn.Module, batch: Batch | NrdTrtError) -> Tensor:
        """Add the gradients of one micro-batch and return its loss."""
        if isinstance(batch, NrdTrtError):
            raise batch
        images, labels = (tensor.to(self.world.device, non_blocking=True) for tensor in batch)
        images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast:
            guide = None if self.teacher is None else self.teacher.guide(images)
            loss, own = network(images, labels, guide)
        self.scaler.scale(loss / self.how.accumulate).backward()
        return own  # type: ignore[no-any-return]

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average towards the weights; in the first steps faster, as it starts from random ones."""
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.state_dict().values(), self.segmentor.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def validate(self) -> float:
        """Return the mIoU of the averaged weights; write the best so far."""
        miou = score(self.average, self.samples, self.world)
        if miou > self.best:
            self.best = miou
            self._write(BEST, miou)
        return miou

    def save(self) -> None:
        """Write the latest weights, and the state to resume from."""
        if self.world.is_first:
            state = RunState(
                step=self.step,
                best=self.best,
                objective=self.objective.state_dict(),
                average=self.average.state_dict(),
                optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
                scaler=self.scaler.state_dict(),
                torch_rng=torch.get_rng_state(),
                teacher_sha256=None if self.teacher is None else self.teacher.sha256,
                teacher_miou=self.teacher_miou,
            )
            write_state(self.out / STATE, self.recipe, self.parts, state)
        self._write(LAST, None)
        self.world.barrier()

    def restore(self) -> None:
        """Take up the state that `save` wrote; raise `ConfigError` if it belongs to another run."""
        path = self.out / STATE
        state = read_state(path, self.recipe, self.parts, None if self.teacher is None else self.teacher.sha256)
        with readable(path):
            self.objective.load_state_dict(state.objective)
            self.average.load_state_dict(state.average)
            for optimizer, stored in zip(self.optimizers, state.optimizers, strict=True):
                restore_optimizer(optimizer, stored)
            self.scaler.load_state_dict(state.scaler)
            torch.set_rng_state(state.torch_rng)
        self.step, self.best, self.teacher_miou = state.step, state.best, state.teacher_miou

    def _write(self, name: str, miou: float | None) -> None:
        facts = {"recipe": self.recipe.name, "step": str(self.step), "seed": str(self.recipe.seed)}
        if miou is not None:
            facts["miou"] = f"{miou:.4f}"
        if self.teacher is not None:
            facts["teacher_sha256"] = self.teacher.sha256
        if self.recipe.pruning is not None:
            facts["pruning"] = json.dumps(asdict(self.recipe.pruning))
        if self.world.is_first:
            save_checkpoint(self.average, self.out / name, extra=facts)


class _Statistics:
    """Batch-norm statistics of one optimiser step: every micro-batch starts from the same ones, their mean is kept.

    So a step does not depend on whether its micro-batches run one after the other or on several processes.
    """

    def __init__(self, module: nn.Module, parts: int) -> None:
        norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm)]
        self.tensors = [norm.get_buffer(name) for norm in norms for name in ("running_mean", "running_var")]
        self._parts = parts
        self._before = [tensor.clone() for tensor in self.tensors] if parts > 1 else []
        self._sums = [torch.zeros_like(tensor) for tensor in self._before]

    def add(self, *, last: bool) -> None:
        """Count what a micro-batch left; go back to the start, or after the last one to the mean."""
        for tensor, before, total in zip(self.tensors, self._before, self._sums, strict=False):
            total += tensor / self._parts
            tensor.copy_(total if last else before)
