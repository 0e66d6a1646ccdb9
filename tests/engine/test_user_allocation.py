"""TensorRT-RTX builds every form of the zoo's networks so that their runs can be captured: no memory at run time."""

from __future__ import annotations

from functools import cache
from itertools import zip_longest
from typing import Any

import onnx
import pytest

from nrd_trt.engine.builder import BuildOptions, build_engine
from nrd_trt.engine.compat import ConfigOptions, TensorRT, load_tensorrt
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.model import load_model
from nrd_trt.progress import silent
from nrd_trt.specs import InputShape, Precision, Range
from nrd_trt.zoo import checkpoint_path
from tests.artefacts import needs_rtx
from tests.helpers import quantized

RTX = "tensorrt-rtx"
SHAPES = {
    "static": InputShape.static((96, 128)),
    "dynamic": InputShape(
        batch=Range(min=1, opt=1, max=2),
        height=Range(min=64, opt=96, max=128),
        width=Range(min=96, opt=128, max=160),
    ),
}


def without_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let builds be as TensorRT-RTX would have them by itself."""
    config = TensorRT.config

    def plain(self: TensorRT, builder: Any, options: ConfigOptions) -> Any:
        made = config(self, builder, options)
        assert made.get_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        made.clear_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        return made

    monkeypatch.setattr(TensorRT, "config", plain)


def differences(plan: bytes, plain: bytes) -> list[tuple[int, int]]:
    """Return the pairs of bytes that differ; bytes that one plan has alone count as differing too."""
    return [pair for pair in zip_longest(plan, plain, fillvalue=-1) if pair[0] != pair[1]]


def tiny_plan() -> bytes:
    """Build a network of one layer."""
    tensorrt = load_tensorrt(RTX)
    trt, log = tensorrt.trt, tensorrt.log(silent)
    builder = tensorrt.builder(log)
    network = tensorrt.network(builder)
    layer = network.add_activation(network.add_input("image", trt.float32, (1, 3, 8, 8)), trt.ActivationType.SIGMOID)
    network.mark_output(layer.get_output(0))
    return bytes(builder.build_serialized_network(network, tensorrt.config(builder, ConfigOptions())))


@needs_rtx
def test_a_plan_says_that_its_memory_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan()
    without_the_flag(monkeypatch)
    assert differences(plan, tiny_plan()) == [(1, 0)]


@cache
def export(name: str, shape: str) -> onnx.ModelProto:
    exported = export_onnx(load_model(checkpoint_path(name)), ExportOptions(shape=SHAPES[shape]))
    return select_outputs(exported, "mask")


@needs_rtx
@pytest.mark.all_combinations
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["nrd_mobilenetv2_camvid", "nrd_r18_camvid"])
def test_zoo(name: str, shape: str, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    full = export(name, shape)
    model = to_precision(quantized(full) if precision == "int8" else full, precision)
    options = BuildOptions(flavour=RTX, progress=False)
    plan = build_engine(model, options).plan
    without_the_flag(monkeypatch)
    found = differences(plan, build_engine(model, options).plan)
    if shape == "static":
        assert found == [(1, 0)]  # the flag itself
    else:  # and the kernels of a plan with ranges, where it leaves out what allocates
        assert len(found) > 1
