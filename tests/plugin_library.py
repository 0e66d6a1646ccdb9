"""Small shared libraries that tell of themselves as the plugin library does, made by gcc. Nothing here asserts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.engine.plugins import LIBRARY
from tests.helpers import made_once

INFO: dict[str, Any] = {
    "version": "0.1.0",
    "tensorrt": "10.3.0",
    "tensorrt_major": 10,
    "cuda": "12.6",
    "architectures": [75, 80, 86, 87, 89, 90],
    "ptx": [90],
    "kernel_revision": 1,
    "ops": ["NrdPatchDecode", "NrdPatchDecodeMask"],
}
COMPILER = shutil.which("gcc") or shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs gcc, which makes the small libraries")


def make_library(path: Path, text: str | None = None, *, source: str = "", **changes: Any) -> Path:
    """Compile a library whose ``nrd_plugin_info`` returns `text`, or `INFO` with changes.

    Args:
        path: Where to write it.
        text: Instead of JSON; an empty one leaves the function out.
        source: More C code.
        **changes: Of `INFO`; ``...`` leaves a key out.
    """
    described = {key: value for key, value in {**INFO, **changes}.items() if value is not ...}
    told = json.dumps(described) if text is None else text
    code = f"const char* nrd_plugin_info(void) {{ return {json.dumps(told)}; }}\n" if told else "int nothing;\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [str(COMPILER), "-shared", "-fPIC", "-xc", "-o", str(path), "-"]
    subprocess.run(command, input=code + source, text=True, check=True)
    return path


def library(revision: int = 1, tensorrt: str = "10.3.0") -> Path:
    """A library for compute capability 8.7 and others, of a kernel revision and for a TensorRT; do not change it."""
    versions = {"tensorrt": tensorrt, "tensorrt_major": int(tensorrt.split(".")[0])}
    made = made_once(
        f"plugin-{revision}-{tensorrt}",
        lambda folder: make_library(folder / LIBRARY, kernel_revision=revision, **versions),
    )
    return made / LIBRARY
