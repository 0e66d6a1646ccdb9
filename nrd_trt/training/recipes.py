"""Training recipes: every number that fixes a run besides the data, by name.

The released recipes are those of the authors' configuration files (batch 16 over all GPUs, training starts from an
ImageNet encoder).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from nrd_trt.data.augment import Augmentation
from nrd_trt.data.classes import known_classes
from nrd_trt.errors import ConfigError
from nrd_trt.model.config import CAMVID_INFO, KNOWN_CONFIGS, NetworkConfig
from nrd_trt.specs import ControllerInit, Fit, Head, Importance, ModelInfo, Resample, Size, check_choice, check_size

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What a network lost before its run, and by what rule.

    Attributes:
        source_sha256: Hash of the checkpoint that was pruned.
        keep: Share in 0-1 of its multiply-adds that may stay.
        importance: What ranks channels: ``"taylor"``, what the loss would change by without one, to first order, or
            ``"group_norm"``, the norm of the weights that give and take it.
        round_to: Numbers of channels become multiples of this: 8, or 16 for int8.
    """

    source_sha256: str
    keep: float
    importance: Importance = "taylor"
    round_to: int = 8

    def __post_init__(self) -> None:
        check_choice("importance", self.importance, Importance)
        if not 0 < self.keep < 1:
            raise ConfigError(
                f"keep={self.keep:g}: expected a share of the multiply-adds above 0 and below 1, such as 0.6."
            )
        if self.round_to not in (8, 16):
            raise ConfigError(f"round_to={self.round_to}: expected 8, or 16 for int8.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, apart from its data.

    Attributes:
        name: Name that `find_recipe` knows it by.
        config: Shapes of the network.
        info: Classes and preprocessing; validation images are brought to ``info.size_hw``.
        augmentation: How samples are changed; its crops' sides are multiples of 32.
        steps: Optimiser steps.
        batch: Crops per step, over all processes and micro-batches.
        optimizer: ``"sgd"`` with momentum 0.9, ``"adamw"``, or ``"muon"`` (`nrd_trt.training.optimizers`) for the
            kernels between layers and AdamW for the rest.
        lr: Peak learning rate.
        muon_lr: Peak learning rate of the kernels that Muon trains.
        encoder_rate: Share of these learning rates that the encoder has; below 1 for one that was trained before.
        named_rates: What parameters have of learning rate and weight decay, by a part of their name; the first that is
            in the name counts, and others have all of both.
        min_lr: Learning rate at the end.
        power: Exponent of the polynomial decay.
        warmup: Steps over which the learning rate rises linearly.
        warmup_ratio: Share of the learning rate that the first step has.
        weight_decay: Weight decay of every parameter.
        clip_norm: Largest norm of the gradient; None leaves it.
        weigh_classes: Whether rare classes count more in the loss, by the root of their rarity.
        aux_weight: Weight of the auxiliary FCN head's loss; 0 trains without that head.
        aux_channels: Width of the auxiliary head.
        ema: Decay of the moving average of the weights that is validated and stored; 0 stores the weights themselves.
        frozen_stages: First stages of the encoder that stay as they are, the stem included; 0 trains all.
        controller_init: ``"released"`` starts all of theta near zero, as the authors do; ``"perceptron"`` starts every
            patch with one random perceptron, for short runs (NRD heads only; docs/results.md has one of each).
        synthetic_share: Share in 0-1 of samples that are procedural street scenes (CamVid classes only).
        reduce_zero_label: Whether labels count classes from 1, with 0 for ignored pixels.
        fit: How validation images are brought to ``info.size_hw``.
        resample: What scales them there; see `nrd_trt.data.preprocessing.fit_image`.
        teacher_logits: Weight of the distance of logits from a teacher's, where a run has one.
        teacher_features: Weight of the distance of the encoder's last features from the teacher's.
        teacher_temperature: What logits are divided by before they are compared.
        evaluations: How often to validate during the run, evenly spaced.
        seed: Seed of the initial weights and of every sample.
        pruning: What the network lost before, where a run goes on with a pruned one.
    """

    name: str
    config: NetworkConfig
    info: ModelInfo
    augmentation: Augmentation
    steps: int
    batch: int
    optimizer: Literal["sgd", "adamw", "muon"]
    lr: float
    muon_lr: float = 0.02
    encoder_rate: float = 1.0
    named_rates: tuple[tuple[str, float, float], ...] = ()
    min_lr: float
    power: float = 0.9
    warmup: int
    warmup_ratio: float = 0.01
    weight_decay: float
    clip_norm: float | None = None
    weigh_classes: bool = False
    aux_weight: float = 0.4
    aux_channels: int = 256
    ema: float = 0.0
    frozen_stages: int = 0
    controller_init: ControllerInit = "released"
    synthetic_share: float = 0.0
    reduce_zero_label: bool = False
    fit: Fit = "resize"
    resample: Resample = "pillow"
    teacher_logits: float = 1.0
    teacher_features: float = 0.5
    teacher_temperature: float = 2.0
    evaluations: int = 10
    seed: int = 0
    pruning: Pruning | None = None

    def __post_init__(self) -> None:
        check_choice("controller_init", self.controller_init, ControllerInit)
        check_choice("resample", self.resample, Resample)
        check_size(self.augmentation.crop_hw, what=f"recipe {self.name}: crop_hw=")
        if min(self.steps, self.batch, self.evaluations) < 1:
            raise ConfigError(
                f"recipe {self.name}: expected steps, batch and evaluations >= 1, got {self.steps}, "
                f"{self.batch} and {self.evaluations}."
            )
        if self.encoder_rate <= 0:
            raise ConfigError(f"encoder_rate={self.encoder_rate}: expected more than 0; frozen_stages trains less.")
        for name in ("synthetic_share", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"recipe {self.name}: expected {name} in 0-1, got {getattr(self, name)}.")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step `step` (from 0): polynomial decay times linear warm-up."""
        decay = math.pow(1 - step / self.steps, self.power)
        rise = 1.0
        if step < self.warmup:
            rise = self.warmup_ratio + (1 - self.warmup_ratio) * step / self.warmup
        return (self.min_lr + (self.lr - self.min_lr) * decay) * rise


def _released(
    name: str, *, crop_hw: Size, base_wh: tuple[int, int], steps: int, size_hw: Size | None = None, **changes: Any
) -> Recipe:
    """Return what the authors' configuration files have in common, with changes."""
    config = KNOWN_CONFIGS[name]
    names, palette = known_classes(config.num_classes) or ((), ())
    recipe = Recipe(
        name=name,
        config=config,
        info=ModelInfo(class_names=names, palette=palette, size_hw=size_hw or crop_hw),
        augmentation=Augmentation(crop_hw=crop_hw, base_wh=base_wh, max_class_share=0.75, colour="photometric"),
        steps=steps,
        batch=16,
        optimizer="sgd",
        lr=0.01,
        min_lr=1e-4,
        warmup=4000,
        weight_decay=5e-4,
        fit="letterbox",
    )
    return replace(recipe, **changes)


def _camvid(name: str, **changes: Any) -> Recipe:
    """From scratch on a CPU: small crops, Muon, a moving average, some procedural scenes."""
    recipe = Recipe(
        name=name,
        config=KNOWN_CONFIGS[name],
        info=CAMVID_INFO,
        augmentation=Augmentation(crop_hw=(256, 352), scale_range=(0.6, 1.6), colour="camera", blur=1.0),
        steps=3000,
        batch=8,
        optimizer="muon",
        lr=1.5e-3,
        min_lr=1e-5,
        warmup=200,
        weight_decay=0.01,
        clip_norm=5.0,
        weigh_classes=True,
        aux_channels=64,
        ema=0.998,
        controller_init="perceptron",
    )
    return replace(recipe, **changes)


_TUNING_STEPS, _TUNING_RATE = 1 / 3, 1 / 2
_CITYSCAPES: dict[str, Any] = {
    "crop_hw": (512, 1024), "base_wh": (2048, 1024), "steps": 84_000, "size_hw": (1024, 2048)
}  # fmt: skip
_ADE20K: dict[str, Any] = {
    "crop_hw": (512, 512), "base_wh": (2048, 512), "steps": 164_000, "reduce_zero_label": True
}  # fmt: skip
_UNDECAYED = (("pos_block", 1.0, 0.0), ("norm", 1.0, 0.0))
_TRANSFORMER: dict[str, Any] = {
    **_ADE20K, "steps": 160_000, "optimizer": "adamw", "lr": 6e-5, "min_lr": 0.0, "power": 1.0, "warmup": 1500,
    "warmup_ratio": 1e-6, "weight_decay": 0.01,
}  # fmt: skip
_MIT: dict[str, Any] = {**_TRANSFORMER, "named_rates": (("head", 10.0, 1.0), *_UNDECAYED)}
_CONTEXT: dict[str, Any] = {
    "crop_hw": (480, 480), "base_wh": (520, 520), "steps": 84_000, "lr": 0.004, "weight_decay": 1e-4
}  # fmt: skip
RECIPES = {
    recipe.name: recipe
    for recipe in (
        _released("cityscapes_r50", **_CITYSCAPES),
        _released("cityscapes_r101", **_CITYSCAPES),
        _released("ade20k_r101", **_ADE20K),
        _released("ade20k_x101", **_ADE20K, frozen_stages=1),
        _released("ade20k_mit_b1", **_MIT),
        _released("ade20k_mit_b2", **_MIT),
        _released("ade20k_mit_b5", **{**_MIT, "crop_hw": (640, 640), "base_wh": (2048, 640)}),
        _released("ade20k_twins_l", **{**_TRANSFORMER, "steps": 164_000, "named_rates": _UNDECAYED}),
        _released("pascal_context_r101", **_CONTEXT),
        _released("pascal_context_59_r101", **_CONTEXT, reduce_zero_label=True),
        _camvid("camvid_r18"),
        _camvid("camvid_mobilenetv2"),
        _camvid("camvid_tiny", controller_init="perceptron"),
    )
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        ConfigError: There is none; the message lists the known ones.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe={name!r}: expected one of {', '.join(RECIPES)}.")
    return RECIPES[name]


class RecipeChanges(TypedDict, total=False):
    """What a user may change of a recipe by name; None leaves the recipe's own."""

    head: Head | None
    output_stride: int | None
    steps: int | None
    seed: int | None
    evaluations: int | None
    synthetic_share: float | None
    encoder_rate: float | None
    controller_init: ControllerInit | None
    resample: Resample | None


def adapted(recipe: Recipe, **changes: Unpack[RecipeChanges]) -> Recipe:
    """Return the recipe with the values that are not None in place of its own; the decay ends with the last step.

    Raises:
        ConfigError: A value is out of range, or a name is not one of `RecipeChanges`.
    """
    if unknown := sorted(changes.keys() - RecipeChanges.__annotations__.keys()):
        raise ConfigError(
            f"{unknown[0]}=: expected a known argument, or one of {', '.join(RecipeChanges.__annotations__)}."
        )
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    config = replace(recipe.config, head=given.pop("head", recipe.config.head))
    if (output_stride := given.pop("output_stride", None)) is not None:
        config = config.with_stride(output_stride)
    return replace(recipe, config=config, **given)


def fine_tuning(recipe: Recipe, **changes: Unpack[RecipeChanges]) -> Recipe:
    """Return a recipe for a network that is nearly trained: shorter, with lower learning rates.

    Args:
        recipe: That of a whole training.
        **changes: As for `adapted`, but that None as ``steps`` takes a third of the recipe's.

    Raises:
        ConfigError: As there.
    """
    tuned = adapted(replace(recipe, steps=math.ceil(recipe.steps * _TUNING_STEPS)), **changes)
    return replace(
        tuned,
        lr=recipe.lr * _TUNING_RATE,
        muon_lr=recipe.muon_lr * _TUNING_RATE,
        min_lr=recipe.min_lr * _TUNING_RATE,
        warmup=min(recipe.warmup, tuned.steps // 10),
        controller_init="released",
    )
