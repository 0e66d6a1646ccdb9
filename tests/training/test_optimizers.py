"""Optimisers: which parameters each one takes, the rates, and Muon's arithmetic."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from nrd_trt.model.network import Segmentor
from nrd_trt.training.objective import Objective
from nrd_trt.training.optimizers import Muon, make_optimizers, orthogonalised, set_rate
from nrd_trt.training.recipes import RECIPES
from tests.training.conftest import tiny


def random_matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def objective(**changes: Any) -> Objective:
    recipe = tiny(**changes)
    return Objective(Segmentor(recipe.config, recipe.info), recipe, None)


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((16, 144), 1e-6), ((144, 16), 1e4), ((48, 48), 1.0), ((1, 40), 1e4), ((40, 1), 1e-6)],
    ids=str,
)
def test_orthogonalised_has_the_singular_vectors_with_values_near_one(shape: tuple[int, int], scale: float) -> None:
    left, values, right = torch.linalg.svd(random_matrix(*shape), full_matrices=False)
    uneven = torch.logspace(0, -1.7, len(values))  # from 1 down to a fiftieth
    result = orthogonalised(left * uneven @ right * scale)
    assert result.shape == shape and result.dtype == torch.float32
    inside = left.T @ result @ right.T  # the singular vectors stay
    found = inside.diag()
    assert found.min() > 0.6 and found.max() < 1.25  # five steps of the quintic leave 0.68 to 1.14, rounding adds some
    assert (inside - found.diag()).abs().max() < 1e-4
    assert not orthogonalised(torch.zeros(shape)).any()


@pytest.mark.parametrize(("shape", "factor"), [((8, 2, 3, 3), 1.0), ((32, 2, 1, 1), 4.0)])
def test_muon_steps(shape: tuple[int, ...], factor: float) -> None:
    """Two steps against the formula; a tall matrix moves further by the root of its sides' ratio."""
    start, *gradients = (random_matrix(shape[0], shape[1] * shape[2] * shape[3], seed) for seed in range(3))
    kernel = nn.Parameter(start.view(shape).to(memory_format=torch.channels_last))
    optimizer = Muon([kernel], lr=0.1, weight_decay=0.5)
    expected, momentum = start, torch.zeros_like(start)
    for gradient in gradients:
        kernel.grad = gradient.view(shape)
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = 0.05 * gradient + 0.95 * momentum
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * factor * orthogonalised(direction)
        torch.testing.assert_close(kernel.detach().reshape(start.shape), expected, rtol=0, atol=1e-5)
    assert ((kernel.detach().reshape(start.shape) - start * 0.95**2) * (gradients[0] + gradients[1])).sum() < 0


