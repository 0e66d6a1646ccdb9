"""The other passes, on the exported graph and on small ones that make one point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.errors import ExportError
from nrd_trt.graph.extremes import Extremes, out_of_range, read_extremes, with_extremes
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.metadata import read_facts, write_facts
from nrd_trt.graph.outputs import select_outputs, with_taps
from nrd_trt.graph.precision import simulate_rounding, to_precision
from nrd_trt.graph.tensors import copy_model, element_types
from nrd_trt.specs import Precision
from tests.helpers import feed, infer, small_export

FLOAT = TensorProto.FLOAT
NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


PASSES: dict[str, Callable[[onnx.ModelProto], Any]] = {
    "fp32": lambda model: to_precision(model, "fp32"),
    "fp16": lambda model: to_precision(model, "fp16"),
    "bf16": lambda model: to_precision(model, "bf16"),
    "rounding": lambda model: simulate_rounding(model, "fp32"),
    "extremes": lambda model: with_extremes(model, "fp16"),
    "outputs": lambda model: select_outputs(model, "logits"),
    "taps": with_taps,
    "importer": importer_problems,
    "range": lambda model: out_of_range(model, {"theta": Extremes(largest=np.inf)}, "fp16"),
    "types": element_types,
}


def test_passes_leave_their_argument_alone() -> None:
    model = copy_model(small_export())
    before = model.SerializeToString(deterministic=True)
    for name, apply in PASSES.items():
        assert apply(model) is not model, name
        assert model.SerializeToString(deterministic=True) == before, name
    typed = to_precision(small_export(), "fp16")
    before = typed.SerializeToString(deterministic=True)
    simulate_rounding(typed, "fp16")
    assert typed.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("output", "function", "absent"),
    [("mask", "NrdPatchDecodeMask", "logits"), ("logits", "NrdPatchDecode", "mask")],
)
def test_a_selected_output_keeps_only_what_it_needs(output: str, function: str, absent: str) -> None:
    both = copy_model(small_export())
    both.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "unused"))
    one = select_outputs(both, output)
    onnx.checker.check_model(one, full_check=True)
    assert [entry.name for entry in one.graph.output] == [output]
    assert [entry.name for entry in one.functions] == [function]
    written = {name for node in one.graph.node for name in node.output}
    assert absent not in written
    read = {name for node in one.graph.node for name in node.input} | {output}
    assert all(not read.isdisjoint(node.output) for node in one.graph.node)
    assert all(tensor.name in read for tensor in one.graph.initializer)
    assert 0 < len(both.graph.node) - len(one.graph.node) < 3
    assert read_facts(one).output == output
    image = feed("uint8", 1, 128, 256)
    got = infer(one, image)
    assert list(got) == [output]
    assert np.array_equal(got[output], infer(both, image)[output])


def test_extremes_are_the_largest_magnitudes() -> None:
    graph = small_export()
    watched = [next(n for n in graph.graph.node if n.op_type == "Conv").output[0], "theta", "guidance", "logits"]
    image = feed("uint8", 1, 128, 256)
    extremes, values = read_extremes(infer(with_extremes(graph, "fp16"), image)), infer(graph, image, *watched)
    for name in watched:
        # Two sessions fuse differently, so the last digits differ.
        assert extremes[name].largest == pytest.approx(np.abs(values[name]).max(), rel=1e-3)
    types = element_types(graph)
    assert extremes.keys() == {n for node in graph.graph.node for n in node.output if types[n] == FLOAT}


def scaled(*factors: float) -> onnx.ModelProto:
    """image (4,) -> times each factor in turn -> logits."""
    names = ["image", *(f"x{index}" for index in range(1, len(factors))), "logits"]
    graph = helper.make_graph(
        [helper.make_node("Mul", [names[i], f"f{i}"], [names[i + 1]], f"mul{i}") for i in range(len(factors))],
        "scaled",
        [helper.make_tensor_value_info("image", FLOAT, [4])],
        [helper.make_tensor_value_info("logits", FLOAT, [4])],
        initializer=[numpy_helper.from_array(np.float32(f), f"f{i}") for i, f in enumerate(factors)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    write_facts(model, replace(read_facts(small_export()), precision="fp32"))
    return model


def run(model: onnx.ModelProto, values: np.ndarray) -> np.ndarray:
    return infer(model, {"image": values})["logits"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_step_of_16_bits_is_rounded(precision: Precision) -> None:
    values, factors = np.array([1.0, 1 / 3, 7.7, -0.123], np.float32), (1.1, 1.7, 0.3)
    expected = values.astype(NUMPY[precision])
    for factor in factors:
        expected = expected * np.array(factor).astype(NUMPY[precision])
        assert expected.dtype == NUMPY[precision]
    got = run(to_precision(scaled(*factors), precision), values)
    assert np.array_equal(got, expected.astype(np.float32))
    assert not np.array_equal(got, run(scaled(*factors), values))


@pytest.mark.parametrize(("precision", "finite"), [("fp32", True), ("fp16", False), ("bf16", True)])
def test_overflow_gives_infinity(precision: Precision, finite: bool) -> None:
    """300 · 300 is beyond fp16, though the next factor would bring it back."""
    got = run(to_precision(scaled(300.0, 1 / 1024), precision), np.array([300, -300, 1, 0], np.float32))
    assert np.isfinite(got).tolist() == [finite, finite, True, True]
    if not finite:
        assert got[:2].tolist() == [np.inf, -np.inf]


def test_types_that_cannot_be_inferred_are_an_error() -> None:
    model = copy_model(small_export())
    del model.functions[:]
    with pytest.raises(ExportError, match=r"cannot infer the types of .*is every function in the file"):
        element_types(model)
