"""Training recipes: every number that fixes a run besides the data. Owns the names of ``train --recipe``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nrd_trt.errors import ConfigError
from nrd_trt.model.configs import CAMVID_INFO, KNOWN_CONFIGS
from nrd_trt.model.network import NrdConfig
from nrd_trt.specs import ModelInfo, check_size


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, apart from its data.

    Attributes:
        name: What ``--recipe`` calls it.
        config: Shapes of the network.
        info: Classes and preprocessing; validation images are resized to ``info.size_hw``.
        crop_hw: Size of the training crops in pixels, multiples of 32.
        steps: Optimiser steps.
        batch: Crops per step.
        optimizer: ``"adamw"``, or ``"sgd"`` with momentum 0.9.
        lr: Peak learning rate.
        min_lr: Learning rate at the end.
        power: Exponent of the polynomial decay.
        warmup: Steps over which the learning rate rises linearly from zero.
        weight_decay: Of every parameter.
        clip_norm: Largest norm of the gradient.
        weigh_classes: Whether rare classes count more in the loss, by the root of their rarity.
        synthetic_share: Share in 0-1 of samples that are procedural street scenes (CamVid classes only).
        scale_range: Smallest and largest factor of the random resize.
        jitter: Largest relative change of brightness, contrast and saturation, in 0-1.
        evaluations: How often to validate during the run, evenly spaced.
        seed: Of the weights and of every sample.
    """

    name: str
    config: NrdConfig
    info: ModelInfo
    crop_hw: tuple[int, int]
    steps: int
    batch: int
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1.5e-3
    min_lr: float = 1e-5
    power: float = 0.9
    warmup: int = 200
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    weigh_classes: bool = True
    synthetic_share: float = 0.0
    scale_range: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.3
    evaluations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_size(self.crop_hw, what=f"recipe {self.name}: crop_hw")
        if min(self.steps, self.batch, self.evaluations) < 1:
            raise ConfigError(
                f"recipe {self.name}: expected steps, batch and evaluations >= 1, got {self.steps}, "
                f"{self.batch} and {self.evaluations}."
            )
        if not 0 <= self.synthetic_share <= 1:
            raise ConfigError(f"recipe {self.name}: expected synthetic_share in 0-1, got {self.synthetic_share}.")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step `step` (from 0): polynomial decay times linear warm-up."""
        decay = math.pow(1 - step / self.steps, self.power)
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        return (self.min_lr + (self.lr - self.min_lr) * decay) * rise


RECIPES = {
    name: Recipe(
        name=name,
        config=KNOWN_CONFIGS[name],
        info=CAMVID_INFO,
        crop_hw=(256, 352),
        steps=6000,
        batch=8,
        synthetic_share=0.27,
    )
    for name in ("camvid_r18", "camvid_mobilenetv2")
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        ConfigError: There is none; the message lists the known ones.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r}: expected one of {', '.join(RECIPES)}; check --recipe.")
    return RECIPES[name]
