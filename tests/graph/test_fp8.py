"""fp8: E4M3 as PyTorch casts to it, on the layers that TensorRT has kernels for, in a file that its parser takes."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.engine.builder import BuildOptions, build_engine, check_types
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.errors import BuildError, ConfigError
from nrd_trt.graph.formats import FP8
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.precision import to_quantized
from nrd_trt.graph.quantize import choose_layers, plan_quantization, quantizable_layers, quantized_layers, weight_scales
from nrd_trt.graph.tensors import element_types, weight_types
from nrd_trt.proving.network import small_network
from nrd_trt.runtime.ort_runner import OrtRunner
from tests.artefacts import both_outputs, needs_rtx
from tests.helpers import feed
from tests.validation.test_twin import ranges


@cache
def fp8(small: bool = False) -> onnx.ModelProto:
    """A file in fp8: of the trained network, or of one without depthwise convolutions."""
    full = small_network() if small else both_outputs()
    plan = plan_quantization(full, choose_layers(full, precision="fp8"), precision="fp8")
    return to_quantized(full, plan, dict.fromkeys(plan.tensors, 10.0) if small else ranges())


def test_e4m3_is_that_of_pytorch_and_of_onnx_runtime_to_the_bit() -> None:
    """Every number of the type, the middles between two, their neighbours, and what is beyond; all with both signs."""
    numbers = np.arange(0x7F, dtype=np.uint8).view(FP8.dtype).astype(np.float32)
    middles = (numbers[1:] + numbers[:-1]) / 2
    around = [np.nextafter(middles, np.float32(end)) for end in (0, np.inf)]
    values = np.concatenate([numbers, middles, *around, np.float32([449, 464, 465, 1e30])])
    values = np.concatenate([values, -values])
    found = FP8.nearest(values)
    wanted = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))
    ort = pytest.importorskip("onnxruntime")
    constants = [
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(np.zeros((), FP8.dtype), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(values)])] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, constants), opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": values})[0].view(np.uint32), wanted.view(np.uint32))


def test_stem_depthwise_and_small_convolutions_stay_in_16_bits() -> None:
    full = both_outputs()
    nodes = {node.name: node for node in full.graph.node}
    dims = {tensor.name: tensor.dims for tensor in full.graph.initializer}
    chosen, left = set(quantizable_layers(full, "fp8")), set(quantizable_layers(full))
    left -= chosen
    reads = {name: dims[nodes[name].input[1]][1] for name in chosen | left}
    assert left == {name for name, channels in reads.items() if channels in (1, 3)}, "each channel alone, three colours"
    assert {"backbone.conv1.conv/Conv", "backbone.layer4.1.conv.1.conv/Conv"} < left
    assert (len(chosen), len(left)) == (43, 21)
    wide = copy_with_taps(full, 7)
    assert quantizable_layers(wide, "fp8") == [name for name in quantizable_layers(full, "fp8") if name != WIDE]
    with pytest.raises(ConfigError, match=r"conv1\.conv/Conv: expected convolutions .* from 16 channels up"):
        plan_quantization(full, ["backbone.conv1.conv/Conv"], precision="fp8")
    with pytest.raises(ConfigError, match="leave no layer for fp8"):
        choose_layers(full, include=[r"backbone\.conv1\."], precision="fp8")


WIDE = "decode_head.bottleneck.conv/Conv"


def copy_with_taps(full: onnx.ModelProto, side: int) -> onnx.ModelProto:
    """A file whose bottleneck has a larger kernel."""
    result = onnx.ModelProto()
    result.CopyFrom(full)
    name = next(node.input[1] for node in result.graph.node if node.name == WIDE)
    tensor = next(tensor for tensor in result.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((*tensor.dims[:2], side, side), np.float32), name))
    return result


def test_the_typed_file_is_clean_and_holds_the_nearest_numbers() -> None:
    full, typed = both_outputs(), fp8()
    onnx.checker.check_model(typed, full_check=True)
    assert importer_problems(typed) == []
    assert read_facts(typed).precision == "fp8"
    layers = quantized_layers(typed)
    assert layers == choose_layers(full, precision="fp8")
    assert weight_types(typed) == {"fp16": 64 - len(layers), "fp8": len(layers)}
    types = element_types(typed)
    for node in typed.graph.node:
        if node.op_type == "QuantizeLinear":
            kinds = [types[name] for name in (*node.input, *node.output)]
            assert kinds == [TensorProto.FLOAT16, TensorProto.FLOAT16, *[TensorProto.FLOAT8E4M3FN] * 2]
    stored = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in (*full.graph.initializer, *typed.graph.initializer)
    }
    name = "backbone.layer4.1.conv.2.conv.weight"
    scale = weight_scales(stored[name], 0, FP8)
    steps = stored[name] / scale.reshape(-1, 1, 1, 1)
    assert stored[f"{name}/fp8"].dtype == FP8.dtype and np.abs(steps).max() > 400
    assert np.array_equal(stored[f"{name}/fp8"].astype(np.float32), FP8.nearest(steps))
    assert np.array_equal(stored[f"{name}/scale/fp16"].astype(np.float32), scale), "exact in fp16"


def test_onnx_runtime_simulates_it_near_fp32() -> None:
    image, found = feed("uint8", 1, 64, 96), []
    for model in (both_outputs(), fp8()):
        with OrtRunner(model, threads=1) as runner:
            found.append(runner.infer(image)["logits"])
    assert runner.arithmetic == "simulated"
    assert 0 < np.square(found[0] - found[1]).mean() < 0.02 * found[0].var()


@needs_rtx
def test_tensorrt_rtx_builds_what_the_file_says() -> None:
    options = BuildOptions(flavour="tensorrt-rtx", config=ConfigOptions(compute_capabilities=("8.9",)), progress=False)
    built = build_engine(fp8(small=True), options)
    pairs = sum(node.op_type == "QuantizeLinear" for node in fp8(small=True).graph.node)
    assert built.types_found["fp8"] >= pairs > 3
    lost = [record for record in built.layers if record.kind != "quantize"]
    with pytest.raises(BuildError, match=rf"expected {pairs} quantize layers of type fp8, got 0"):
        check_types(fp8(small=True), lost, "fp8")
