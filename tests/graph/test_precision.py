"""Typing a graph in 16 bits: agreement with fp32, clean types, and what must stay in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.exporting.precision import derive_precision
from nrd_trt.graph.extremes import MAX_UNDERFLOW, Extremes, out_of_range, read_extremes, with_extremes
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.metadata import read_choices, read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import simulate_tf32, to_precision
from nrd_trt.graph.tensors import HALF_TYPES, copy_model, element_types
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import MaskEncoding, Precision
from tests.helpers import STATIC, agreement, exported, feed, infer, keyed_model, quantized, small_export

HALVES: tuple[Precision, ...] = ("fp16", "bf16")
GATES = {"fp16": 0.995, "bf16": 0.98}


@pytest.mark.slow
@pytest.mark.all_combinations
@pytest.mark.parametrize(("encoder", "classes"), [("resnetv1c50", 19), ("resnetv1c50", 150), ("resnetv1c101", 150)])
def test_agreement_with_fp32(encoder: str, classes: int) -> None:
    """On deep networks with many classes, where 16 bits show most; docs/benchmarks.md has the shares."""
    graph, image = exported(encoder, classes, "float"), feed("float", 1, 128, 256)
    expected = infer(graph, image)
    for precision in HALVES:
        got = infer(to_precision(graph, precision), image)
        share = agreement(got["mask"], expected["mask"])
        print(f"{encoder}, K = {classes}, {precision}: {share:.4f}")
        assert share >= GATES[precision], precision
        assert not np.array_equal(got["logits"], expected["logits"])  # 16 bits must show


@pytest.mark.parametrize(
    ("precision", "output", "keep", "form", "shape"),
    [  # every pair of values
        ("fp32", "logits", "none", "float", "static"),
        ("fp32", "mask", "odd", "uint8", "dynamic"),
        ("fp32", "both", "decode", "u8x4", "static"),
        ("fp16", "both", "none", "float", "dynamic"),
        ("fp16", "logits", "odd", "u8x4", "dynamic"),
        ("fp16", "mask", "decode", "uint8", "static"),
        ("bf16", "mask", "none", "u8x4", "static"),
        ("bf16", "both", "odd", "uint8", "static"),
        ("bf16", "logits", "decode", "float", "dynamic"),
        ("int8", "logits", "none", "uint8", "dynamic"),
        ("int8", "mask", "odd", "rgb_float", "static"),
        ("int8", "both", "decode", "u8x4", "static"),
    ],
)
def test_exports_are_clean(precision: Precision, output: str, keep: str, form: str, shape: str) -> None:
    """For ONNX's checker, TensorRT-RTX's strongly typed parser and TensorRT 10's rules, whatever stays in fp32."""
    encoding: MaskEncoding = "u8x4" if form == "u8x4" else "uint8"
    full = small_export("uint8" if form == "u8x4" else form, shape, encoding)  # type: ignore[arg-type]
    full = select_outputs(quantized(full) if precision == "int8" else full, output)
    names = [node.name for node in full.graph.node]
    kept = {"none": [], "odd": names[1::2], "decode": [n for n in names if "classifier.1/" in n or "Nrd" in n]}[keep]
    graph = to_precision(full, precision, set(kept))
    onnx.checker.check_model(graph, full_check=True)
    assert importer_problems(graph) == []
    assert read_facts(graph).precision == precision
    assert read_facts(graph).output == output
    kinds = {entry.name: entry.type.tensor_type.elem_type for entry in graph.graph.output}
    expected = {"mask": TensorProto.INT32 if form == "u8x4" else TensorProto.UINT8, "logits": TensorProto.FLOAT}
    assert kinds == {name: kind for name, kind in expected.items() if output in (name, "both")}
    parse_with_rtx(graph)


def parse_with_rtx(graph: onnx.ModelProto) -> None:
    """Let TensorRT-RTX's strongly typed parser judge the types."""
    pytest.importorskip("tensorrt_rtx", reason="needs `pip install nrd-trt[rtx]`, whose parser checks types")
    from nrd_trt.engine.compat import load_tensorrt

    tensorrt = load_tensorrt("tensorrt-rtx")
    log = tensorrt.log(lambda severity, text: None)
    builder = tensorrt.builder(log)
    tensorrt.parse(tensorrt.network(builder), graph.SerializeToString(), log)


@pytest.mark.parametrize(("head", "precision"), [("deeplabv3plus", "fp16"), ("bilinear", "bf16")])
def test_baselines_are_typed_too(head: str, precision: Precision) -> None:
    model = keyed_model("resnetv1c18", 19, channels=64, head=head)
    full = export_onnx(model, ExportOptions(shape=STATIC, input_form="uint8"))
    graph, image = to_precision(full, precision), feed("uint8", 1, 128, 256)
    onnx.checker.check_model(graph, full_check=True)
    assert importer_problems(graph) == []
    expected, got = infer(full, image), infer(graph, image)
    assert len(np.unique(expected["mask"])) > 1
    assert agreement(got["mask"], expected["mask"]) >= GATES[precision]
    assert not np.array_equal(got["logits"], expected["logits"])
    parse_with_rtx(graph)


