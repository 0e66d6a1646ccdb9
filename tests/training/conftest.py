"""A tiny recipe, tiny labelled images and one finished run, which the tests of training share."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nrd_trt.data.synthetic import street_scene
from nrd_trt.training.recipes import RECIPES, Recipe
from nrd_trt.training.record import RunState
from nrd_trt.training.train import train

SIZE = (64, 96)
VOID = 11
"""Label of ignored pixels in CamVid."""


def write_pair(folder: Path, seed: int, *, size_hw: tuple[int, int] = (70, 100)) -> None:
    """Add a street scene whose first rows are void to ``folder/images`` and ``folder/labels``."""
    scene = street_scene(seed, size_hw)
    label = scene.label.copy()
    label[:3] = VOID
    write_arrays(folder, str(seed), scene.image, label)


def write_arrays(folder: Path, stem: str, image: np.ndarray, label: np.ndarray) -> None:
    for name, array in (("images", image), ("labels", label)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / name / f"{stem}.png")


def tiny(**changes: Any) -> Recipe:
    """The recipe of the small CamVid network, made quick: four steps of two small crops."""
    recipe = RECIPES["camvid_mobilenetv2"]
    base = replace(
        recipe,
        config=replace(recipe.config, channels=16, controller_channels=16, c1_channels=16),
        info=replace(recipe.info, size_hw=SIZE),
        augmentation=replace(recipe.augmentation, crop_hw=(64, 64)),
        steps=4,
        batch=2,
        evaluations=2,
        warmup=1,
        aux_channels=8,
        synthetic_share=0.5,
        controller_init="released",
    )
    return replace(base, **changes)


def logged(out: Path) -> list[dict[str, str]]:
    """The rows of a run's log."""
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labelled images that the tests share; read-only."""
    return labelled(tmp_path_factory.mktemp("data"))


def labelled(folder: Path) -> Path:
    """Write four images to train on, two to validate on, in CamVid's layout."""
    for part, seeds in (("train", range(4)), ("val", range(4, 6))):
        for seed in seeds:
            write_pair(folder / part, seed)
    return folder


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tiny`; read-only."""
    out = tmp_path_factory.mktemp("run")
    train(tiny(), [data], out, progress=False)
    return out


class States:
    """Stands in for the writing of a run's state: keeps copies of what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[RunState] = []
        monkeypatch.setattr("nrd_trt.training.loop.write_state", self._keep)

    def _keep(self, path: Path, recipe: Recipe, parts: int, state: RunState) -> None:
        self.kept.append(copy.deepcopy(state))

    def network(self, index: int) -> dict[str, torch.Tensor]:
        """The trained weights of the state of this index, under the names of the averaged ones."""
        state = self.kept[index].objective
        return {
            name.removeprefix("segmentor."): tensor for name, tensor in state.items() if name.startswith("segmentor.")
        }


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> States:
    """The states that runs of this test write, kept here and not on the disk."""
    return States(monkeypatch)
