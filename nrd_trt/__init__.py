"""From a trained PyTorch NRD segmentation network to a checked TensorRT engine.

The package imports nothing heavy: torch, onnx and TensorRT are loaded by the functions that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nrd_trt.errors import (
    BuildError,
    BundleError,
    CalibrationError,
    CheckpointError,
    ConfigError,
    ExportError,
    LateOutputError,
    MissingDependencyError,
    NrdTrtError,
    PluginError,
    RunnerError,
    ShapeError,
    VideoError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from nrd_trt.model.network import Segmentor
    from nrd_trt.runtime.predictor import Predictor

__version__ = "0.1.0"

__all__ = [
    "BuildError",
    "BundleError",
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "ExportError",
    "LateOutputError",
    "MissingDependencyError",
    "NrdTrtError",
    "PluginError",
    "RunnerError",
    "ShapeError",
    "VideoError",
    "__version__",
    "load_model",
    "open_bundle",
]


def load_model(path: str | Path, **options: Any) -> Segmentor:
    """Load a trained NRD model from ``.pth`` or ``.safetensors``, in evaluation mode.

    Args:
        path: The checkpoint.
        **options: Fields of `nrd_trt.model.checkpoint.CheckpointOptions`, e.g. ``num_classes=19``.

    Returns:
        The model: ``model(images (B, 3, H, W) float32 normalised)`` gives logits ``(B, K, f·H/32, f·W/32)`` and
        ``model.predict(images)`` gives class indices ``(B, H, W) int64``.

    Raises:
        CheckpointError: The file is unreadable or holds another model.
    """
    from pathlib import Path

    from nrd_trt.model import load_trained

    return load_trained(Path(path), **options)


def open_bundle(
    path: str | Path, *, runner: str = "auto", threads: int | None = None, plugin: str | Path | None = None
) -> Predictor:
    """Open a bundle for prediction: ``open_bundle(path).predict(rgb (H, W, 3) uint8) -> (H, W) uint8``.

    Args:
        path: A ``NAME.nrd`` folder.
        runner: ``"auto"``, ``"onnxruntime"`` or ``"tensorrt"``.
        threads: CPU threads; None leaves the choice to the backend.
        plugin: Library of a plan that was built with ``--decode plugin``; None looks for it.

    Returns:
        A predictor; it may be used as a context manager and closes itself otherwise.

    Raises:
        BundleError: A file of the bundle was changed or is missing.
        PluginError: The library asked for is not that of the build, or cannot be used here.
    """
    from pathlib import Path

    from nrd_trt.runtime.predictor import Predictor

    library = None if plugin is None else Path(plugin)
    return Predictor(path, runner=runner, threads=threads, plugin=library)
