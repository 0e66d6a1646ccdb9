"""The plugin library: where it is and whether it fits. ``python -m nrd_trt.machine.doctor.plugin FILE`` reads one.

Reading runs the library's code, so a child process does it; its report is one line of JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nrd_trt.engine.plugins import BUILD_COMMAND, VARIABLE, PluginInfo, misfit, read_plugin, search_path
from nrd_trt.errors import PluginError
from nrd_trt.machine.doctor.gpu import Graphics
from nrd_trt.machine.doctor.machine import Machine, Row
from nrd_trt.machine.doctor.software import Flavour, answer_of

_NAME = "Plugin library"


def plugin_row(machine: Machine, tensorrt: Flavour, graphics: Graphics) -> Row:
    """Look for the library where a build would, and hold it against TensorRT and the GPU."""
    cache = machine.run(["ldconfig", "-p"]) or machine.run(["/sbin/ldconfig", "-p"])
    tried = search_path(machine.environ, machine.checkout, cache)
    path = next((place for place in tried if place.is_file()), None)
    if path is not None:
        return _found(machine, path, tensorrt, graphics)
    if given := machine.environ.get(VARIABLE):
        remedy = f"unset {VARIABLE}   (or set it to the library's path)"
        return Row(name=_NAME, status="missing", found=f"{VARIABLE}={given}: no such file", remedy=remedy)
    if tensorrt.version is None:
        return Row(name=_NAME, status="n/a", found="none; only TensorRT loads it, which is not installed")
    places = ", ".join([VARIABLE, *map(str, tried), "the loader's path"])
    found = f"none ({places}); engines decode with the function in the ONNX file, with the same masks"
    return Row(name=_NAME, status="missing", found=found, remedy=BUILD_COMMAND)


def _found(machine: Machine, path: Path, tensorrt: Flavour, graphics: Graphics) -> Row:
    answer, error = answer_of(machine.run([machine.python, "-m", "nrd_trt.machine.doctor.plugin", str(path)]))
    if problem := error or answer["error"]:
        return Row(name=_NAME, status="missing", found=f"{path}: it cannot be used: {problem}", remedy=BUILD_COMMAND)
    info = PluginInfo.from_json(json.dumps(answer["info"]))
    listed = " ".join([*(f"sm_{sm}" for sm in info.architectures), *(f"compute_{sm}" for sm in info.ptx)])
    described = f"{path}, version {info.version} for TensorRT {info.tensorrt}, CUDA {info.cuda}, {listed}"
    if tensorrt.version is None:
        return Row(name=_NAME, status="n/a", found=f"{described}; TensorRT, which would load it, is not installed")
    capability = graphics.gpus[0].compute_capability if graphics.gpus else None
    driver = "{}.{}".format(*graphics.cuda) if graphics.cuda else None
    if found := misfit(info, tensorrt.version, capability, driver):
        return Row(name=_NAME, status="limited", found=f"{path} does not fit: {found[0]}", remedy=found[1])
    return Row(name=_NAME, status="ok", found=f"{described}; `nrd-trt build --builder tensorrt` uses it")


def read(path: str) -> dict[str, Any]:
    """Return ``info``, what a library says of itself, and ``error``, why it cannot be used; one of them is None."""
    try:
        return {"info": asdict(read_plugin(Path(path)).info), "error": None}
    except PluginError as exc:
        return {"info": None, "error": str(exc)}


if __name__ == "__main__":
    print(json.dumps(read(sys.argv[1])))
