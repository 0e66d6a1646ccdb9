"""Encoders, the NRD head and its checkpoints. Everything here needs PyTorch, which is imported on use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from nrd_trt.errors import ConfigError
from nrd_trt.optional import require
from nrd_trt.specs import CheckpointOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model.network import Segmentor


class CheckpointFields(TypedDict, total=False):
    """What a user may say of a checkpoint whose file does not: the fields of `CheckpointOptions`."""

    num_classes: int | None
    hidden: int | None
    patch: int | None
    dilations: tuple[int, int, int, int] | None
    output_stride: int | None
    class_names: tuple[str, ...] | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    bgr: bool | None
    fix_window_mask: bool | None


def checkpoint_options(fields: Mapping[str, Any]) -> CheckpointOptions | None:
    """Return what is said of a checkpoint, or None where nothing is, so that no PyTorch is needed to say nothing.

    Raises:
        ConfigError: A name is not one of `CheckpointFields`.
        MissingDependencyError: PyTorch is not installed.
    """
    if unknown := sorted(fields.keys() - CheckpointFields.__annotations__.keys()):
        known = ", ".join(CheckpointFields.__annotations__)
        raise ConfigError(f"{unknown[0]}=: expected a known argument, or one that describes a checkpoint ({known}).")
    if all(value is None for value in fields.values()):
        return None
    require_torch("reading checkpoints")
    return CheckpointOptions(**fields)


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
    return load_trained(Path(path), checkpoint_options(options))


def load_trained(path: Path, options: CheckpointOptions | None = None) -> Segmentor:
    """Load a checkpoint as `load_model` does, with what the user says about it as one value."""
    require_torch("reading checkpoints")
    from nrd_trt.model.checkpoint import load_checkpoint

    return load_checkpoint(path, options)
