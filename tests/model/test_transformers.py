"""The transformer encoders: attention as a plain loop draws it, windows and their mask, paths dropped in training."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.model.config import KNOWN_CONFIGS, NetworkConfig
from nrd_trt.model.encoders import ENCODERS
from nrd_trt.model.plans import MitPlan, TwinsPlan
from nrd_trt.model.recognise import StoredFacts, expected_shapes, recognise
from nrd_trt.model.transformers import (
    DropPath,
    GlobalAttention,
    MixTransformer,
    Twins,
    WindowAttention,
    to_map,
    to_tokens,
)
from nrd_trt.specs import CheckpointOptions
from nrd_trt.training.complexity import count_cost
from nrd_trt.training.recipes import find_recipe

NARROW = {"channels": (8, 16, 24, 32), "depths": (2, 1, 1, 2), "heads": (1, 2, 3, 4)}
TOKENS = 0.3 * torch.randn(2, 10 * 9, 8, generator=torch.Generator().manual_seed(0))


def plain(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attention of one image, token by token and head by head: ``(n, C)``, ``(k, C)``, ``(k, C)`` to ``(n, C)``."""
    width = queries.shape[1] // heads
    result = torch.zeros_like(queries)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for index, query in enumerate(queries[:, part]):
            weights = (keys[:, part] @ query / math.sqrt(width)).exp()
            result[index, part] = (weights / weights.sum()) @ values[:, part]
    return result


@pytest.mark.parametrize("reduction", [1, 2])
def test_global_attention(reduction: int) -> None:
    torch.manual_seed(1)
    attention = GlobalAttention(8, heads=2, reduction=reduction).eval()
    tokens = TOKENS[:, :80]
    with torch.no_grad():
        result = attention(tokens, (10, 8))
        for image, found in zip(tokens, result, strict=True):
            seen = image
            if attention.sr is not None:  # one token for every 2x2 of the map, which is read row by row
                seen = attention.norm(to_tokens(attention.sr(image.T.reshape(1, 8, 10, 8))))[0]
                assert len(seen) == 20
            keys, values = attention.kv(seen).split(8, dim=1)
            expected = attention.proj(plain(attention.q(image), keys, values, 2))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fix_mask", [False, True])
@pytest.mark.parametrize("size_hw", [(10, 9), (14, 7), (14, 9), (10, 7)], ids=str)
def test_windows_see_their_own_pixels(size_hw: tuple[int, int], fix_mask: bool) -> None:
    """And no padding, but where one side alone is padded and the authors' code forgets the mask."""
    torch.manual_seed(1)
    attention = WindowAttention(8, heads=2, fix_mask=fix_mask).eval()
    height, width = size_hw
    image = TOKENS[0, : height * width] if height * width <= 90 else TOKENS.reshape(-1, 8)[: height * width]
    forgotten = (height % 7 == 0) != (width % 7 == 0) and not fix_mask
    with torch.no_grad():
        found = attention(image[None], size_hw)[0].unflatten(0, size_hw)
        pixels = image.unflatten(0, size_hw)
        for top in range(0, height, 7):
            for left in range(0, width, 7):
                window = pixels[top : top + 7, left : left + 7].flatten(0, 1)
                padding = torch.zeros(49 - len(window) if forgotten else 0, 8)
                queries, keys, values = attention.qkv(torch.cat([window, padding])).split(8, dim=1)
                expected = attention.proj(plain(queries, keys, values, 2)[: len(window)])
                ours = found[top : top + 7, left : left + 7].flatten(0, 1)
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_the_forgotten_mask_is_warned_of() -> None:
    torch.manual_seed(0)
    plan = TwinsPlan(channels=(8, 8, 8, 8), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    twins, fixed = Twins(plan).eval(), Twins(plan, fix_window_mask=True).eval()
    fixed.load_state_dict(twins.state_dict())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for size_hw in ((64, 96), (224, 224)):
            images = torch.randn(1, 3, *size_hw)
            assert all(map(torch.equal, twins(images), fixed(images)))
        images = torch.randn(1, 3, 224, 32)
        correct = fixed(images)
        with pytest.warns(UserWarning, match="224x32: exactly one side is a multiple of 224.*fix_window_mask=True"):
            assert not twins(images)[0].allclose(correct[0], atol=1e-3)


def test_tokens_are_pixels_row_by_row() -> None:
    features = torch.arange(24.0).reshape(1, 2, 3, 4)
    tokens = to_tokens(features)
    assert tokens[0, 5].tolist() == features[0, :, 1, 1].tolist()
    assert to_map(tokens, (3, 4)).equal(features)


def test_paths_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    assert drop.eval()(x) is x
    dropped = drop.train()(x)
    assert {len(set(image.flatten().tolist())) for image in dropped} == {1}, "whole images"
    assert dropped.mean().item() == pytest.approx(1, abs=0.05) and (dropped == 0).float().mean() > 0.2
    rates = [block.rate for block in MixTransformer(MitPlan(**NARROW)).modules() if isinstance(block, DropPath)]
    assert rates == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1])


@pytest.mark.parametrize("name", ["mit_b2", "twins_svt_large"])
def test_other_strides_and_widths_are_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match="output stride: expected 32 of a transformer"):
        ENCODERS[name](16)
    with pytest.raises(ConfigError, match="fix_window_mask: expected an encoder with windows"):
        NetworkConfig(encoder="mit_b1", num_classes=3, fix_window_mask=True)


def test_a_transformer_of_another_size_is_named() -> None:
    shapes = dict(expected_shapes(KNOWN_CONFIGS["ade20k_mit_b1"]))
    shapes["backbone.block3.2.norm1.weight"] = (320,)
    with pytest.raises(
        CheckpointError, match=r"an encoder of another kind; The nearest known configuration is ade20k_mit"
    ):
        recognise(shapes, StoredFacts(), CheckpointOptions())


@pytest.mark.parametrize(
    ("name", "encoder", "head"),
    [
        ("ade20k_mit_b1", 10.43, 4.31),
        ("ade20k_mit_b2", 20.24, 4.82),
        ("ade20k_mit_b5", 117.36, 7.53),
        ("ade20k_twins_l", 84.68, 5.54),
    ],
)
def test_multiply_adds_are_those_of_the_authors_code(name: str, encoder: float, head: float) -> None:
    recipe = find_recipe(name)
    cost = count_cost(recipe.config, recipe.info, recipe.info.size_hw)
    assert cost.macs["encoder"] / 1e9 == pytest.approx(encoder, rel=0.01)
    assert (cost.total - cost.macs["encoder"]) / 1e9 == pytest.approx(head, rel=0.01)
