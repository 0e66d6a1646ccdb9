"""From a trained PyTorch NRD segmentation network to a checked TensorRT engine.

Every verb of the command line is a function here. The package imports nothing heavy: a function's room, and with it
torch, onnx or TensorRT, is imported when the function is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nrd_trt.errors import BatchError as BatchError
from nrd_trt.errors import BuildError as BuildError
from nrd_trt.errors import BundleError as BundleError
from nrd_trt.errors import CalibrationError as CalibrationError
from nrd_trt.errors import CheckpointError as CheckpointError
from nrd_trt.errors import ConfigError as ConfigError
from nrd_trt.errors import ExportError as ExportError
from nrd_trt.errors import MissingDependencyError as MissingDependencyError
from nrd_trt.errors import NrdTrtError as NrdTrtError
from nrd_trt.errors import PluginError as PluginError
from nrd_trt.errors import RunnerError as RunnerError
from nrd_trt.errors import ShapeError as ShapeError
from nrd_trt.errors import VideoError as VideoError

if TYPE_CHECKING:
    from nrd_trt.batch.segment_dataset import segment_dataset as segment_dataset
    from nrd_trt.benchmarking.benchmark import benchmark as benchmark
    from nrd_trt.building.build import build as build
    from nrd_trt.building.calibrate import calibrate as calibrate
    from nrd_trt.engine.bundle import sign as sign
    from nrd_trt.exporting.export import export as export
    from nrd_trt.inspection.inspect import inspect as inspect
    from nrd_trt.machine.doctor import doctor as doctor
    from nrd_trt.model import load_model as load_model
    from nrd_trt.optimization.optimize import optimize as optimize
    from nrd_trt.optimization.prune import prune as prune
    from nrd_trt.optimization.tune import tune as tune
    from nrd_trt.packaging.package import package as package
    from nrd_trt.proving.selftest import selftest as selftest
    from nrd_trt.runtime.engine import open_bundle as open_bundle
    from nrd_trt.serving.serve import serve as serve
    from nrd_trt.training.complexity import complexity as complexity
    from nrd_trt.training.train import train as train
    from nrd_trt.validation.evaluate import evaluate as evaluate
    from nrd_trt.validation.validate import validate as validate
    from nrd_trt.video.segment_video import segment_video as segment_video

__version__ = "0.1.0"

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
    "optimize": "nrd_trt.optimization.optimize",
    "package": "nrd_trt.packaging.package",
    "prune": "nrd_trt.optimization.prune",
    "segment_dataset": "nrd_trt.batch.segment_dataset",
    "segment_video": "nrd_trt.video.segment_video",
    "selftest": "nrd_trt.proving.selftest",
    "serve": "nrd_trt.serving.serve",
    "sign": "nrd_trt.engine.bundle",
    "train": "nrd_trt.training.train",
    "tune": "nrd_trt.optimization.tune",
    "validate": "nrd_trt.validation.validate",
}
__all__ = sorted(["__version__", *_FUNCTIONS, *(name for name in globals() if name.endswith("Error"))])


def __getattr__(name: str) -> Any:
    """Import a function's room when the function is first asked for."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'nrd_trt' has no attribute {name!r}")
    function = globals()[name] = getattr(import_module(_FUNCTIONS[name]), name)
    return function


def __dir__() -> list[str]:
    return __all__
