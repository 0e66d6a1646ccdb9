"""NVIDIA Model Optimizer as the quantizer: a subprocess, because importing it changes ONNX Runtime for the process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx

from nrd_trt.errors import CalibrationError, MissingDependencyError
from nrd_trt.graph.metadata import read_facts, write_facts

_MODULE = "modelopt.onnx.quantization"
_TAIL = 2000  # characters of its output that go into an error message


def check_modelopt() -> None:
    """Raise `MissingDependencyError` unless Model Optimizer is installed."""
    if importlib.util.find_spec("modelopt") is None:
        raise MissingDependencyError(
            "quantizer='modelopt': expected NVIDIA Model Optimizer, found none; install it with "
            "`pip install 'nrd-trt[modelopt]'`, or leave it out: our own quantizer needs nothing."
        )


def quantize_with_modelopt(
    full: onnx.ModelProto, images: Iterable[np.ndarray], *, exclude: Sequence[str]
) -> onnx.ModelProto:
    """Return the fp32 file with Model Optimizer's Q/DQ pairs, in fp32 otherwise.

    Args:
        full: An fp32 file of this toolkit.
        images: Feeds of its input ``image``, each with its batch dimension; all are held in one array.
        exclude: Regular expressions of node names that stay as they are.

    Raises:
        MissingDependencyError: Model Optimizer is not installed.
        CalibrationError: It failed; the message ends with its last words.
    """
    check_modelopt()
    with tempfile.TemporaryDirectory(prefix="nrd_trt-modelopt-") as name:
        folder = Path(name)
        source, target, data = folder / "model.onnx", folder / "quantized.onnx", folder / "images.npz"
        onnx.save(full, source)
        np.savez(data, image=np.concatenate(list(images)))
        options: dict[str, list[str]] = {
            "quantize_mode": ["int8"],
            "calibration_eps": ["cpu"],
            "onnx_path": [str(source)],
            "output_path": [str(target)],
            "calibration_data": [str(data)],
            "calibration_method": ["entropy"],
            "high_precision_dtype": ["fp32"],
            "nodes_to_exclude": [_whole(pattern) for pattern in exclude],
        }
        command = [sys.executable, "-m", _MODULE]
        command += [word for option, values in options.items() for word in (f"--{option}", *values)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if result.returncode or not target.exists():
            said = (result.stdout + result.stderr)[-_TAIL:]
            raise CalibrationError(f"Model Optimizer failed with exit code {result.returncode}; it said: …{said}")
        quantized = onnx.load(target)
    write_facts(quantized, read_facts(full))  # it drops them
    return quantized


def _whole(pattern: str) -> str:
    """Return an expression for whole names, which is how Model Optimizer matches, from one that is searched for."""
    start = pattern.removeprefix("^") if pattern.startswith("^") else f".*{pattern}"
    return f"{start}.*"
