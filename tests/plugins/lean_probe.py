"""Run by test_plugin_library.py in a process of its own: loads a plugin library into the lean runtime's registry.

Usage: lean_probe.py LIBRARY [REGISTRAR]. Prints one JSON object; a crash is seen as the exit code.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np
import tensorrt_lean_bindings as trt

TABLE = np.linspace(-1, 1, 8, dtype=np.float32)
GOOD: dict[str, Any] = {
    "num_classes": np.array([19], np.int32),
    "hidden": np.array([16], np.int32),
    "guidance_channels": np.array([16], np.int32),
    "patch": np.array([8], np.int32),
    "x_table": TABLE,
    "y_table": TABLE,
}
GOOD_MASK = {**GOOD, "upsample": np.array([4], np.int64), "mask_type": b"half"}
BAD: dict[str, dict[str, Any]] = {
    "value": {**GOOD, "num_classes": np.array([300], np.int32)},
    "type": {**GOOD, "hidden": TABLE[:1]},
    "length": {**GOOD, "x_table": TABLE[:7]},
    "missing": {name: value for name, value in GOOD.items() if name != "patch"},
    "unknown": {**GOOD, "upsample": np.array([4], np.int32)},
}
TYPES = {
    "int32": trt.PluginFieldType.INT32,
    "int64": trt.PluginFieldType.INT64,
    "float32": trt.PluginFieldType.FLOAT32,
}


class Recorder(trt.IErrorRecorder):
    """Keeps what is reported."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def num_errors(self) -> int:
        return len(self.texts)

    def get_error_code(self, index: int) -> Any:
        return trt.ErrorCodeTRT.INVALID_ARGUMENT

    def get_error_desc(self, index: int) -> str:
        return self.texts[index]

    def has_overflowed(self) -> bool:
        return False

    def clear(self) -> None:
        self.texts.clear()

    def report_error(self, code: Any, text: str) -> bool:
        self.texts.append(text)
        return True


def collection(values: dict[str, Any]) -> Any:
    fields = [
        trt.PluginField(name, value, trt.PluginFieldType.CHAR if isinstance(value, bytes) else TYPES[str(value.dtype)])
        for name, value in values.items()
    ]
    return trt.PluginFieldCollection(fields)


def probe(library: str | None, registrar: str | None) -> dict[str, Any]:
    registry = trt.get_plugin_registry()
    recorder = Recorder()
    registry.error_recorder = recorder
    report: dict[str, Any] = {}
    if registrar is not None:
        ctypes.CDLL(registrar)
    creators = {name: registry.get_creator(name, "1", "nrd") for name in ("NrdPatchDecode", "NrdPatchDecodeMask")}
    report["before"] = [name for name, creator in creators.items() if creator is not None]
    if library is not None:
        report["loaded"] = registry.load_library(library) is not None
        creators = {name: registry.get_creator(name, "1", "nrd") for name in creators}
    report["listed"] = sorted(
        f"{creator.plugin_namespace}::{creator.name}::{creator.plugin_version}"
        for creator in registry.all_creators
        if creator.name.startswith("Nrd")
    )
    recorder.clear()
    if creators["NrdPatchDecode"] is not None:
        report |= create_all(creators["NrdPatchDecode"], creators["NrdPatchDecodeMask"], recorder)
    registry.error_recorder = None
    return report


def create_all(logits: Any, mask: Any, recorder: Recorder) -> dict[str, Any]:
    report: dict[str, Any] = {"fields": [field.name for field in mask.field_names]}
    for phase in (trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME):
        made = [
            logits.create_plugin("a", collection(GOOD), phase),
            mask.create_plugin("b", collection(GOOD_MASK), phase),
        ]
        report[phase.name] = [plugin is not None for plugin in made]
    report["clean"] = not recorder.texts
    report["refused"] = {}
    for name, values in BAD.items():
        recorder.clear()
        plugin = logits.create_plugin("c", collection(values), trt.TensorRTPhase.BUILD)
        report["refused"][name] = list(recorder.texts) if plugin is None else None
    return report


if __name__ == "__main__":
    arguments = [None if argument == "-" else argument for argument in sys.argv[1:]]
    print(json.dumps(probe(arguments[0], arguments[1] if len(arguments) > 1 else None)))
