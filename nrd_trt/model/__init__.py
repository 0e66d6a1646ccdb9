"""Encoders, the NRD head and its checkpoints. Everything here needs PyTorch, which is imported on use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrd_trt.optional import require

if TYPE_CHECKING:
    from nrd_trt.model.checkpoint import CheckpointOptions
    from nrd_trt.model.network import NrdSegmentor


def load_trained(path: Path, options: CheckpointOptions | None = None, **fields: Any) -> NrdSegmentor:
    """Load a checkpoint; see `nrd_trt.model.checkpoint.load_model`.

    Args:
        path: ``.pth`` or ``.safetensors``.
        options: What the user says about it, or None.
        **fields: The fields of `CheckpointOptions`, where `options` is None.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    require("torch", extra="torch", purpose="reading checkpoints")
    from nrd_trt.model.checkpoint import CheckpointOptions, load_model

    return load_model(path, options or CheckpointOptions(**fields))