def test_muon_goes_on_from_its_state() -> None:
    first = nn.Parameter(random_matrix(6, 18).view(6, 2, 3, 3))
    optimizer = Muon([first], lr=0.1, weight_decay=0.01)
    optimizer.step()
    assert first.equal(random_matrix(6, 18).view(6, 2, 3, 3)), "without a gradient nothing moves"
    first.grad = random_matrix(6, 18, 1).view(6, 2, 3, 3)
    optimizer.step()
    set_rate([optimizer], 0.3)
    second = nn.Parameter(first.detach().clone())
    other = Muon([second], lr=7.0, weight_decay=7.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh = nn.Parameter(first.detach().clone())
    for kernel, used in ((first, optimizer), (second, other), (fresh, Muon([fresh], lr=0.03, weight_decay=0.01))):
        kernel.grad = random_matrix(6, 18, 2).view(6, 2, 3, 3)
        used.step()
    assert first.equal(second)
    assert not first.equal(fresh), "the momentum is part of the state"


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize(("kind", "frozen_stages"), [("sgd", 2), ("adamw", 0), ("muon", 2)])
def test_every_trained_parameter_has_one_optimizer(kind: Any, frozen_stages: int) -> None:
    model = objective(optimizer=kind, frozen_stages=frozen_stages)
    optimizers = make_optimizers(tiny(optimizer=kind, frozen_stages=frozen_stages), model)
    taken = [name for optimizer in optimizers for name in names_of(model, optimizer)]
    assert sorted(taken) == sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    types = {"sgd": [torch.optim.SGD], "adamw": [torch.optim.AdamW], "muon": [torch.optim.AdamW, Muon]}
    assert [type(optimizer) for optimizer in optimizers] == types[kind]


def test_muon_takes_the_kernels_between_layers() -> None:
    model = objective()
    adamw, muon = make_optimizers(tiny(), model)
    taken, left = names_of(model, muon), names_of(model, adamw)
    assert {
        "segmentor.backbone.layer2.0.conv.0.conv.weight",  # 1x1 that widens
        "segmentor.backbone.layer7.0.conv.2.conv.weight",  # 1x1 that narrows
        "segmentor.decode_head.bottleneck.conv.weight",  # 3x3
        "segmentor.decode_head.aspp_modules.1.pointwise_conv.conv.weight",
        "auxiliary_head.convs.0.conv.weight",
    } <= taken
    assert {
        "segmentor.backbone.conv1.conv.weight",  # reads the image
        "segmentor.backbone.layer2.0.conv.1.conv.weight",  # depthwise
        "segmentor.backbone.layer2.0.conv.0.bn.weight",
        "segmentor.decode_head.classifier.classifier.1.weight",  # outputs
        "segmentor.decode_head.c1_bottleneck.1.conv.weight",
        "auxiliary_head.conv_seg.weight",
    } <= left
    parameters = dict(model.named_parameters())
    assert all(parameters[name].ndim == 4 for name in taken)


def test_grouped_kernels_are_left_to_adamw() -> None:
    model = nn.ModuleList([nn.Conv2d(8, 8, 3, groups=2, bias=False), nn.Conv2d(8, 8, 3, bias=False)])
    adamw, muon = make_optimizers(tiny(), model)
    assert (names_of(model, adamw), names_of(model, muon)) == ({"0.weight"}, {"1.weight"})
    (only,) = make_optimizers(tiny(), nn.Conv2d(3, 8, 3))
    assert isinstance(only, torch.optim.AdamW)


def test_recipes_numbers_reach_the_optimizers() -> None:
    recipe = tiny(lr=0.5, muon_lr=0.25, weight_decay=0.125)
    optimizers = make_optimizers(recipe, objective())
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert [(group["peak"], group["weight_decay"]) for group in groups] == [(0.5, 0.125), (0.25, 0.125)]
    for share in (1.0, 0.5, 0.1):  # each from the peak, not from the one before
        set_rate(optimizers, share)
        assert [group["lr"] for group in groups] == [0.5 * share, 0.25 * share]
    (sgd,) = make_optimizers(replace(recipe, optimizer="sgd"), objective())
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["weight_decay"]) == (0.9, 0.125)


@pytest.mark.parametrize(
    ("recipe", "name", "rate", "decay"),
    [
        ("ade20k_mit_b1", "segmentor.backbone.block1.0.attn.norm.weight", 1.0, 0.0),
        ("ade20k_mit_b1", "segmentor.backbone.block1.0.attn.q.bias", 1.0, 1.0),
        ("ade20k_mit_b1", "segmentor.backbone.block1.0.mlp.dwconv.dwconv.weight", 1.0, 1.0),
        ("ade20k_mit_b1", "segmentor.decode_head.cat_norm.weight", 10.0, 1.0),
        ("ade20k_mit_b1", "auxiliary_head.conv_seg.weight", 10.0, 1.0),
        ("ade20k_twins_l", "segmentor.backbone.pos_block.0.proj.0.bias", 1.0, 0.0),
        ("ade20k_twins_l", "segmentor.backbone.norm_list.3.bias", 1.0, 0.0),
        ("ade20k_twins_l", "segmentor.decode_head.cat_norm.weight", 1.0, 0.0),
        ("ade20k_twins_l", "segmentor.decode_head.image_pool.1.bn.weight", 1.0, 1.0),
    ],
)
def test_transformers_have_the_released_rates(recipe: str, name: str, rate: float, decay: float) -> None:
    given = replace(tiny(), optimizer="adamw", lr=0.5, weight_decay=0.25, named_rates=RECIPES[recipe].named_rates)
    model: Any = mock.Mock()
    model.named_parameters.return_value = [(name, nn.Parameter(torch.zeros(2)))]
    ((group,),) = (optimizer.param_groups for optimizer in make_optimizers(given, model))
    assert (group["peak"], group["weight_decay"]) == (rate * 0.5, decay * 0.25)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_a_trained_encoder_learns_at_its_share_of_the_rate(kind: Any) -> None:
    recipe = tiny(optimizer=kind, lr=0.5, muon_lr=0.25, encoder_rate=0.1)
    model = objective(optimizer=kind)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates: dict[bool, set[float]] = {True: set(), False: set()}
    for optimizer in make_optimizers(recipe, model):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                rates[".backbone." in names.pop(id(parameter))].add(group["peak"])
    peaks = {0.5, 0.25} if kind == "muon" else {0.5}
    assert rates == {True: {0.1 * peak for peak in peaks}, False: peaks}
    assert not [name for name in names.values() if ".backbone." in name]
