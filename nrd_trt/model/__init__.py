"""Encoders, the NRD head and its checkpoints. Everything here needs PyTorch, which is imported on use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from nrd_trt.errors import ConfigError
from nrd_trt.optional import require

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model.network import Segmentor


class CheckpointFields(TypedDict, total=False):
    """What a user may say of a checkpoint; None leaves it to the file and the released defaults."""

    num_classes: int | None
    hidden: int | None
    patch: int | None
    dilations: tuple[int, int, int, int] | None
    output_stride: int | None
    class_names: tuple[str, ...] | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    bgr: bool | None


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless each name is one of `CheckpointFields`."""
    if unknown := sorted(fields.keys() - CheckpointFields.__annotations__.keys()):
        known = ", ".join(CheckpointFields.__annotations__)
        raise ConfigError(f"{unknown[0]}=: expected a known argument, or one that describes a checkpoint ({known}).")


def require_torch(purpose: str) -> None:
    """Raise `MissingDependencyError` where PyTorch is not installed; say what it is needed for."""
    require("torch", extra="torch", purpose=purpose)


def load_model(path: Path | str, **options: Unpack[CheckpointFields]) -> Segmentor:
    """Load a trained model from ``.pth`` or ``.safetensors``, in evaluation mode.

    Args:
        path: The checkpoint; nothing in it is executed.
        **options: What the file does not tell, e.g. ``num_classes=19``; see `CheckpointFields`.

    Returns:
        The model: ``model(images (B, 3, H, W) float32 normalised)`` gives logits ``(B, K, f·H/32, f·W/32)`` and
        ``model.predict(images)`` gives class indices ``(B, H, W) int64``.

    Raises:
        MissingDependencyError: PyTorch is not installed.
        CheckpointError: The file is unreadable, holds other types than plain tensors, or another network.
        ConfigError: An option is not known, or contradicts the checkpoint.
    """
    check_fields(options)
    require_torch("reading checkpoints")
    from nrd_trt.model.checkpoint import load_checkpoint

    return load_checkpoint(Path(path), options)
