"""Runs our adapter on the bindings of one version and prints what it did as JSON; test_surface.py judges.

``python logic.py tensorrt`` runs in a process of its own, where ``import tensorrt`` finds bindings without libraries:
classes and enums are real, and every object that TensorRT would make is faked here.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nrd_trt.engine.compat import ConfigOptions, TensorRT
from nrd_trt.engine.loading import numpy_types
from nrd_trt.engine.messages import layer_profiler, progress_monitor
from nrd_trt.errors import BuildError, ConfigError, NrdTrtError, RunnerError

OPTIONS = {
    "avg_timing_iterations": "4",
    "preview_features": "aliased_plugin_io_10_03",
    "sparse_weights": "true",
    "tactic_shared_memory": "65536",
    "tactic_sources": "edge_mask_convolutions, JIT_CONVOLUTIONS",
}


class FakeConfig(SimpleNamespace):
    """Takes any setting."""

    def __init__(self) -> None:
        super().__init__(flags=[], cleared=[], pools={})

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self.flags

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return int(self.pools[pool.name])

    def set_tactic_sources(self, sources: int) -> bool:
        self.sources = sources
        return True

    def get_tactic_sources(self) -> int:
        return self.sources

    def set_preview_feature(self, feature: Any, on: bool) -> None:
        self.preview = {feature.name: on}

    def get_preview_feature(self, feature: Any) -> bool:
        return self.preview[feature.name]


def error_of(call: Any, kind: type[NrdTrtError]) -> str:
    try:
        call()
    except kind as exc:
        return str(exc)
    return ""


def settings(tensorrt: TensorRT, **options: Any) -> dict[str, Any]:
    """What a configuration gets; enum members by name."""
    config = tensorrt.config(SimpleNamespace(create_builder_config=FakeConfig), ConfigOptions(**options))
    return {name: getattr(value, "name", value) for name, value in vars(config).items()}


def messages(tensorrt: TensorRT) -> dict[str, Any]:
    """What the recorder of a log does with two errors."""
    seen: list[tuple[str, str]] = []
    log = tensorrt.log(lambda *message: seen.append(message))
    trt = tensorrt.trt
    log.logger.log(trt.ILogger.WARNING, "careful")
    log.logger.log(trt.ILogger.VERBOSE, "chatter")
    fatal = log.recorder.report_error(trt.ErrorCodeTRT.INVALID_STATE, "broken")
    result = {
        "tail": log.tail(),
        "seen": seen,
        "fatal": fatal,
        "counts": [log.recorder.num_errors(), log.recorder.get_num_errors(), log.recorder.has_overflowed()],
        "first": [log.recorder.get_error_code(0).name, log.recorder.get_error_desc(0)],
    }
    log.forget()
    return {**result, "forgotten": [log.tail(), log.recorder.num_errors()]}


def kinds(tensorrt: TensorRT) -> list[str]:
    """The kinds of three layers."""
    types = tensorrt.trt.LayerType
    layers = [
        SimpleNamespace(name="", type=one, num_outputs=0)
        for one in (types.PLUGIN_V2, types.PLUGIN_V3, types.CONVOLUTION)
    ]
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])
    return [record.kind for record in tensorrt.layers(network)]


def main(module: str) -> dict[str, Any]:
    flavour = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}[module]
    tensorrt = TensorRT(flavour, importlib.import_module(module))
    log = tensorrt.log(lambda severity, text: None)
    bits: list[int] = []
    tensorrt.network(SimpleNamespace(create_network=bits.append))
    phases: list[Any] = []
    layers: list[Any] = []
    layer_profiler(tensorrt.trt, lambda *layer: layers.append(layer)).report_layer_time("conv", 0.5)
    wrapped = progress_monitor(tensorrt.trt, lambda *phase: phases.append(phase), lambda phase: phase == "outer")
    wrapped.phase_start("outer", None, 3)
    return {
        "prefers_plugin": tensorrt.parser_prefers_plugin,
        "network_flags": bits,
        "plain": settings(tensorrt, workspace_mib=2, optimization_level=5),
        "compatible": settings(tensorrt, version_compatible=True, hardware_compatible=True),
        "options": settings(tensorrt, builder_options=OPTIONS),
        "known_options": tensorrt.known_options(),
        "targets_refused": error_of(lambda: settings(tensorrt, compute_capabilities=("8.6",)), ConfigError),
        "messages": messages(tensorrt),
        "kinds": kinds(tensorrt),
        "convolutions_are_layers": issubclass(tensorrt.trt.IConvolutionLayer, tensorrt.trt.ILayer),
        "takes_plugins": tensorrt.takes_plugins,
        "has_creator": tensorrt.has_creator("NrdPatchDecode", "1", "nrd"),
        "loads_library": flavour != "tensorrt-rtx" and tensorrt.load_plugin_library(Path("/absent.so")),
        "phases": [*phases, wrapped.step_complete("outer", 1), wrapped.phase_finish("outer")],
        "profiled": layers,
        "types": {kind.name: dtype.name for kind, dtype in numpy_types(tensorrt.trt).items()},
        "builder_refused": "" if flavour == "tensorrt-rtx" else error_of(lambda: tensorrt.builder(log), BuildError),
        "runtime_refused": error_of(
            lambda: tensorrt.deserialize(b"no plan", host_code=False, rebuild="nrd-trt build"), RunnerError
        ),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
