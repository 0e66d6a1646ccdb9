"""OpenVINO on the CPU behind the Runner contract. openvino on use.

OpenVINO may compute in another precision than the file's, bfloat16 above all, and takes the precision it is given as a
hint. So what each layer was compiled for is read back, and `arithmetic` says it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import inliner

from nrd_trt.errors import ConfigError, RunnerError
from nrd_trt.graph.cpu import with_ending
from nrd_trt.graph.metadata import load_checked, read_facts
from nrd_trt.graph.tensors import conv_types
from nrd_trt.optional import require
from nrd_trt.runtime.base import Arithmetic, BaseRunner, LayerRun, check_feed
from nrd_trt.specs import Precision, TensorSpec, check_size

Types = Literal["fastest", "file", "exact"]
"""``"fastest"``: what OpenVINO chooses for the processor. ``"file"``: the file's, with fp32 in the place of 16 bits.
``"exact"``: the file's and no others, or an error."""

_HINTS: Mapping[Precision, str] = {"fp32": "f32", "int8": "f32", "fp8": "f32", "fp16": "f16", "bf16": "f32"}
"""With ``f32`` it keeps to the types of a file but for fp16, bfloat16 beside fp32 included."""
_EXECUTED: Mapping[str, Arithmetic | Literal["int8"]] = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "i8": "int8",
    "u8": "int8",
}
_PROFILED = {"fp32": "f32", "fp16": "f16"}
"""Types that a profile has other names of."""
_CONV_ALONE = "/WithoutBiases"
"""What OpenVINO's ONNX reader calls a convolution whose bias is added after it."""
_LEAST_EXACT_FIRST: tuple[Arithmetic, ...] = ("bf16", "fp16", "fp32")


