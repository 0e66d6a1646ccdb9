"""Bundles of any facts, whose plans nobody can run. Nothing here asserts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, REFERENCE_FILE, write_bundle
from nrd_trt.specs import InputShape
from tests.engine.records import record

FIXED = InputShape.static((352, 480))
BATCHES = InputShape.static((352, 480), (1, 4, 8))
RANGES = InputShape.of(dynamic=((32, 64), (352, 480), (384, 512)), batch=(2, 4, 8), default=(32, 32))
PLAN = b"a plan"
_OF_THE_GRAPH = {"input_form", "mask_encoding", "output"}


def planned_bundle(path: Path, shape: InputShape = BATCHES, *, plan: bytes | None = PLAN, **changes: Any) -> Path:
    """Write a bundle with a plan of enterprise TensorRT 10.13.2 that decodes by the function.

    Args:
        path: Where to write it.
        shape: What the plan takes.
        plan: Its bytes; None for a bundle without one.
        **changes: Of the facts of the ONNX file, or of the bundle's record.
    """
    base = record()
    model = {"mask_encoding": "uint8"} | {name: changes.pop(name) for name in _OF_THE_GRAPH & changes.keys()}
    files = {ONNX_FILE: b"a graph", REFERENCE_FILE: b"masks"} | ({} if plan is None else {PLAN_FILE: plan})
    facts = {"decode": "onnx", "plugin": None, **changes}
    return write_bundle(
        path, files, replace(base, model=replace(base.model, shape=shape, **model), **facts), force=False
    ).path