@pytest.mark.parametrize("precision", HALVES)
def test_weights_are_stored_in_16_bits(precision: Precision) -> None:
    full, typed = small_export(), to_precision(small_export(), precision)
    kinds = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
    convolutions = {n.name: kinds[n.input[1]] for n in typed.graph.node if n.op_type == "Conv"}
    kept = {name for name, kind in convolutions.items() if kind == TensorProto.FLOAT}
    assert set(convolutions.values()) <= {HALF_TYPES[precision], TensorProto.FLOAT}
    if precision == "fp16":
        assert not kept
        assert typed.ByteSize() < 0.55 * full.ByteSize()
    else:  # the layers that predict weights and guidance, see nrd_trt/graph/precision.py
        scopes = {name.split(".")[0] + "." + name.split(".")[1] for name in kept}
        assert scopes == {
            "backbone.conv1", "decode_head.bottleneck", "decode_head.classifier", "decode_head.c1_bottleneck"
        }  # fmt: skip


@pytest.mark.parametrize("precision", HALVES)
def test_kept_nodes_compute_in_fp32(precision: Precision) -> None:
    keep = {"backbone.layer4.0.conv.1.conv/Conv", "backbone.layer6.1.conv.2.conv/Conv"}
    typed = to_precision(small_export(), precision, keep)
    types = element_types(typed)
    for node in typed.graph.node:
        if node.op_type == "Conv" and node.name.startswith("backbone.layer"):
            expected = TensorProto.FLOAT if node.name in keep else HALF_TYPES[precision]
            assert {types[name] for name in (*node.input, *node.output)} == {expected}, node.name


_WIDE, _NEXT = "decode_head.bottleneck.conv", "decode_head.classifier.classifier.0.conv"


def planted(scale: float) -> onnx.ModelProto:
    """Enlarge one layer's result by a power of two and shrink the next one's weights: the same network in fp32."""
    graph = copy_model(small_export("float"))
    nodes = {node.name: node for node in graph.graph.node}
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    wide, after = nodes[f"{_WIDE}/Conv"], nodes[f"{_NEXT}/Conv"]
    for name, factor in [(wide.input[1], scale), (wide.input[2], scale), (after.input[1], 1 / scale)]:
        array = numpy_helper.to_array(tensors[name]) * np.float32(factor)
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    return graph


@pytest.mark.parametrize(
    ("scale", "reason", "most"),
    [
        (2.0**17, "half of the range", 4),
        (2.0**-34, "would become zero", 100),  # nothing of the tensor is left in fp16
    ],
)
def test_what_does_not_fit_is_seen_and_kept(scale: float, reason: str, most: int) -> None:
    image, plain, graph = feed("float", 1, 128, 256), small_export("float"), planted(scale)
    expected = infer(plain, image)["mask"]
    assert np.array_equal(infer(graph, image)["mask"], expected)
    if scale > 1:
        assert not np.isfinite(infer(to_precision(graph, "fp16"), image)["logits"]).all()
    keep = out_of_range(graph, read_extremes(infer(with_extremes(graph, "fp16"), image)), "fp16")
    assert f"{_NEXT}/Conv" in keep and len(keep) <= most
    assert reason in keep[f"{_NEXT}/Conv"]
    # This small network is more sensitive than those gated above: what counts is that nothing is lost.
    kept, unplanted = to_precision(graph, "fp16", keep.keys()), to_precision(plain, "fp16")
    share, best = (agreement(infer(model, image)["mask"], expected) for model in (kept, unplanted))
    assert share >= best - 0.005 >= 0.95


def test_in_range_keeps_nothing() -> None:
    graph = small_export("float")
    extremes = read_extremes(infer(with_extremes(graph, "fp16"), feed("float", 1, 128, 256)))
    assert out_of_range(graph, extremes, "fp16") == {}
    assert out_of_range(planted(2.0**17), extremes, "bf16") == {}  # bf16 has the range of fp32


