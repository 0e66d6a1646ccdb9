"""Recipes: the released numbers, the learning rate, and that each one trains."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nrd_trt.data.augment import Augmentation
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.training import loop
from nrd_trt.training.recipes import RECIPES, Recipe, adapted
from nrd_trt.training.record import RunState
from nrd_trt.training.train import train
from tests.training.conftest import logged, tiny, write_arrays

CITYSCAPES = {
    "num_classes": 19, "crop_hw": (512, 1024), "base_wh": (2048, 1024), "steps": 84_000, "size_hw": (1024, 2048)
}  # fmt: skip
ADE20K = {
    "num_classes": 150, "crop_hw": (512, 512), "base_wh": (2048, 512), "steps": 164_000, "reduce_zero_label": True
}  # fmt: skip
CONTEXT = {"num_classes": 60, "crop_hw": (480, 480), "base_wh": (520, 520), "steps": 84_000}
UNDECAYED = (("pos_block", 1.0, 0.0), ("norm", 1.0, 0.0))
TRANSFORMER = {
    **ADE20K, "steps": 160_000, "optimizer": "adamw", "lr": 6e-5, "min_lr": 0.0, "power": 1.0, "warmup": 1500,
    "warmup_ratio": 1e-6, "weight_decay": 0.01, "named_rates": (("head", 10.0, 1.0), *UNDECAYED),
}  # fmt: skip
RELEASED: dict[str, dict[str, Any]] = {
    "cityscapes_r50": {"encoder": "resnetv1c50", **CITYSCAPES},
    "cityscapes_r101": {"encoder": "resnetv1c101", **CITYSCAPES},
    "ade20k_r101": {"encoder": "resnetv1c101", **ADE20K},
    "ade20k_x101": {"encoder": "resnext101_64x4d", **ADE20K, "frozen_stages": 1},
    "ade20k_mit_b1": {"encoder": "mit_b1", **TRANSFORMER, "controller_channels": 256},
    "ade20k_mit_b2": {"encoder": "mit_b2", **TRANSFORMER},
    "ade20k_mit_b5": {"encoder": "mit_b5", **TRANSFORMER, "crop_hw": (640, 640), "base_wh": (2048, 640)},
    "ade20k_twins_l": {"encoder": "twins_svt_large", **TRANSFORMER, "steps": 164_000, "named_rates": UNDECAYED},
    "pascal_context_r101": {"encoder": "resnetv1c101", **CONTEXT, "lr": 0.004, "weight_decay": 1e-4},
    "pascal_context_59_r101": {
        "encoder": "resnetv1c101",
        **CONTEXT,
        "num_classes": 59,
        "lr": 0.004,
        "weight_decay": 1e-4,
        "reduce_zero_label": True,
    },
}
"""As in the authors' configuration files."""
COMMON = {
    "optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4, "min_lr": 1e-4, "power": 0.9, "warmup": 4000,
    "warmup_ratio": 0.01, "batch": 16, "frozen_stages": 0, "reduce_zero_label": False, "clip_norm": None, "ema": 0.0,
    "weigh_classes": False, "synthetic_share": 0.0, "aux_weight": 0.4, "aux_channels": 256, "head": "nrd",
    "channels": 512, "controller_channels": 512, "c1_channels": 48, "hidden": 16, "guidance_channels": 16, "patch": 8,
    "named_rates": (), "dilations": (1, 3, 6, 9),
    "output_stride": 32, "scale_range": (0.5, 2.0), "max_class_share": 0.75,
    "colour": "photometric", "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375), "channel_order": "rgb",
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_released_recipes_have_the_authors_numbers(name: str) -> None:
    recipe = RECIPES[name]
    found = {**vars(recipe.info), **vars(recipe.augmentation), **vars(recipe.config), **vars(recipe)}
    expected = {**COMMON, **RELEASED[name]}
    assert {key: found[key] for key in expected} == expected
    assert len(recipe.info.class_names) == len(recipe.info.palette) == recipe.config.num_classes
    assert (recipe.name, recipe.info.class_names[0] != "class_0") == (name, True)


def _shrunk(recipe: Recipe) -> Recipe:
    """One step of the whole network on small pictures, at the peak learning rate."""
    return replace(
        recipe,
        augmentation=replace(recipe.augmentation, crop_hw=(64, 64), base_wh=recipe.augmentation.base_wh and (96, 64)),
        info=replace(recipe.info, size_hw=(64, 64)),
        batch=2,
        steps=1,
        evaluations=1,
        warmup=0,
        weigh_classes=False,
        controller_init="released",
    )


def _write_images(folder: Path, recipe: Recipe) -> None:
    """Labels with the first and the last class of the recipe as its files count them."""
    rng = np.random.default_rng(0)
    first = int(recipe.reduce_zero_label)
    for stem in "ab":
        blocks = rng.integers(first, recipe.config.num_classes + first, (5, 7))
        blocks[0, :2] = first, recipe.config.num_classes + first - 1
        label = np.kron(blocks, np.ones((16, 16), np.int64)).astype(np.uint8)
        write_arrays(folder, stem, rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8), label)


