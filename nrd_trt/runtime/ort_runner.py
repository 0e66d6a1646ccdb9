"""ONNX Runtime on the CPU behind the Runner contract. onnxruntime on use.

A 16-bit file runs as its rounding simulation (`nrd_trt.graph.precision`), because ONNX Runtime's CPU would compute fp16
graphs in fp32 unrounded and has no bf16 kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from nrd_trt.errors import RunnerError
from nrd_trt.graph.metadata import load_onnx, read_facts
from nrd_trt.graph.precision import simulate_rounding, simulate_tf32
from nrd_trt.optional import require
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.specs import TensorSpec

_NUMPY_NAMES = {"tensor(float)": "float32"}
"""NumPy's names of types whose names differ; ``"tensor(uint8)"`` is that of ``"uint8"``."""


class OrtRunner(BaseRunner):
    """ONNX Runtime session on the CPU.

    Args:
        model: A file exported by this toolkit, or the model itself.
        threads: Threads of one operator; None leaves the choice to ONNX Runtime.
        tf32: Round the factors of products as a GPU does in TF32: evidence of what it does to masks.
    """

    name = "onnxruntime"

    def __init__(self, model: Path | onnx.ModelProto, *, threads: int | None = None, tf32: bool = False) -> None:
        super().__init__()
        self._model = model
        self._threads = threads
        self._tf32 = tf32
        self._session: Any = None

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        ort = require("onnxruntime", extra="ort", purpose="running ONNX files on the CPU")
        model = load_onnx(self._model) if isinstance(self._model, Path) else self._model
        facts = read_facts(model)
        precision, self.mask_encoding = facts.precision, facts.mask_encoding
        self.arithmetic = "native" if precision == "fp32" else "simulated"
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        runnable = simulate_rounding(model, precision)
        if self._tf32:
            self.arithmetic, runnable = "tf32", simulate_tf32(runnable)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(
                runnable.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # onnxruntime has no public base of its errors
            raise RunnerError(f"onnxruntime: cannot load the model: {exc}") from exc
        return _specs(self._session.get_inputs()), _specs(self._session.get_outputs())

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = list(self.outputs)  # a packed mask keeps its name
        try:
            values = self._session.run(names, dict(feed))
        except Exception as exc:  # onnxruntime has no public base of its errors
            raise RunnerError(f"onnxruntime: the run failed: {exc}") from exc
        return dict(zip(names, values, strict=True))

    def _close(self) -> None:
        self._session = None


def _specs(nodes: list[Any]) -> dict[str, TensorSpec]:
    """Translate ONNX Runtime's argument descriptions; names of dynamic dimensions become None."""
    return {
        node.name: TensorSpec(
            name=node.name,
            dtype=np.dtype(_NUMPY_NAMES.get(node.type, node.type[len("tensor(") : -1])),
            shape=tuple(n if isinstance(n, int) else None for n in node.shape),
        )
        for node in nodes
    }
