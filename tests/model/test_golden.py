"""Our network computes what the authors' implementation computes with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import nrd_trt
from nrd_trt.decode.reference import upsample
from nrd_trt.model.config import KNOWN_CONFIGS
from nrd_trt.model.recognise import expected_shapes
from tests.golden.keyed_weights import keyed_image, keyed_state_dict
from tests.helpers import GOLDEN

KEYS = {
    "r50_cityscapes": "cityscapes_r50",
    "r101_ade20k": "ade20k_r101",
    "x101_ade20k": "ade20k_x101",
    "mit_b1_ade20k": "ade20k_mit_b1",
    "mit_b2_ade20k": "ade20k_mit_b2",
    "mit_b5_ade20k": "ade20k_mit_b5",
    "twins_l_ade20k": "ade20k_twins_l",
}
NOT_DEPLOYED = ("auxiliary_head.", "backbone.norm.", "backbone.head.")


def released_shapes(name: str) -> dict[str, tuple[int, ...]]:
    listed = json.loads((GOLDEN / f"{name}.keys.json").read_text())
    return {key: tuple(shape) for key, shape in listed.items()}


@pytest.mark.parametrize("name", ["r50_cityscapes", "mit_b1_ade20k"])
def test_logits_are_the_authors_and_the_mask_too_apart_from_ties(name: str, tmp_path: Path) -> None:
    """The released configuration, loaded from a file in mmseg's form, auxiliary head included."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file)
    state = keyed_state_dict(released_shapes(name))
    assert any(name.startswith("auxiliary_head.") for name in state)
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    path = tmp_path / "a.pth"
    torch.save({"meta": {"iter": 84000}, "state_dict": tensors, "optimizer": {"state": {}}}, path)
    model = nrd_trt.load_model(path)
    path.unlink()
    image = torch.from_numpy(keyed_image(int(golden["image_seed"]), *golden["size_hw"]))
    logits, mask = model(image)[0].numpy(), model.predict(image)[0].numpy()
    assert np.abs(logits - golden["logits"]).max() <= 1e-4 * golden["logits"].std()
    best = upsample(torch.from_numpy(golden["logits"])[None], 4)[0].topk(2, dim=0).values
    tied = (best[0] - best[1]).numpy() <= 1e-4 * golden["logits"].std()
    assert tied.mean() < 1e-3
    assert np.array_equal(mask[~tied], golden["mask"][~tied])


@pytest.mark.parametrize(("keys", "config"), KEYS.items())
def test_names_and_shapes_are_those_released(keys: str, config: str) -> None:
    released = released_shapes(keys)
    deployed = {name: shape for name, shape in released.items() if not name.startswith(NOT_DEPLOYED)}
    assert len(deployed) < len(released)
    assert expected_shapes(KNOWN_CONFIGS[config]) == deployed