@pytest.mark.parametrize("name", ["ade20k_x101", "pascal_context_r101", "camvid_r18"])
def test_recipes_make_a_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def keep(path: Path, recipe: Recipe, parts: int, state: RunState) -> None:
        small = {name: t for name, t in state.objective.items() if t.numel() < 1 << 17}  # the large ones take time
        states.append({name: tensor.clone() for name, tensor in small.items()})

    monkeypatch.setattr(loop, "write_state", keep)
    monkeypatch.setattr(loop, "save_checkpoint", lambda *_, **__: None)  # a quarter of a gigabyte each time
    recipe = _shrunk(RECIPES[name])
    _write_images(tmp_path / "data", recipe)
    train(recipe, [tmp_path / "data"], tmp_path / "out", progress=False)
    (row,) = logged(tmp_path / "out")
    # The controller starts so small that the first logits are flat, whatever the network before it does.
    assert float(row["loss"]) == pytest.approx(math.log(recipe.config.num_classes), rel=0.02)
    before, after = states
    assert all(tensor.isfinite().all() for tensor in after.values())
    moved = {name for name in before if not before[name].equal(after[name])}
    frozen = ("segmentor.backbone.conv1.", "segmentor.backbone.bn1.", "segmentor.backbone.layer1.")
    frozen = frozen if recipe.frozen_stages else ()
    statistics = {name for name in before if name.endswith("running_mean")}
    assert statistics - moved == {name for name in statistics if name.startswith(frozen)}
    assert not [name for name in moved if name.startswith(frozen)]
    assert {"segmentor.decode_head.classifier.classifier.1.bias", "auxiliary_head.conv_seg.weight"} <= moved
    assert [name for name in moved if name.startswith("segmentor.backbone.layer2.") and name.endswith("weight")]


def test_learning_rate_rises_then_falls_to_its_minimum() -> None:
    recipe = tiny(steps=100, warmup=10, lr=1.0, min_lr=0.01)
    rates = [recipe.lr_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.01)  # warmup_ratio
    assert rates.index(max(rates)) == 10  # the first step that is not warmed up
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[50] == pytest.approx(0.01 + 0.99 * 0.5**0.9)
    assert rates[100] == 0.01
    assert tiny(warmup=0, lr=0.5).lr_at(0) == 0.5


def test_adapted_changes_what_is_given() -> None:
    recipe = tiny()
    assert adapted(recipe) == recipe
    assert adapted(recipe, steps=9) == replace(recipe, steps=9)
    changed = adapted(recipe, seed=0, synthetic_share=0.0)  # zero is a value
    assert (changed.seed, changed.synthetic_share) == (0, 0.0)
    assert adapted(recipe, steps=1000).lr_at(999) < 0.02 * recipe.lr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps, batch and evaluations >= 1, got 0, 2 and 2"),
        ({"batch": 0}, "got 4, 0 and 2"),
        ({"evaluations": 0}, "got 4, 2 and 0"),
        ({"ema": 1.1}, "ema in 0-1, got 1.1"),
        ({"synthetic_share": -0.1}, "synthetic_share in 0-1, got -0.1"),
        ({"synthetic_share": math.nan}, "synthetic_share in 0-1, got nan"),
        ({"augmentation": Augmentation(crop_hw=(64, 70))}, "crop_hw=64x70"),
    ],
)
def test_recipe_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ShapeError), match=f"recipe camvid_mobilenetv2: .*{message}"):
        tiny(**changes)
