"""A bundle whose graph packs four pixels of the mask in one int32 is used like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nrd_trt import benchmark, evaluate, validate
from nrd_trt.engine.bundle import ONNX_FILE, read_bundle
from nrd_trt.inspection.inspect import inspect
from nrd_trt.inspection.onnx_summary import TensorSummary
from nrd_trt.runtime.select import RunOptions, make_runner
from tests.artefacts import SIZE_HW, build, bundle, checkpoint, needs_rtx, scenes, workspace
from tests.building.plugin_machine import hide_libraries, host, install
from tests.plugin_library import library, needs_compiler


def made(name: str, **changes: Any) -> Path:
    """Build a bundle of the trained checkpoint whose mask is packed."""
    target = workspace() / name
    build(checkpoint(), target, **{"size": SIZE_HW, "mask_encoding": "u8x4", "precision": "fp32", **changes})
    return target


@pytest.fixture(scope="module")
def packed() -> Path:
    return made("packed.nrd", min_agreement=None)


def test_build_records_and_proves_it(packed: Path) -> None:
    opened, usual = read_bundle(packed), read_bundle(bundle())
    facts = opened.record.to_dict()
    assert facts["model"]["mask_encoding"] == "u8x4" and "mask_encoding='u8x4'" in facts["command"]
    assert facts["passed"] and facts["parity"]["agreement"] >= 0.9999
    assert facts["validation"]["pixel_agreement"] == usual.record.validation.pixel_agreement
    (output,) = onnx.load(packed / ONNX_FILE).graph.output
    assert (output.name, output.type.tensor_type.elem_type) == ("mask", onnx.TensorProto.INT32)
    np.testing.assert_array_equal(opened.references().masks, usual.references().masks)
    found = inspect(packed).onnx
    assert found and found.metadata and found.metadata.mask_encoding == "u8x4"
    assert found.outputs == (TensorSummary(name="mask", dtype="int32", shape=(1, 64, 24)),)


def test_verbs_give_the_figures_of_the_plain_bundle(packed: Path, tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 2, labels=True)
    verdicts, figures = [], []
    for path in (packed, bundle()):
        verdicts.append(validate(path, threads=1, progress=False).to_dict())
        figures.append(evaluate(path, data, runner="onnxruntime", threads=1, progress=False).to_dict())
    assert verdicts[0] == verdicts[1] and verdicts[0]["passed"]
    assert figures[0] == figures[1] and figures[0]["miou"] is not None
    (row,) = benchmark(packed, runner="onnxruntime", runs=2, warmup=1, threads=1, progress=False).rows
    assert row.latency.p50 > 0


@pytest.mark.parametrize("builder", ["onnxruntime", pytest.param("tensorrt-rtx", marks=needs_rtx)])
def test_rebuilt_from_the_bundle_and_built_with_both_outputs(builder: str, tmp_path: Path) -> None:
    first = workspace() / "packed_both.nrd"
    if not first.exists():
        made(first.name, outputs=("mask", "logits"), precision="fp16")
    facts = build(first, tmp_path / "b.nrd", builder=builder)
    assert facts["model"]["mask_encoding"] == "u8x4" and facts["model"]["output"] == "both"
    assert facts["validation"]["pixel_agreement"] >= 0.9
    assert ("model.plan" in facts["files"]) == (builder != "onnxruntime")
    assert facts["decode"] == "onnx"


@needs_compiler
def test_plan_with_the_plugin_is_unpacked_too(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan does not tell how its mask is encoded; the bundle does."""
    hide_libraries(monkeypatch, tmp_path)
    install(monkeypatch)
    facts = build(packed, tmp_path / "a.nrd", builder="tensorrt", decode="plugin", plugin=library())
    assert facts["plugin"]["mask_encoding"] == "u8x4"
    host(monkeypatch)
    runner = make_runner(read_bundle(tmp_path / "a.nrd"), RunOptions(runner="tensorrt", plugin=library()))
    assert runner.mask_encoding == "u8x4"
