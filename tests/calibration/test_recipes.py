"""Recipes and the choice of tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import onnx
import pytest

from nrd_trt.calibration.recipes import ESTIMATORS, RECIPES, Recipe, find_recipe
from nrd_trt.calibration.selection import tensors_to_calibrate
from nrd_trt.errors import ConfigError
from nrd_trt.graph.quantize import choose_layers, plan_quantization
from nrd_trt.specs import DEFAULT_RECIPE
from tests.helpers import small_export

MSE = RECIPES["mse"]


def test_every_estimator_has_a_recipe_and_every_recipe_its_name() -> None:
    assert {recipe.estimator for recipe in RECIPES.values()} == set(ESTIMATORS)
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}
    assert find_recipe(DEFAULT_RECIPE) is RECIPES[DEFAULT_RECIPE]


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'max': expected one of minmax, percentile, entropy, mse"):
        find_recipe("max")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "median"}, "expected one of minmax"),
        ({"percentile": 0.9999}, "expected 50 to 100, got 0.9999"),
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
    again = Recipe.from_dict(json.loads(json.dumps(replace(MSE, include=("a", "b")).to_dict())))
    assert again == replace(MSE, include=("a", "b"))
    assert again.sha256 == replace(MSE, include=("a", "b")).sha256
    changes: list[dict[str, Any]] = [{}, {"include": ("a",)}, {"exclude": ("a",)}, {"bins": 512}, {"samples": None}]
    assert len({replace(MSE, **change).sha256 for change in changes}) == len(changes)


def layers(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def test_the_tensors_are_those_that_get_pairs() -> None:
    model = small_export()
    chosen = tensors_to_calibrate(model, MSE)
    assert list(chosen) == list(plan_quantization(model, choose_layers(model)).tensors)
    assert len(chosen) == len(set(chosen)) > 40
    assert chosen[0] == "pixels"


def test_patterns_choose_layers() -> None:
    model = small_export()
    head = tensors_to_calibrate(model, replace(MSE, include=(r"^decode_head\.",)))
    rest = tensors_to_calibrate(model, replace(MSE, exclude=(r"^decode_head\.",)))
    assert "pixels" in rest and "pixels" not in head
    assert set(head) | set(rest) == set(tensors_to_calibrate(model, MSE))
    both = tensors_to_calibrate(model, replace(MSE, include=(r"^decode_head\.",), exclude=("aspp",)))
    assert set(both) < set(head)


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_pattern_without_a_match_is_an_error(field: str) -> None:
    changes: dict[str, Any] = {field: ("^decode_head", "layer9")}
    with pytest.raises(ConfigError, match=r"'layer9': matches none of \d+ layers; one is 'backb"):
        tensors_to_calibrate(small_export(), replace(MSE, **changes))


def test_patterns_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(ConfigError, match="leave no layer for int8"):
        tensors_to_calibrate(small_export(), replace(MSE, include=("aspp",), exclude=("aspp",)))
