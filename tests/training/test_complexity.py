"""Multiply-adds, parameters, activations: against the authors' figures, formulas, and hooks on a network that runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nrd_trt.errors import ConfigError, MissingDependencyError, ShapeError
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.config import NetworkConfig
from nrd_trt.model.network import Segmentor
from nrd_trt.training.complexity import complexity, count_cost
from nrd_trt.training.recipes import find_recipe
from tests.helpers import SMALL, model_info, small_model

SIZE_HW = (64, 96)
PARTS = ["encoder", "aspp", "bottleneck", "guidance", "controller", "decode"]


def network(**changes: object) -> NetworkConfig:
    return NetworkConfig(**{**SMALL, **changes})


def convolutions(model: Segmentor, size_hw: tuple[int, int]) -> tuple[int, int]:
    """Multiply-adds of the convolutions of a real forward pass, and the numbers that they write."""
    macs, written = [], []

    def count(module: nn.Conv2d, _: tuple[Tensor, ...], out: Tensor) -> None:
        macs.append(out.numel() * module.weight[0].numel())
        written.append(out.numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, *size_hw))
    return sum(macs), sum(written)


def test_cityscapes_r50_has_the_figures_of_the_authors_code() -> None:
    got = complexity("cityscapes_r50", size=(1024, 2048)).to_dict()
    assert got["total_gmac"] == pytest.approx(234.2, rel=0.005)
    assert list(got["parts"]) == PARTS
    expected = dict(zip(PARTS, (180.8, 8.7, 24.2, 14.6, 5.8, 0.111), strict=True))
    assert got["parts"] == pytest.approx(expected, rel=0.005)
    assert got["decoder_gmac"] == pytest.approx(20.48, rel=0.005)
    assert got["decoder_ratio"] == pytest.approx(0.269, rel=0.005)
    assert got["dilated_ratio"] == pytest.approx(0.1086, rel=0.005)
    assert (got["size"], got["encoder"], got["head"]) == ("1024x2048", "resnetv1c50", "nrd")


def test_other_published_figures() -> None:
    pascal = complexity("pascal_context_r101")
    assert pascal.size_hw == (480, 480), "the recipe's own size"
    assert pascal.to_dict()["total_gmac"] == pytest.approx(42.9, rel=0.005)
    plus = complexity("cityscapes_r50", size=(1024, 2048), head="deeplabv3plus")
    assert plus.to_dict()["decoder_gmac"] == pytest.approx(76.1, rel=0.005)
    assert plus.decoder_ratio == 1


def test_dilated_deeplabv3_is_what_the_whole_is_compared_with() -> None:
    dilated = complexity("camvid_r18", head="deeplabv3", output_stride=8, dilations=(1, 12, 24, 36))
    plain = complexity("camvid_r18")
    assert dilated.dilated_ratio == 1
    assert plain.dilated_ratio == pytest.approx(plain.cost.total / dilated.cost.total)
    assert dilated.config.dilations == (1, 12, 24, 36)


@pytest.mark.parametrize(
    ("classes", "hidden", "guidance", "head"), [(11, 16, 16, "nrd"), (19, 5, 7, "nrd"), (11, 16, 16, "nrd_no_aspp")]
)
def test_every_product_of_nrd_is_counted(classes: int, hidden: int, guidance: int, head: str) -> None:
    changes = {"num_classes": classes, "hidden": hidden, "guidance_channels": guidance, "head": head}
    cost = count_cost(network(**changes), model_info(classes), SIZE_HW)
    pixels = SIZE_HW[0] * SIZE_HW[1] // 16
    assert cost.macs["decode"] == pixels * ((2 + guidance) * hidden + hidden**2 + hidden * classes)
    assert (cost.macs["aspp"] == 0) == (cost.macs["bottleneck"] == 0) == (head == "nrd_no_aspp")
    model = small_model(**changes)
    macs, written = convolutions(model, SIZE_HW)
    assert cost.total == macs + cost.macs["decode"]
    # Products of the decode: coordinates and guidance of the first layer apart, then the second layer and the logits.
    assert cost.activation_bytes == 4 * (written + pixels * (3 * hidden + classes))
    unused = 32 * classes + classes  # mmseg's classifier
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters()) - unused


@pytest.mark.parametrize(("head", "stride"), [("deeplabv3plus", 8), ("bilinear", 32), ("deeplabv3", 8)])
def test_every_product_of_a_baseline_is_counted(head: str, stride: int) -> None:
    changes = {"head": head, "output_stride": stride}
    cost = count_cost(network(**changes), model_info(11), SIZE_HW)
    model = small_model(**changes)
    macs, written = convolutions(model, SIZE_HW)
    assert cost.total == sum(cost.macs.values()) == macs
    assert cost.activation_bytes == 4 * written
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    width, c1, encoder_c1 = 32, 48, 24
    pixels = SIZE_HW[0] * SIZE_HW[1] // (16 if head == "deeplabv3plus" else stride**2)
    plus = head == "deeplabv3plus"
    refined = 9 * (width + c1) + (width + c1) * width + 9 * width + width * width if plus else 0
    assert cost.macs["decode"] == pixels * (refined + width * 11)
    assert cost.macs["guidance"] == (pixels * encoder_c1 * c1 if plus else 0)
    assert cost.macs["controller"] == 0
    context = SIZE_HW[0] * SIZE_HW[1] // stride**2
    assert cost.macs["bottleneck"] == context * 9 * 5 * width * width


def test_checkpoint_and_its_recipe_agree(tmp_path: Path) -> None:
    recipe = find_recipe("camvid_mobilenetv2")
    save_checkpoint(Segmentor(recipe.config, recipe.info), tmp_path / "a.safetensors")
    of_file = complexity(tmp_path / "a.safetensors")
    assert of_file == complexity("camvid_mobilenetv2") and of_file.size_hw == (352, 480)


def test_options_of_a_checkpoint_are_heeded(tmp_path: Path) -> None:
    config = network(head="deeplabv3")
    save_checkpoint(Segmentor(config, model_info(11)), tmp_path / "a.safetensors")
    got = complexity(tmp_path / "a.safetensors", size=SIZE_HW, output_stride=8)
    assert got.cost == count_cost(replace(config, output_stride=8), model_info(11), SIZE_HW)
    with pytest.raises(ConfigError, match=r"head=nrd: .*a\.safetensors is a checkpoint"):
        complexity(tmp_path / "a.safetensors", head="nrd")


def test_what_cannot_be_counted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pth: expected a checkpoint file or the name of a recipe \(city"):
        complexity("absent.pth")
    with pytest.raises(ConfigError, match="dilated encoder takes one of the other heads"):
        complexity("camvid_r18", output_stride=8)
    with pytest.raises(ConfigError, match=r"^hidden=: describes a checkpoint, camvid_r18 is a recipe"):
        complexity("camvid_r18", hidden=8)
    with pytest.raises(ShapeError, match="nearest valid size is 96x96"):
        complexity("camvid_r18", size=(100, 100))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"nrd-trt\[torch\]"):
        complexity("camvid_r18")