@pytest.mark.parametrize(("precision", "half"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_values_that_count_as_lost_are_those_that_round_to_zero(precision: Precision, half: Any) -> None:
    probed = with_extremes(small_export("float"), precision).graph.initializer
    (largest,) = (numpy_helper.to_array(tensor) for tensor in probed if tensor.name == "extremes/smallest")
    assert largest.astype(half) == 0
    assert np.nextafter(largest, np.float32(1)).astype(half) > 0


@pytest.mark.parametrize(
    ("seen", "kept"),
    [
        (Extremes(largest=32000.0), False),
        (Extremes(largest=33000.0), True),
        (Extremes(largest=np.inf), True),
        (Extremes(largest=np.nan), True),
        (Extremes(largest=1.0, underflow=MAX_UNDERFLOW), False),
        (Extremes(largest=1.0, underflow=MAX_UNDERFLOW * 1.1), True),
    ],
    ids=str,
)
def test_half_of_the_range_is_kept_free_and_few_values_may_vanish(seen: Extremes, kept: bool) -> None:
    graph = small_export("float")
    node = next(node for node in graph.graph.node if node.name == f"{_WIDE}/Conv")
    reader = next(n.name for n in graph.graph.node if node.output[0] in n.input)
    found = out_of_range(graph, {node.output[0]: seen}, "fp16")
    assert found.keys() == ({node.name, reader} if kept else set())


@pytest.mark.parametrize(("value", "kept"), [(65504.0, False), (-65504.0, False), (-70000.0, True), (np.nan, True)])
def test_weights_use_the_whole_range(value: float, kept: bool) -> None:
    graph = copy_model(small_export("float"))
    node = next(node for node in graph.graph.node if node.name == f"{_WIDE}/Conv")
    tensor = next(entry for entry in graph.graph.initializer if entry.name == node.input[1])
    array = numpy_helper.to_array(tensor).copy()
    array.flat[5] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    assert out_of_range(graph, {}, "fp16").keys() == ({node.name} if kept else set())


def kept_in(file: onnx.ModelProto) -> Mapping[str, str]:
    """What a file says that stays in fp32."""
    choices = read_choices(file)
    assert choices is not None
    return choices.kept_fp32


def test_the_range_pass_runs_over_the_calibration_stream() -> None:
    """What no image shows, a feed does: the first convolution's result before it is clipped."""
    graph = small_export("float")
    image = feed("float", 1, 128, 256)["image"]
    feeds = [{"image": image}]
    calibrator: Any = SimpleNamespace(has_images=True, target="gpu", feeds=lambda model: feeds)
    assert kept_in(derive_precision(graph, "fp16", [], calibrator=calibrator)) == {}
    feeds.append({"image": image * np.float32(1e6)})
    kept = kept_in(derive_precision(graph, "fp16", [], calibrator=calibrator))
    assert "half of the range" in kept["backbone.conv1.conv/Conv"]


# --- TF32


def in_tf32(values: np.ndarray) -> np.ndarray:
    """Round float32 to 10 bits of mantissa, ties to even: by the bits, independently of the graph."""
    bits = values.view(np.uint32).astype(np.uint64)
    bits += 0xFFF + (bits >> 13 & 1)
    return (bits & ~np.uint64(0x1FFF)).astype(np.uint32).view(np.float32)


def test_tf32_rounds_both_factors_of_every_product() -> None:
    rng = np.random.default_rng(0)
    values, weights = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3, 9, 9), (4, 3, 1, 1)))
    given = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 19, "our": 1]>
        g (float[5, 3, 9, 9] x, float[9, 7] right) => (float[5, 4, 9, 9] wide, float[5, 3, 9, 7] product)
        { wide = Conv (x, weight)  product = our.Product (x, right) }
        <domain: "our", opset_import: ["": 19]> Product (a, b) => (c) { c = MatMul (a, b) }"""
    )
    given.graph.initializer.append(numpy_helper.from_array(weights, "weight"))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(simulate_tf32(given).SerializeToString(), options)
    right = rng.standard_normal((9, 7)).astype(np.float32)
    wide, product = session.run(None, {"x": values, "right": right})
    short, short_weights, short_right = (in_tf32(array).astype(np.float64) for array in (values, weights, right))
    np.testing.assert_allclose(wide, np.einsum("oi,bihw->bohw", short_weights[..., 0, 0], short), rtol=0, atol=2e-6)
    np.testing.assert_allclose(product, short @ short_right, rtol=0, atol=2e-6)
    assert np.abs(product - values.astype(np.float64) @ right).max() > 1e-4


def test_tf32_is_imitated_in_the_decode_too_and_shows() -> None:
    exact = small_export("uint8", "static")
    simulated = simulate_tf32(to_precision(exact, "fp32"))
    assert not simulated.functions
    products = [node for node in simulated.graph.node if node.op_type in ("Conv", "MatMul")]
    assert {node.op_type for node in products} == {"Conv", "MatMul"}
    assert all(name.endswith("/tf32") for node in products for name in node.input[:2])
    image = feed("uint8", 1, 128, 256)
    with OrtRunner(exact, threads=1) as native, OrtRunner(exact, threads=1, tf32=True) as runner:
        assert (native.arithmetic, runner.arithmetic) == ("native", "tf32")
        full, short = native.infer(image)["logits"], runner.infer(image)["logits"]
    assert 1e-3 < np.median(np.abs(full - short)) / full.std() < 5e-2
