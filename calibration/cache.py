"""The file of ranges: what was measured, on what, and how; refused where model, data or recipe are others."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from nrd_trt.calibration.coverage import Coverage
from nrd_trt.calibration.recipes import Recipe
from nrd_trt.errors import CalibrationError
from nrd_trt.files import atomic_file, sha256_bytes

_FORMAT = 1
_KEYS = {"model": "the ONNX model", "data": "the images", "recipe": "the recipe"}


@dataclass(frozen=True, kw_only=True)
class TensorFigures:
    """How the range of one tensor came about.

    Attributes:
        largest: Largest magnitude of all values.
        clipped: See `nrd_trt.calibration.histograms.Estimate`.
        error: Likewise.
    """

    largest: float
    clipped: float | None
    error: float | None


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Ranges of activations.

    Attributes:
        tensors: Largest magnitude that int8 shall represent, per tensor; above 0.
        figures: Per tensor of `tensors`.
        zero: Tensors that were zero everywhere; their range is 1, as any represents zero.
        images: Number of images.
        coverage: Classes that they show; None where the graph predicts none.
        recipe: How the ranges were estimated.
        keys: SHA-256 of ``"model"``, ``"data"`` and ``"recipe"``.
    """

    tensors: Mapping[str, float]
    figures: Mapping[str, TensorFigures]
    zero: tuple[str, ...]
    images: int
    coverage: Coverage | None
    recipe: Recipe
    keys: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "format": _FORMAT,
            "tensors": dict(self.tensors),
            "images": self.images,
            "coverage": None if self.coverage is None else self.coverage.to_dict(),
            "zero": list(self.zero),
            "recipe": self.recipe.to_dict(),
            "keys": dict(self.keys),
            "figures": {name: asdict(figures) for name, figures in self.figures.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ranges:
        """Inverse of `to_dict`."""
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']}")
        return cls(
            tensors={name: _range(name, value) for name, value in data["tensors"].items()},
            figures={name: TensorFigures(**figures) for name, figures in data["figures"].items()},
            zero=tuple(data["zero"]),
            images=int(data["images"]),
            coverage=None if data["coverage"] is None else Coverage.from_dict(data["coverage"]),
            recipe=Recipe.from_dict(data["recipe"]),
            keys={key: str(data["keys"][key]) for key in _KEYS},
        )


def model_sha256(model: onnx.ModelProto) -> str:
    """Return the key of a model: the SHA-256 of its bytes, as this toolkit writes them."""
    return sha256_bytes(model.SerializeToString(deterministic=True))


def save_ranges(ranges: Ranges, path: Path) -> None:
    """Write the file atomically; an existing one is replaced."""
    text = json.dumps(ranges.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_ranges(path: Path, *, model: str | None = None, data: str | None = None, recipe: str | None = None) -> Ranges:
    """Read a file of ranges and hold it against what it shall be used for.

    Args:
        path: Written by `save_ranges`.
        model: Expected key (`model_sha256`); None accepts any. Likewise the others.
        data: `CalibrationStream.sha256`.
        recipe: `Recipe.sha256`.

    Raises:
        CalibrationError: The file cannot be read, or was made for another model, other images or another recipe; the
            message names what differs.
    """
    try:
        ranges = Ranges.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CalibrationError(
            f"{path}: expected ranges of `nrd-trt calibrate`, cannot read them ({exc!r}); calibrate again."
        ) from exc
    check_keys(ranges, path=path, model=model, data=data, recipe=recipe)
    return ranges


def check_keys(ranges: Ranges, *, path: Path, **expected: str | None) -> None:
    """Raise `CalibrationError` unless every expected key that is not None is that of the ranges."""
    differing = [key for key in _KEYS if expected.get(key) not in (None, ranges.keys[key])]
    if differing:
        details = "; ".join(
            f"{_KEYS[key]}: expected {str(expected[key])[:12]}…, got {ranges.keys[key][:12]}…" for key in differing
        )
        raise CalibrationError(
            f"{path}: made for other input, {details}. Calibrate again with this model, these images and this recipe."
        )


def _range(name: str, value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"range of {name}: {value}")
    return number
