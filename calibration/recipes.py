"""How ranges are estimated: small named recipes. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import get_args

from nrd_trt.errors import ConfigError
from nrd_trt.files import canonical_json, sha256_bytes
from nrd_trt.specs import Estimator, check_choice

_MIN_BINS = 512  # four per int8 level


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to turn activations into ranges.

    Attributes:
        name: Name of the recipe.
        estimator: ``"minmax"`` takes the largest magnitude, ``"percentile"`` cuts the largest values off,
            ``"entropy"`` keeps the distribution closest to the original (Kullback-Leibler, as TensorRT's second
            entropy calibrator), ``"mse"`` minimises the squared error of the rounded values.
        percentile: Share of the values, in percent, that the range holds; for ``"percentile"``.
        bins: Bins of a histogram, a power of two; a tensor's values fill at least half of them.
        samples: Values per tensor and feed that go into the histogram, spread evenly over channels and pixels; None
            takes every value. The largest magnitude is that of all values in any case.
        include: Regular expressions; where there are any, a layer must match one (`re.search` in its name).
        exclude: Regular expressions; a layer must match none.
    """

    name: str
    estimator: Estimator
    percentile: float = 99.99
    bins: int = 4096
    samples: int | None = 1 << 14
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, Estimator)
        if not 50 <= self.percentile <= 100:
            raise ConfigError(f"recipe {self.name!r}: percentile: expected 50 to 100, got {self.percentile}.")
        if self.bins < _MIN_BINS or self.bins & (self.bins - 1):
            raise ConfigError(
                f"recipe {self.name!r}: bins: expected a power of two from {_MIN_BINS} up, got {self.bins}."
            )
        if self.samples is not None and self.samples < self.bins:
            raise ConfigError(
                f"recipe {self.name!r}: samples: expected at least as many as bins ({self.bins}), got {self.samples}."
            )
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as exc:
                raise ConfigError(f"layer pattern {pattern!r}: expected a regular expression ({exc}).") from exc

    @property
    def sha256(self) -> str:
        """Hash of every field, the recipe's key in a file of ranges."""
        return sha256_bytes(canonical_json(asdict(self)))


RECIPES: Mapping[str, Recipe] = {name: Recipe(name=name, estimator=name) for name in get_args(Estimator)}


def find_recipe(name: Estimator, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name, for the layers that regular expressions choose.

    Raises:
        ConfigError: There is none of this name, or one value is a text in place of several, or no regular expression.
    """
    check_choice("recipe", name, Estimator)
    for option, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ConfigError(
                f"{option}={patterns!r}: expected a list of regular expressions, got a text; give [{patterns!r}]."
            )
    return replace(RECIPES[name], include=tuple(include), exclude=tuple(exclude))
