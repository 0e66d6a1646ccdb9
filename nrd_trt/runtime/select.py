"""Which runner a bundle gets on this machine. Backends are imported on use."""

from __future__ import annotations

from nrd_trt.engine.bundle import Bundle
from nrd_trt.errors import ConfigError, RunnerError
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.ort_runner import OrtRunner

RUNNERS = ("auto", "torch", "onnxruntime", "tensorrt", "tensorrt-rtx")


def make_runner(bundle: Bundle, runner: str = "auto", *, threads: int | None = None) -> BaseRunner:
    """Make the runner of a bundle.

    Args:
        bundle: Opened.
        runner: ``"auto"`` takes ONNX Runtime; this version does not run plans.
        threads: CPU threads; None leaves the choice to the backend.

    Raises:
        ConfigError: An unknown name, or one that a bundle cannot run with.
        RunnerError: The runner is not available in this version.
    """
    if runner not in RUNNERS:
        raise ConfigError(f"--runner {runner!r}: expected one of {', '.join(RUNNERS)}.")
    if runner == "torch":
        raise ConfigError("--runner torch: a bundle holds no PyTorch model; give the checkpoint instead.")
    if runner in ("tensorrt", "tensorrt-rtx"):
        raise RunnerError(
            f"--runner {runner}: this version builds plans and does not run them yet; use --runner onnxruntime, or "
            "load model.plan with TensorRT's own tools."
        )
    return OrtRunner(bundle.onnx_path, threads=threads)
