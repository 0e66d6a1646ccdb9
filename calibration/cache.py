"""The file of ranges: what was measured, on what, and how; refused where model, data or recipe are others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import onnx

from nrd_trt.calibration.coverage import Coverage
from nrd_trt.calibration.histograms import TensorFigures
from nrd_trt.calibration.recipes import Recipe
from nrd_trt.data.exposure import Exposure
from nrd_trt.errors import CalibrationError
from nrd_trt.files import atomic_file, sha256_bytes
from nrd_trt.json_files import read_json


@dataclass(frozen=True, kw_only=True)
class Keys:
    """SHA-256 of what ranges belong to: the ONNX model, the images, the recipe.

    The checkpoint is named where ranges serve every size and form of its files, as those that ship do; else they serve
    the one model.
    """

    model: str
    data: str
    recipe: str
    checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Ranges of activations, the content of a file of ranges.

    Attributes:
        format: Number of the file's form.
        tensors: Largest magnitude that 8 bits shall represent, per tensor; above 0.
        images: Number of images.
        coverage: Classes that they show; None where the graph predicts none.
        zero: Tensors that were zero everywhere; their range is 1, as any represents zero.
        recipe: How the ranges were estimated.
        keys: What they belong to.
        figures: How the range of a tensor came about; those of `zero` have none.
        exposure: How bright the images are; None where that was not measured, as in files of before 0.2.
        warnings: What speaks against these ranges, in the order in which it was warned of.
    """

    format: Literal[1] = 1
    tensors: dict[str, Annotated[float, msgspec.Meta(gt=0)]]
    images: int
    coverage: Coverage | None
    zero: tuple[str, ...]
    recipe: Recipe
    keys: Keys
    figures: dict[str, TensorFigures]
    exposure: Exposure | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        return plain


def model_sha256(model: onnx.ModelProto) -> str:
    """Return the key of a model: the SHA-256 of its bytes, as this toolkit writes them."""
    return sha256_bytes(model.SerializeToString(deterministic=True))


def save_ranges(ranges: Ranges, path: Path) -> None:
    """Write the file atomically; an existing one is replaced."""
    text = json.dumps(ranges.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_ranges(path: Path, *, model: str | None = None, checkpoint: str | None = None) -> Ranges:
    """Read a file of ranges and compare it with the model that it shall be used for.

    Args:
        path: Written by `save_ranges`.
        model: Expected key (`model_sha256`); None accepts any.
        checkpoint: SHA-256 of the checkpoint that the model was exported from, where that is known.

    Raises:
        CalibrationError: The file cannot be read, or was made for another model.
    """
    try:
        ranges = read_json(path, Ranges)
    except (OSError, ValueError) as exc:
        raise CalibrationError(
            f"{path}: expected ranges of nrd_trt.calibrate, cannot read them ({exc}); calibrate again."
        ) from exc
    of_checkpoint = ranges.keys.checkpoint is not None and ranges.keys.checkpoint == checkpoint
    if model not in (None, ranges.keys.model) and not of_checkpoint:
        raise CalibrationError(
            f"{path}: made for other input, the ONNX model: expected {str(model)[:12]}…, got "
            f"{ranges.keys.model[:12]}…. Calibrate again with this model."
        )
    return ranges
