"""ONNX Runtime on the CPU behind the Runner contract. onnxruntime on use.

ONNX Runtime's CPU would compute fp16 graphs in fp32 unrounded and has no bf16 kernels. So a 16-bit file runs as its
rounding simulation (`nrd_trt.graph.precision`), which is evidence, or as its fp32 twin (`nrd_trt.graph.cpu`), which is
several times as fast.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from nrd_trt.errors import RunnerError
from nrd_trt.graph.cpu import has_16_bits, widen, with_ending
from nrd_trt.graph.metadata import load_checked, read_facts
from nrd_trt.graph.precision import simulate_rounding, simulate_tf32
from nrd_trt.machine.host import Machine, fast_types
from nrd_trt.optional import require
from nrd_trt.runtime.base import BaseRunner, LayerRun, check_feed
from nrd_trt.specs import TensorSpec

_NUMPY_NAMES = {"tensor(float)": "float32"}
"""NumPy's names of types whose names differ; ``"tensor(uint8)"`` is that of ``"uint8"``."""
_READ: Mapping[str | None, str] = {"float": "fp32", "float16": "fp16"}
"""Our names of types that a profile has other names of."""
_TIMED = "_kernel_time"
_IDLE_BETWEEN_RUNS = ("session.force_spinning_stop", "1")
"""Else its threads go on spinning after a run, and take the cores from whatever comes next."""
_NOT_SATURATING = ("session.x64quantprecision", "1")
"""Sums of products of uint8 and int8 in 32 bits, which takes several times as long; Arm has no others."""
_NOT_WITH_FP8 = ["ClipQuantRewrite", "ReluQuantRewrite"]
"""Made for integers. Before a QuantizeLinear to fp8 the one fails on a Clip, and the other takes a ReLU out (1.31)."""


class OrtRunner(BaseRunner):
    """ONNX Runtime session on the CPU.

    Args:
        model: A file exported by this toolkit, or the model itself.
        threads: Threads of one operator; None leaves the choice to ONNX Runtime.
        tf32: Round the factors of products as a GPU does in TF32: evidence of what it does to masks.
        twin: Run the fp32 twin of a 16-bit file instead of rounding as its types say.
    """

    name = "onnxruntime"

    def __init__(
        self,
        model: Path | onnx.ModelProto,
        *,
        threads: int | None = None,
        tf32: bool = False,
        twin: bool = False,
    ) -> None:
        super().__init__()
        self._model = model
        self._threads = threads
        self._tf32 = tf32
        self._twin = twin
        self._session: Any = None
        self._load: Any = None

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        ort = require("onnxruntime", extra="ort", purpose="running ONNX files on the CPU")
        model = load_checked(self._model) if isinstance(self._model, Path) else self._model
        facts = read_facts(model)
        precision, self.mask_encoding = facts.precision, facts.mask_encoding
        self.arithmetic = "native" if not has_16_bits(model) else "fp32" if self._twin else "simulated"
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.add_session_config_entry(*_IDLE_BETWEEN_RUNS)
        if "int8" not in fast_types(Machine()):
            options.add_session_config_entry(*_NOT_SATURATING)
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        runnable = widen(model) if self._twin else simulate_rounding(model, precision)
        if self._tf32:
            self.arithmetic, runnable = "tf32", simulate_tf32(runnable)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        else:
            runnable = with_ending(runnable, "filters")
        self._load = partial(
            ort.InferenceSession,
            runnable.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_NOT_WITH_FP8 if precision == "fp8" else None,
        )
        self._options = options
        try:
            self._session = self._load()
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

    def layer_times(self, feed: Mapping[str, np.ndarray], runs: int) -> list[LayerRun]:
        """Return what each layer takes, and what type it reads; see `nrd_trt.runtime.base.ProfilingRunner`."""
        check_feed(self.name, feed, self.inputs)
        with tempfile.TemporaryDirectory() as folder:
            self._options.enable_profiling = True
            self._options.profile_file_prefix = f"{folder}/nrd_trt"
            session = self._load()
            self._options.enable_profiling = False
            for _ in range(runs + 1):
                session.run(None, dict(feed))
            events = json.loads(Path(session.end_profiling()).read_text())
        seen, total, types = Counter[str](), defaultdict[str, float](float), dict[str, str | None]()
        for event in events:
            name = str(event["name"]).removesuffix(_TIMED)
            if event["cat"] == "Node" and name != event["name"]:
                seen[name] += 1
                total[name] += event["dur"] / 1000 / runs if seen[name] > 1 else 0.0
                types[name] = next(iter((event["args"]["input_type_shape"] or [{}])[0]), None)
        return [LayerRun(name=name, ms=ms, type=_READ.get(types[name], types[name])) for name, ms in total.items()]

    def _close(self) -> None:
        self._session = self._load = None


def _specs(nodes: list[Any]) -> dict[str, TensorSpec]:
    """Translate ONNX Runtime's argument descriptions; names of dynamic dimensions become None."""
    return {
        node.name: TensorSpec(
            name=node.name, dtype=_dtype(node), shape=tuple(n if isinstance(n, int) else None for n in node.shape)
        )
        for node in nodes
    }


def _dtype(node: Any) -> np.dtype[Any]:
    name: str = node.type[len("tensor(") : -1]
    try:
        return np.dtype(_NUMPY_NAMES.get(node.type, name))
    except TypeError as exc:
        raise RunnerError(
            f"tensor {node.name!r}: expected numbers, got {node.type}; export the file with nrd_trt.export."
        ) from exc
