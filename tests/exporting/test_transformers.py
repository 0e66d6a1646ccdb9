"""Transformer encoders as ONNX files: narrow ones, as their export does not depend on width and depth."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from nrd_trt.errors import ConfigError
from nrd_trt.exporting import onnx_export
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.extremes import read_extremes, with_extremes
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.precision import to_precision, to_quantized
from nrd_trt.graph.quantize import choose_layers, plan_quantization
from nrd_trt.graph.tensors import element_types
from nrd_trt.model import encoders, plans
from nrd_trt.model.config import CAMVID_INFO, NetworkConfig
from nrd_trt.model.network import Segmentor
from nrd_trt.model.plans import MitPlan, TwinsPlan
from nrd_trt.model.transformers import MixTransformer, Twins
from nrd_trt.specs import InputShape
from tests.graph.test_precision import parse_with_rtx
from tests.helpers import infer, own_trace

NARROW: Any = {"channels": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "heads": (1, 2, 3, 4)}
PLANS = {
    "mit_narrow": (MixTransformer, MitPlan(**{**NARROW, "depths": (1, 1, 1, 1)})),
    "twins_narrow": (Twins, TwinsPlan(**NARROW)),
}
DYNAMIC = InputShape.of(dynamic=((64, 64), (64, 96), (128, 128)), default=(64, 96))
STATIC = InputShape.static((64, 96))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Segmentor:
    """A network on a narrow encoder, which starts with one perceptron for all patches so that its masks have edges."""
    name = request.param
    kind, plan = PLANS[name]
    monkeypatch.setitem(encoders.ENCODERS, name, partial(kind, plan))
    for known in (plans.PLANS, plans.TRANSFORMERS, plans.TWINS if kind is Twins else plans.MITS):
        monkeypatch.setitem(known, name, plan)
    monkeypatch.setattr(onnx_export, "_trace", own_trace())
    torch.manual_seed(0)
    shape = NetworkConfig(encoder=name, num_classes=11, channels=16, controller_channels=16, c1_channels=8)
    model = Segmentor(shape, CAMVID_INFO).eval().requires_grad_(False)
    model.decode_head.start_as_perceptron()  # type: ignore[operator]
    model.get_submodule("decode_head.classifier.classifier.1").get_parameter("weight").normal_(std=0.2)
    return model


@pytest.mark.parametrize(
    ("narrow", "shape"),
    [
        pytest.param("mit_narrow", STATIC, id="mit"),
        pytest.param("twins_narrow", STATIC, id="twins"),
        pytest.param("mit_narrow", DYNAMIC, id="mit-dynamic", marks=pytest.mark.all_combinations),
    ],
    indirect=["narrow"],
)
def test_a_transformer_is_exported(narrow: Segmentor, shape: InputShape) -> None:
    """Its norms are one operator each, its masks PyTorch's, and its 16-bit forms clean with sums in fp32."""
    full = export_onnx(narrow, ExportOptions(shape=shape, input_form="float"))
    kinds = [node.op_type for node in full.graph.node]
    norms = [module for module in narrow.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert kinds.count("LayerNormalization") == len(norms) and "Softmax" in kinds
    if shape is STATIC:
        assert not {"Shape", "Gather", "Unsqueeze"} & set(kinds), "no shape arithmetic is left"
    for size_hw in ((64, 96),) if shape is STATIC else ((64, 96), (128, 128)):
        images = np.random.default_rng(0).normal(size=(1, 3, *size_hw)).astype(np.float32)
        found = infer(full, {"image": images})
        logits = narrow(torch.from_numpy(images)).numpy()
        assert np.abs(found["logits"] - logits).max() <= 1e-4 * logits.std(), "of every patch and place"
        assert (found["mask"] == narrow.predict(torch.from_numpy(images)).numpy()).mean() >= 0.9999
    for precision in ("fp16", "bf16"):
        graph = to_precision(full, precision)  # type: ignore[arg-type]
        onnx.checker.check_model(graph, full_check=True)
        assert importer_problems(graph) == []
        types = element_types(graph)
        sums = [node for node in graph.graph.node if node.op_type in ("LayerNormalization", "Softmax")]
        assert {types[node.output[0]] for node in sums} == {onnx.TensorProto.FLOAT}
        products = [node for node in graph.graph.node if node.op_type == "MatMul"]
        assert onnx.TensorProto.FLOAT not in {types[node.output[0]] for node in products}
        parse_with_rtx(graph)
    if shape is STATIC:
        check_8_bits(full, images, narrow)


def check_8_bits(full: onnx.ModelProto, images: np.ndarray, network: Segmentor) -> None:
    """Linear layers compute in 8 bits from pair to product, nothing else of a block but its convolutions does."""
    linear = {name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    seen = read_extremes(infer(with_extremes(full, "int8"), {"image": images}))
    for precision in ("int8", "fp8"):
        plan = plan_quantization(full, choose_layers(full, precision=precision), "gpu", precision)
        graph = to_quantized(full, plan, {name: seen[name].largest if name in seen else 4.0 for name in plan.tensors})
        onnx.checker.check_model(graph, full_check=True)
        assert importer_problems(graph) == []
        parse_with_rtx(graph)
        if precision == "int8":  # fp8 leaves out what is narrow
            layers = {name.removesuffix("/MatMul") for name in plan.layers if name.endswith("/MatMul")}
            assert layers == linear, "the products of attention, whose factors are no constants, are none"
            assert {reader for _, readers in plan.tensors.items() for reader, _ in readers} == set(plan.layers)
            assert (infer(graph, {"image": images})["mask"] == infer(full, {"image": images})["mask"]).mean() >= 0.97


@pytest.mark.parametrize("narrow", ["twins_narrow"], indirect=True)
def test_windows_fix_the_size(narrow: Segmentor) -> None:
    with pytest.raises(ConfigError, match="dynamic=: expected one size for Twins"):
        export_onnx(narrow, ExportOptions(shape=DYNAMIC))
