"""Transformer encoders as ONNX files: narrow ones, as their export does not depend on width and depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from nrd_trt.errors import ConfigError
from nrd_trt.exporting import onnx_export
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.extremes import read_extremes, with_extremes
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.network import file_network
from nrd_trt.graph.precision import to_precision, to_quantized
from nrd_trt.graph.program import layer_name
from nrd_trt.graph.quantize import choose_layers, plan_quantization
from nrd_trt.graph.tensors import copy_model, element_types
from nrd_trt.model import encoders, plans
from nrd_trt.model.config import CAMVID_INFO, NetworkConfig
from nrd_trt.model.network import Segmentor
from nrd_trt.model.plans import MitPlan, TwinsPlan
from nrd_trt.model.transformers import MixTransformer, Twins
from nrd_trt.specs import InputShape
from nrd_trt.validation.structure import executed_program, layer_differences, layer_structure
from tests.graph.test_precision import parse_with_rtx
from tests.helpers import infer, own_trace

NARROW: Any = {"channels": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "heads": (1, 2, 3, 4)}
PLANS = {
    "mit_narrow": (MixTransformer, MitPlan(**{**NARROW, "depths": (1, 1, 1, 1)})),
    "twins_narrow": (Twins, TwinsPlan(**NARROW)),
}
DYNAMIC = InputShape.of(dynamic=((64, 64), (64, 96), (128, 128)), default=(64, 96))
STATIC = InputShape.static((64, 96))
Plant = Callable[[onnx.ModelProto, list[onnx.NodeProto]], None]


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
        assert layer_structure(graph, narrow).differences == ()
        types = element_types(graph)
        sums = [node for node in graph.graph.node if node.op_type in ("LayerNormalization", "Softmax")]
        assert {types[node.output[0]] for node in sums} == {onnx.TensorProto.FLOAT}
        products = [node for node in graph.graph.node if node.op_type == "MatMul"]
        assert onnx.TensorProto.FLOAT not in {types[node.output[0]] for node in products}
        parse_with_rtx(graph)
    assert layer_structure(full, narrow).differences == ()
    if shape is STATIC:
        check_8_bits(full, images, narrow)
        check_faults(full, narrow)


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
        assert layer_structure(graph, network).differences == ()
        if precision == "int8":  # fp8 leaves out what is narrow
            layers = {name.removesuffix("/MatMul") for name in plan.layers if name.endswith("/MatMul")}
            assert layers == linear, "the products of attention, whose factors are no constants, are none"
            assert {reader for _, readers in plan.tensors.items() for reader, _ in readers} == set(plan.layers)
            assert (infer(graph, {"image": images})["mask"] == infer(full, {"image": images})["mask"]).mean() >= 0.97


@pytest.mark.parametrize("narrow", ["twins_narrow"], indirect=True)
def test_windows_fix_the_size(narrow: Segmentor) -> None:
    with pytest.raises(ConfigError, match="dynamic=: expected one size for Twins"):
        export_onnx(narrow, ExportOptions(shape=DYNAMIC))


def check_faults(full: onnx.ModelProto, network: Segmentor) -> None:
    """The structural proof names the layer of a fault that leaves the file valid."""
    executed, _ = executed_program(network, (64, 96))
    for kind, plant in FAULTS.items():
        faulty = copy_model(full)
        nodes = [node for node in faulty.graph.node if node.op_type == kind and "block" in node.name]
        plant(faulty, nodes)
        reduced = file_network(faulty)
        assert reduced is not None
        found = layer_differences(reduced, executed, network)
        assert any(f"`{layer_name(nodes[0].name, kind)}`" in line for line in found), (kind, found)


def change(name: str, value: Any) -> Plant:
    """Give the first node another attribute."""

    def plant(faulty: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
        kept = [entry for entry in nodes[0].attribute if entry.name != name]
        del nodes[0].attribute[:]
        nodes[0].attribute.extend([*kept, helper.make_attribute(name, value)])

    return plant


def scale(faulty: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Let the first node read another constant."""
    constant = next(entry for entry in faulty.graph.initializer if entry.name == nodes[0].input[1])
    faulty.graph.initializer.append(numpy_helper.from_array(1.5 * numpy_helper.to_array(constant) + 1, "scaled"))
    nodes[0].input[1] = "scaled"


FAULTS: dict[str, Plant] = {
    "LayerNormalization": change("epsilon", 1e-3),
    "Softmax": change("axis", 1),
    "MatMul": scale,  # weights of a linear layer
    "Add": scale,  # its bias
    "Mul": scale,  # the factor of the scores
    "Erf": lambda faulty, nodes: setattr(nodes[0], "op_type", "Tanh"),
    "Div": scale,  # within GELU
    "Squeeze": lambda faulty, nodes: nodes[0].input.__setitem__(0, nodes[1].input[0]),  # keys for values
}
