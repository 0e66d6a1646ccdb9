"""From a trained PyTorch NRD segmentation network to a checked TensorRT engine.

Every verb of the command line is a function here. The package imports nothing heavy: a function's room, and with it
torch, onnx or TensorRT, is imported when the function is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nrd_trt.errors import (
    BuildError,
    BundleError,
    CalibrationError,
    CheckpointError,
    ConfigError,
    ExportError,
    MissingDependencyError,
    NrdTrtError,
    PluginError,
    RunnerError,
    ShapeError,
    VideoError,
)

if TYPE_CHECKING:
    from nrd_trt.benchmarking.benchmark import benchmark
    from nrd_trt.building.build import build
    from nrd_trt.building.calibrate import calibrate
    from nrd_trt.building.tune import tune
    from nrd_trt.exporting.export import export
    from nrd_trt.inspection.inspect import inspect
    from nrd_trt.machine.doctor import doctor
    from nrd_trt.model import load_model
    from nrd_trt.runtime.engine import open_bundle
    from nrd_trt.serving.serve import serve
    from nrd_trt.training.complexity import complexity
    from nrd_trt.training.train import train
    from nrd_trt.validation.evaluate import evaluate
    from nrd_trt.validation.validate import validate
    from nrd_trt.video.segment_video import segment_video

__version__ = "0.1.0"

__all__ = [
    "BuildError",
    "BundleError",
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "ExportError",
    "MissingDependencyError",
    "NrdTrtError",
    "PluginError",
    "RunnerError",
    "ShapeError",
    "VideoError",
    "__version__",
    "benchmark",
    "build",
    "calibrate",
    "complexity",
    "doctor",
    "evaluate",
    "export",
    "inspect",
    "load_model",
    "open_bundle",
    "segment_video",
    "serve",
    "train",
    "tune",
    "validate",
]

_FUNCTIONS = {
    "benchmark": "nrd_trt.benchmarking.benchmark",
    "build": "nrd_trt.building.build",
    "calibrate": "nrd_trt.building.calibrate",
    "complexity": "nrd_trt.training.complexity",
    "doctor": "nrd_trt.machine.doctor",
    "evaluate": "nrd_trt.validation.evaluate",
    "export": "nrd_trt.exporting.export",
    "inspect": "nrd_trt.inspection.inspect",
    "load_model": "nrd_trt.model",
    "open_bundle": "nrd_trt.runtime.engine",
    "segment_video": "nrd_trt.video.segment_video",
    "serve": "nrd_trt.serving.serve",
    "train": "nrd_trt.training.train",
    "tune": "nrd_trt.building.tune",
    "validate": "nrd_trt.validation.validate",
}


def __getattr__(name: str) -> Any:
    """Import a function's room when the function is first asked for."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'nrd_trt' has no attribute {name!r}")
    function = globals()[name] = getattr(import_module(_FUNCTIONS[name]), name)
    return function


def __dir__() -> list[str]:
    return __all__
