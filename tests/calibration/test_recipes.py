"""Recipes and the choice of tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from nrd_trt.calibration.ranges import tensors_to_calibrate
from nrd_trt.calibration.recipes import RECIPES, find_recipe
from nrd_trt.errors import ConfigError
from nrd_trt.graph.quantize import choose_layers, plan_quantization
from nrd_trt.specs import DEFAULT_RECIPE, Estimator
from tests.helpers import small_export

MSE = RECIPES["mse"]


def test_every_estimator_has_a_recipe_of_its_name() -> None:
    assert {name: (recipe.name, recipe.estimator) for name, recipe in RECIPES.items()} == {
        name: (name, name) for name in get_args(Estimator)
    }
    assert find_recipe(DEFAULT_RECIPE) == RECIPES[DEFAULT_RECIPE]
    unknown: Any = "max"
    with pytest.raises(ConfigError, match="recipe='max': expected one of 'minmax', 'percentile', 'entropy', 'mse'"):
        find_recipe(unknown)
    assert find_recipe("mse", include=["a", "b"]) == replace(MSE, include=("a", "b"))
    with pytest.raises(ConfigError, match=r"exclude='a': expected a list of regular expressions.*give \['a'\]"):
        find_recipe("mse", exclude="a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "median"}, "expected one of 'minmax'"),
        ({"percentile": 0.9999}, r"expected 50 to 100, got 0\.9999"),
        ({"percentile": 100.5}, "expected 50 to 100"),
        ({"bins": 1000}, "power of two"),
        ({"bins": 256}, "from 512 up, got 256"),
        ({"samples": 100}, "expected at least as many as bins"),
        ({"include": ("a(",)}, r"'a\(': expected a regular expression"),
        ({"exclude": ("*",)}, "expected a regular expression"),
    ],
)
def test_invalid_recipe(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(MSE, **change)


def test_key_of_a_recipe_is_that_of_its_fields() -> None:
    changes: list[dict[str, Any]] = [{}, {"include": ("a",)}, {"exclude": ("a",)}, {"bins": 512}, {"samples": None}]
    assert len({replace(MSE, **change).sha256 for change in changes}) == len(changes)
    assert replace(MSE, include=("a",)).sha256 == replace(MSE, include=("a",)).sha256


def test_the_tensors_are_those_of_the_chosen_layers() -> None:
    model = small_export()
    chosen = tensors_to_calibrate(model, MSE)
    assert list(chosen) == list(plan_quantization(model, choose_layers(model)).tensors)
    assert len(chosen) == len(set(chosen)) > 40
    assert chosen[0] == "pixels"
    assert set(tensors_to_calibrate(model, MSE, "cpu")) > set(chosen), "ranges for a CPU serve both targets"
    head = tensors_to_calibrate(model, replace(MSE, include=(r"^decode_head\.",)))
    rest = tensors_to_calibrate(model, replace(MSE, exclude=(r"^decode_head\.",)))
    assert "pixels" in rest and "pixels" not in head
    assert set(head) | set(rest) == set(chosen)
    both = tensors_to_calibrate(model, replace(MSE, include=(r"^decode_head\.",), exclude=("aspp",)))
    assert set(both) < set(head)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"include": ("^decode_head", "layer9")}, r"'layer9': matches none of \d+ layers; one is 'backb"),
        ({"exclude": ("layer9",)}, r"'layer9': matches none of"),
        ({"include": ("aspp",), "exclude": ("aspp",)}, "leave no layer for int8"),
    ],
)
def test_patterns_that_choose_nothing_are_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tensors_to_calibrate(small_export(), replace(MSE, **changes))