class OpenVinoRunner(BaseRunner):
    """A model compiled by OpenVINO for the CPU.

    Args:
        model: A file exported by this toolkit, or the model itself.
        threads: Threads of one run; None leaves the choice to OpenVINO.
        types: What it computes in.

    Attributes:
        executed: Type that each convolution and each product of the decode is executed in; known once entered.

    Entering it raises `ConfigError` where `types` is ``"exact"`` and a layer is executed in another type.
    """

    name = "openvino"

    def __init__(self, model: Path | onnx.ModelProto, *, threads: int | None = None, types: Types = "fastest") -> None:
        super().__init__()
        self._model = model
        self._threads = threads
        self._types = types
        self._request: Any = None
        self._sides = (1, 2)
        self.executed: Mapping[str, str] = {}

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        model = load_checked(self._model) if isinstance(self._model, Path) else self._model
        facts = read_facts(model)
        self.mask_encoding = facts.mask_encoding
        if facts.precision == "fp8":
            raise ConfigError("runner='openvino': reads no fp8 files; set runner='onnxruntime'.")
        self._runnable = inliner.inline_local_functions(with_ending(model, "phases")).SerializeToString()
        hint = {"fastest": None, "file": "f32", "exact": _HINTS[facts.precision]}[self._types]
        self._settings = {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
        compiled = self._compiled()
        executed = executed_types(compiled)
        # Of two calls with the same inputs, as of mask and logits, one is left.
        types = conv_types(model) | {name: "fp32" for name in executed if name.startswith("decode/")}
        self.executed = {name: executed.get(name, "unknown") for name in types}
        self.arithmetic = self._judged(types, facts.precision)
        self._request = compiled.create_infer_request()
        self._sides = (1, 2) if facts.input_form == "uint8" else (2, 3)
        names = {entry.name for entry in (*model.graph.input, *model.graph.output)}
        return _specs(compiled.inputs, names), _specs(compiled.outputs, names)

    def _compiled(self, *, profile: bool = False) -> Any:
        openvino = require("openvino", extra="openvino", purpose="running ONNX files in OpenVINO")
        settings = {"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": profile, **self._settings}
        if self._threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self._threads
        try:
            core = openvino.Core()
            return core.compile_model(core.read_model(self._runnable, b""), "CPU", settings)
        except Exception as exc:  # openvino raises RuntimeError and others
            raise RunnerError(f"openvino: cannot load the model: {exc}") from exc

    def _judged(self, asked: Mapping[str, str], precision: Precision) -> Arithmetic:
        other = {name: kind for name, kind in self.executed.items() if kind != asked[name]}
        if not other:
            return "native"
        if self._types == "exact":
            name, kind = next(iter(other.items()))
            raise ConfigError(
                f"runner='openvino': executes {len(other)} of {len(asked)} layers of the {precision} file in another "
                f"type, such as {name!r} in {kind} instead of {asked[name]}, so its masks are no evidence of the "
                f"file's; set {_remedy(precision)}."
            )
        return next((kind for kind in _LEAST_EXACT_FIRST if kind in other.values()), "fp32")

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = list(self.outputs)
        for array in feed.values():  # OpenVINO would run on sizes that the decode is not made for
            check_size((array.shape[self._sides[0]], array.shape[self._sides[1]]), what="image ")
        try:
            # A view that is not contiguous would be read as if it were.
            results = self._request.infer({name: np.ascontiguousarray(array) for name, array in feed.items()})
        except Exception as exc:  # openvino raises RuntimeError and others
            raise RunnerError(f"openvino: the run failed: {exc}") from exc
        return {name: np.array(results[name]) for name in names}

    def layer_times(self, feed: Mapping[str, np.ndarray], runs: int) -> list[LayerRun]:
        """Return what each layer takes; see `nrd_trt.runtime.base.ProfilingRunner`."""
        check_feed(self.name, feed, self.inputs)
        request = self._compiled(profile=True).create_infer_request()
        total, types = defaultdict[str, float](float), dict[str, str]()
        for run in range(runs + 1):
            request.infer(dict(feed))
            for entry in request.get_profiling_info() if run else ():
                # The only TopK of a file is what its argmax became, which has lost its name.
                name = f"argmax/{entry.node_name}" if entry.node_type == "TopK" else str(entry.node_name)
                kind = str(entry.exec_type).rpartition("_")[2].lower()
                total[name] += entry.real_time.total_seconds() * 1000 / runs
                types[name] = _EXECUTED.get(_PROFILED.get(kind, kind), kind)
        return [LayerRun(name=name, ms=ms, type=types[name]) for name, ms in total.items()]

    def _close(self) -> None:
        self._request = None


def executed_types(compiled: Any) -> dict[str, str]:
    """Return what each product of a compiled model is executed in, by the name of every layer that it stands for."""
    found: dict[str, str] = {}
    for operation in compiled.get_runtime_model().get_ops():
        told = operation.get_rt_info()
        if str(_plain(told, "layerType")) in ("Convolution", "FullyConnected", "MatMul"):
            kind = str(_plain(told, "runtimePrecision"))
            names = str(_plain(told, "originalLayersNames")).split(",")
            found |= {name.removesuffix(_CONV_ALONE): _EXECUTED.get(kind, kind) for name in names}
    return found


def _plain(told: Any, key: str) -> object:
    return told[key].value if key in told else ""


def _remedy(precision: Precision) -> str:
    if precision == "int8":
        return "runner='onnxruntime', which rounds what is fp16 beside int8, or target='cpu' where it is built"
    if precision == "fp32":
        return "runner='onnxruntime'"
    return "runner='onnxruntime', which rounds as the file's types say, or precision='fp32' where it is built"


def _specs(ports: list[Any], names: Set[str]) -> dict[str, TensorSpec]:
    """Translate OpenVINO's ports, each by that of its names which is the file's; dynamic dimensions become None."""
    specs = [
        TensorSpec(
            name=next(name for name in port.get_names() if name in names),
            dtype=np.dtype(port.get_element_type().to_dtype()),
            shape=tuple(None if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape()),
        )
        for port in ports
    ]
    return {spec.name: spec for spec in specs}
