"""Our network computes what the authors' implementation computes with the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import nrd_trt
from nrd_trt.decode.reference import upsample
from nrd_trt.model.config import KNOWN_CONFIGS
from nrd_trt.model.network import Segmentor
from nrd_trt.model.recognise import expected_shapes
from tests.golden.keyed_weights import keyed_image, keyed_state_dict
from tests.helpers import GOLDEN

KEYS = {
    "r50_cityscapes": "cityscapes_r50",
    "r101_ade20k": "ade20k_r101",
    "x101_ade20k": "ade20k_x101",
}


def released_shapes(name: str) -> dict[str, tuple[int, ...]]:
    listed = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    return {key: tuple(shape) for key, shape in listed.items()}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "r50_cityscapes.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Segmentor]:
    """The released configuration, loaded from a file in mmseg's form, auxiliary head included."""
    path: Path = tmp_path_factory.mktemp("golden") / "r50.pth"
    state = keyed_state_dict(released_shapes("r50_cityscapes"))
    assert any(name.startswith("auxiliary_head.") for name in state)
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save({"meta": {"iter": 84000}, "state_dict": tensors, "optimizer": {"state": {}}}, path)
    yield nrd_trt.load_model(path)
    path.unlink()


def test_logits_are_the_authors(model: Segmentor, golden: dict[str, np.ndarray]) -> None:
    image = torch.from_numpy(keyed_image(int(golden["image_seed"]), *golden["size_hw"]))
    logits = model(image)[0].numpy()
    assert np.abs(logits - golden["logits"]).max() <= 1e-4 * golden["logits"].std()


def test_mask_is_the_authors_apart_from_ties(model: Segmentor, golden: dict[str, np.ndarray]) -> None:
    image = torch.from_numpy(keyed_image(int(golden["image_seed"]), *golden["size_hw"]))
    mask = model.predict(image)[0].numpy()
    best = upsample(torch.from_numpy(golden["logits"])[None], 4)[0].topk(2, dim=0).values
    tied = (best[0] - best[1]).numpy() <= 1e-4 * golden["logits"].std()
    assert tied.mean() < 1e-3
    assert np.array_equal(mask[~tied], golden["mask"][~tied])


@pytest.mark.parametrize(("keys", "config"), KEYS.items())
def test_names_and_shapes_are_those_released(keys: str, config: str) -> None:
    released = released_shapes(keys)
    deployed = {name: shape for name, shape in released.items() if not name.startswith("auxiliary_head.")}
    assert len(deployed) < len(released)
    assert expected_shapes(KNOWN_CONFIGS[config]) == deployed
