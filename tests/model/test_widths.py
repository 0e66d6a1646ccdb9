"""Networks of other widths than their encoder's own: built, stored, read back, and the tiny one within its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.config import CAMVID_INFO, KNOWN_CONFIGS, NetworkConfig
from nrd_trt.model.encoders import InvertedResidual
from nrd_trt.model.network import Segmentor
from nrd_trt.model.plans import PLANS, TRANSFORMERS, Widths
from nrd_trt.model.recognise import StoredFacts, expected_shapes, recognise
from nrd_trt.specs import CheckpointOptions
from nrd_trt.training.complexity import complexity
from tests.helpers import SMALL, same_network, small_model

EVEN = {"resnext101_64x4d": 64}


def narrowed(encoder: str) -> Widths:
    """Half of every width, and each block's its own where the encoder can have that."""
    own, step = PLANS[encoder].own, EVEN.get(encoder, 2)
    inner = tuple(tuple(width // 2 + step * (block % 2) for width in widths) for block, widths in enumerate(own.inner))
    return Widths(stem=tuple(w // 2 for w in own.stem), stages=tuple(w // 2 for w in own.stages), inner=inner)


@pytest.mark.parametrize("encoder", [name for name in PLANS if name not in TRANSFORMERS])
def test_shapes_tell_the_widths_of_every_convolution(encoder: str) -> None:
    config = NetworkConfig(**{**SMALL, "encoder": encoder}, widths=narrowed(encoder), aspp_channels=(8, 16, 24, 8, 40))
    shapes = expected_shapes(config)
    assert recognise(shapes, StoredFacts(), CheckpointOptions()) == config
    own = expected_shapes(replace(config, widths=None, aspp_channels=None))
    assert shapes.keys() == own.keys(), "widths change neither blocks nor shortcuts"
    wide = {name for name, shape in shapes.items() if name.startswith("backbone.") and shape and shape == own[name]}
    assert not wide, "every tensor but the counters is narrower"


def test_a_narrow_network_comes_back_from_its_file(tmp_path: Path) -> None:
    model = small_model(widths=narrowed("mobilenetv2"), aspp_channels=(8, 16, 24, 8, 40))
    path = tmp_path / "m.safetensors"
    save_checkpoint(model, path)
    assert same_network(load_model(path), model)
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
    save_file(state, path)
    with pytest.warns(UserWarning, match=r"of other widths than its own.*those of the tensors' shapes"):
        assert load_model(path).config == model.config
    del state["backbone.layer3.1.conv.0.conv.weight"]
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"1 missing: backbone\.layer3\.1\.conv\.0\.conv\.weight"):
        load_model(path)


def test_metadata_that_contradict_the_tensors_are_refused(tmp_path: Path) -> None:
    model, path = small_model(widths=narrowed("mobilenetv2")), tmp_path / "m.safetensors"
    model.config = replace(model.config, widths=PLANS["mobilenetv2"].own)
    save_checkpoint(model, path)
    with pytest.raises(CheckpointError, match=r"misshapen: backbone\.conv1\.bn\.bias \(expected \[32\], got \[16\]\)"):
        load_model(path)


def test_equal_widths_make_no_shortcut() -> None:
    """In MobileNetV2 a block has one where it repeats, not where two layers happen to be equally wide."""
    widths = PLANS["mobilenetv2"].own
    model = small_model(widths=replace(widths, stages=(16, 24, 32, 64, 64, 64, 64)))
    firsts = [layer[0] for name, layer in model.backbone.named_children() if name.startswith("layer")]
    assert all(isinstance(block, InvertedResidual) and not block.with_shortcut for block in firsts)


@pytest.mark.parametrize(
    ("encoder", "change", "message"),
    [
        ("mit_b1", lambda own: replace(own, stages=(32, *own.stages[1:])), "of a transformer are fixed, got .32"),
        ("resnetv1c18", lambda own: replace(own, stem=own.stem[:2]), "3 of its stem, 4 of its stages"),
        ("mobilenetv2", lambda own: replace(own, inner=own.inner[1:]), "those of 17 blocks, got others"),
        ("mobilenetv2", lambda own: replace(own, stages=(0, *own.stages[1:])), "1 to 65536 channels everywhere, got 0"),
        ("mobilenetv2", lambda own: replace(own, stages=(2**40, *own.stages[1:])), "1 to 65536 channels everywhere"),
        ("resnetv1c18", lambda own: replace(own, stem=(8, 8, 32)), "after the stem as in the first stage, got 32 and"),
        ("resnext101_64x4d", lambda own: replace(own, inner=((200, 200), *own.inner[1:])), "multiples of 64.*got 200"),
    ],
)
def test_impossible_widths(encoder: str, change: Callable[[Widths], Widths], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"widths of {encoder}: expected .*{message}"):
        NetworkConfig(**{**SMALL, "encoder": encoder}, widths=change(PLANS[encoder].own))


def test_the_tiny_network_is_within_its_limits(tmp_path: Path) -> None:
    found: Any = complexity("camvid_tiny", size=(352, 480)).to_dict()
    assert found["total_gmac"] <= 0.5
    model = Segmentor(KNOWN_CONFIGS["camvid_tiny"], CAMVID_INFO)
    save_checkpoint(model, tmp_path / "tiny.safetensors", half=True, extra={"recipe": "camvid_tiny", "step": "3000"})
    assert (tmp_path / "tiny.safetensors").stat().st_size <= 2_000_000
    assert load_model(tmp_path / "tiny.safetensors").config == model.config
    assert model.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 11, 16, 24)
