"""A machine with enterprise TensorRT and an Orin's GPU, of doubles, for builds with the plugin and for their plans."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.building import construct
from nrd_trt.engine import plugins
from nrd_trt.engine.plugins import VARIABLE, search_path, wheel_libraries
from nrd_trt.machine.gpu import Gpu
from nrd_trt.machine.libcuda import NoDriverError
from nrd_trt.runtime import select
from tests.artefacts import build, onnx_file
from tests.engine.surface.enterprise import enterprise
from tests.plugin_library import library
from tests.runtime.fake_cuda import FakeDriver

ORIN = Gpu(name="Orin", compute_capability="8.7", cuda="12.6", integrated=True, memory_bytes=2, free_bytes=1)


def install(patch: pytest.MonkeyPatch, version: str = "10.3.0", device: Gpu | None = ORIN) -> Any:
    """Let this machine have enterprise TensorRT and a GPU to build for; plans cannot be run here."""
    module = enterprise(version)
    patch.setitem(sys.modules, "tensorrt", module)
    patch.setattr(construct, "find_device", lambda: found(device))
    show_to_runners(patch, None)
    return module


def host(patch: pytest.MonkeyPatch, device: Gpu | None = ORIN, version: str = "10.3.0") -> Any:
    """Let this machine be one that could run the plan."""
    module = install(patch, version)
    FakeDriver(patch)
    show_to_runners(patch, device)
    return module


def show_to_runners(patch: pytest.MonkeyPatch, device: Gpu | None) -> None:
    """Let this be the GPU that plans would run on."""
    patch.setattr(select, "probe_device", lambda: device)
    patch.setattr(select, "find_device", lambda: found(device))


def found(device: Gpu | None) -> Gpu:
    """Return a GPU, or raise what the binding raises where there is no driver."""
    if device is None:
        raise NoDriverError("CUDA: the driver's library cannot be loaded; install the NVIDIA driver.")
    return device


def hide_libraries(patch: pytest.MonkeyPatch, empty: Path) -> None:
    """Let no library be found unless a test names or installs one, whatever was built in this checkout."""
    patch.delenv(VARIABLE, raising=False)
    patch.setenv("LD_LIBRARY_PATH", "")
    patch.setattr(plugins, "places_here", lambda trt: search_path(os.environ, empty, None, wheel_libraries(trt)))


def build_with_plugin(target: Path) -> Path:
    """Build a bundle with the plugin on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        build(onnx_file(), target, builder="tensorrt", decode="plugin", plugin=library())
    return target
