"""NVIDIA's own tool on what we build: Polygraphy, switched to TensorRT-RTX, reads and builds the bundle's ONNX file.

Opening the plan itself needs a GPU, so that is not here.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import artefacts

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None or importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs polygraphy and tensorrt_rtx: pip install 'nrd-trt[rtx,dev]'",
)
ENVIRONMENT = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}


def polygraphy(*arguments: str | Path) -> str:
    command = [str(Path(sys.executable).with_name("polygraphy")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_shows_inputs_outputs_and_the_decode_function_and_finds_every_node_supported() -> None:
    shown = polygraphy("inspect", "model", artefacts.bundle() / "model.onnx", "--show", "layers")
    for text in ("image [dtype=uint8", "mask [dtype=uint8", "NrdPatchDecodeMask"):
        assert text in shown
    shown = polygraphy("inspect", "capability", artefacts.bundle() / "model.onnx")
    assert "Graph is fully supported by TensorRT" in shown


def test_builds_the_same_file(tmp_path: Path) -> None:
    polygraphy("convert", artefacts.bundle() / "model.onnx", "-o", tmp_path / "m.plan", "--compute-capabilities", "8.9")
    assert (tmp_path / "m.plan").stat().st_size > 100_000
