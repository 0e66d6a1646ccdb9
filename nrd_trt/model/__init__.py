"""Encoders, the NRD head and its checkpoints. Everything here needs PyTorch, which is imported on use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrd_trt.optional import require

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor
    from nrd_trt.model.recognise import CheckpointOptions


def require_torch(purpose: str) -> None:
    """Raise `MissingDependencyError` where PyTorch is not installed; say what it is needed for."""
    require("torch", extra="torch", purpose=purpose)


def load_trained(path: Path, options: CheckpointOptions | None = None, **fields: Any) -> Segmentor:
    """Load a checkpoint; see `nrd_trt.model.checkpoint.load_model`.

    Args:
        path: ``.pth`` or ``.safetensors``.
        options: What the user says about it, or None.
        **fields: The fields of `CheckpointOptions`, where `options` is None.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    require_torch("reading checkpoints")
    from nrd_trt.model.checkpoint import load_model
    from nrd_trt.model.recognise import CheckpointOptions

    return load_model(path, options or CheckpointOptions(**fields))
