"""How ranges are estimated: small named recipes. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from nrd_trt.errors import ConfigError
from nrd_trt.files import canonical_json, sha256_bytes

Estimator = Literal["minmax", "percentile", "entropy", "mse"]
ESTIMATORS: tuple[Estimator, ...] = ("minmax", "percentile", "entropy", "mse")
_MIN_BINS = 512  # four per int8 level


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to turn activations into ranges.

    Attributes:
        name: Of the recipe.
        estimator: ``"minmax"`` takes the largest magnitude, ``"percentile"`` cuts the largest values off,
            ``"entropy"`` keeps the distribution closest to the original (Kullback-Leibler, as TensorRT's second
            entropy calibrator), ``"mse"`` minimises the squared error of the rounded values.
        percentile: Share of the values, in percent, that the range holds; for ``"percentile"``.
        bins: Of a histogram, a power of two; a tensor's values fill at least half of them.
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
        if self.estimator not in ESTIMATORS:
            raise ConfigError(
                f"recipe {self.name!r}: estimator {self.estimator!r}: expected one of {', '.join(ESTIMATORS)}."
            )
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
        """Of every field; the key of a cache."""
        return sha256_bytes(canonical_json(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "include": list(self.include), "exclude": list(self.exclude)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_dict`."""
        values = {field.name: data[field.name] for field in fields(cls)}
        return cls(**{**values, "include": tuple(data["include"]), "exclude": tuple(data["exclude"])})


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="minmax", estimator="minmax"),
        Recipe(name="percentile", estimator="percentile"),
        Recipe(name="entropy", estimator="entropy"),
        Recipe(name="mse", estimator="mse"),
    )
}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in RECIPES:
        raise ConfigError(f"--recipe {name!r}: expected one of {', '.join(RECIPES)}.")
    return RECIPES[name]
