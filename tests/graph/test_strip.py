"""Taking functions out, so that a builder must use its plugins; renaming them, so that it cannot."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from nrd_trt.decode.function import DOMAIN, DOMAIN_VERSION, LOGITS_OP, MASK_OP
from nrd_trt.errors import ExportError
from nrd_trt.graph.decode_nodes import PLUGIN_ATTRIBUTES, decode_nodes, only_functions, strip_functions, unsupported
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.tensors import copy_model
from nrd_trt.specs import Precision
from tests.helpers import feed, infer, small_export


@pytest.mark.parametrize("op_type", [LOGITS_OP, MASK_OP])
def test_function_goes_and_everything_else_stays(op_type: str) -> None:
    model = to_precision(small_export(), "fp16")
    before = model.SerializeToString(deterministic=True)
    stripped = strip_functions(model, {op_type})
    assert {function.name for function in stripped.functions} == {LOGITS_OP, MASK_OP} - {op_type}
    expected = copy_model(model)
    del expected.functions[[function.name for function in expected.functions].index(op_type)]
    assert stripped == expected
    assert model.SerializeToString(deterministic=True) == before
    assert strip_functions(model, ()) == model


def test_nodes_name_their_plugin() -> None:
    stripped = strip_functions(small_export(), (LOGITS_OP, MASK_OP))
    assert list(stripped.functions) == []
    nodes = decode_nodes(stripped)
    assert {node.op_type for node in nodes} == {LOGITS_OP, MASK_OP}
    assert nodes == decode_nodes(small_export())
    for node in nodes:
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert (values["plugin_namespace"], values["plugin_version"]) == (b"nrd", str(DOMAIN_VERSION).encode())
    assert DOMAIN in {entry.domain for entry in stripped.opset_import}
    assert read_facts(stripped) == read_facts(small_export())
    onnx.checker.check_model(stripped)


def test_functions_that_are_absent_or_called_cannot_be_stripped() -> None:
    for op_types, named in ((("Other",), "Other"), ((LOGITS_OP, MASK_OP), MASK_OP)):
        with pytest.raises(ExportError, match=rf"cannot strip {named}: the file has the functions {LOGITS_OP};"):
            strip_functions(select_outputs(small_export(), "logits"), op_types)
    model = copy_model(small_export())
    (mask,) = (function for function in model.functions if function.name == MASK_OP)
    mask.node.add(op_type=LOGITS_OP, domain=DOMAIN)
    with pytest.raises(ExportError, match=rf"cannot strip {LOGITS_OP}: function {MASK_OP} calls it; strip both"):
        strip_functions(model, {LOGITS_OP})
    assert not strip_functions(model, {LOGITS_OP, MASK_OP}).functions
    with pytest.raises(ExportError, match=rf"^{MASK_OP}: expected a function of that name in the file, got none"):
        only_functions(strip_functions(small_export(), {MASK_OP}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_renamed_functions_compute_the_same(precision: Precision) -> None:
    model = to_precision(small_export(), precision)
    before = model.SerializeToString(deterministic=True)
    renamed = only_functions(model)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(renamed, full_check=True)
    wanted, got = (infer(each, feed("uint8", 1, 128, 256)) for each in (model, renamed))
    assert len(np.unique(wanted["mask"])) > 1
    assert wanted.keys() == got.keys() == {"mask", "logits"}
    assert all(np.array_equal(wanted[name], got[name]) for name in wanted)


def test_nothing_by_which_a_plugin_is_found_is_left() -> None:
    renamed = only_functions(small_export())
    old, new = decode_nodes(small_export()), decode_nodes(renamed)
    assert [node.name for node in new] == [node.name for node in old]  # so layers keep their names
    assert {node.op_type for node in new}.isdisjoint({LOGITS_OP, MASK_OP})
    assert {node.op_type for node in new} == {function.name for function in renamed.functions}
    for node, function in zip(new, renamed.functions, strict=True):
        names = {entry.name for entry in node.attribute}
        assert names == set(function.attribute)
        assert names.isdisjoint(PLUGIN_ATTRIBUTES) and "num_classes" in names
    assert len(renamed.graph.node) == len(small_export().graph.node)


def with_attribute(name: str, value: Any) -> onnx.ModelProto:
    model = copy_model(select_outputs(small_export(), "mask"))
    (node,) = decode_nodes(model)
    del node.attribute[[entry.name for entry in node.attribute].index(name)]
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))
    return model


@pytest.mark.parametrize(
    ("name", "value", "allowed", "found"),
    [
        ("hidden", 16, {8, 16, 32}, []),
        ("hidden", 12, {8, 16, 32}, ["hidden 12 (expected 8, 16 or 32)"]),
        ("num_classes", 257, range(2, 257), ["num_classes 257 (expected 2 to 256)"]),
        ("num_classes", 256, range(2, 257), []),
        ("upsample", 3, {4}, ["upsample 3 (expected 4)"]),
        ("plugin_version", None, (), [f"{MASK_OP} without plugin_version"]),
        ("plugin_namespace", None, (), [f"{MASK_OP} without plugin_namespace"]),
    ],
)
def test_constants_that_a_plugin_is_not_written_for(
    name: str, value: int | None, allowed: Collection[int], found: list[str]
) -> None:
    assert unsupported(with_attribute(name, value), {name: allowed} if allowed else {}) == found


def test_equal_complaints_of_two_nodes_are_one() -> None:
    assert unsupported(small_export(), {"hidden": {8}, "upsample": {4}}) == ["hidden 16 (expected 8)"]
