"""Taking functions out, so that a builder must use its plugins."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from nrd_trt.decode.function import DOMAIN, DOMAIN_VERSION, LOGITS_OP, MASK_OP
from nrd_trt.errors import ExportError
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.strip import strip_functions
from nrd_trt.graph.tensors import copy_model
from tests.helpers import small_export


def decode_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == DOMAIN]


@pytest.mark.parametrize("op_type", [LOGITS_OP, MASK_OP])
def test_function_goes_and_everything_else_stays(op_type: str) -> None:
    model = to_precision(small_export(), "fp16")
    before = model.SerializeToString(deterministic=True)
    stripped = strip_functions(model, {op_type})
    assert {function.name for function in stripped.functions} == {LOGITS_OP, MASK_OP} - {op_type}
    expected = copy_model(model)
    kept = [function for function in expected.functions if function.name != op_type]
    del expected.functions[:]
    expected.functions.extend(kept)
    assert stripped.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before


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


def test_nothing_to_strip_is_the_same_graph() -> None:
    assert strip_functions(small_export(), ()) == small_export()


@pytest.mark.parametrize(("op_types", "named"), [(("Other",), "Other"), ((LOGITS_OP, MASK_OP), MASK_OP)])
def test_unknown_function_is_an_error(op_types: tuple[str, ...], named: str) -> None:
    with pytest.raises(ExportError, match=rf"cannot strip {named}: the file has the functions {LOGITS_OP};"):
        strip_functions(select_outputs(small_export(), "logits"), op_types)


def test_function_that_another_calls_is_an_error() -> None:
    model = copy_model(small_export())
    (mask,) = (function for function in model.functions if function.name == MASK_OP)
    mask.node.add(op_type=LOGITS_OP, domain=DOMAIN)
    with pytest.raises(ExportError, match=rf"cannot strip {LOGITS_OP}: function {MASK_OP} calls it; strip both"):
        strip_functions(model, {LOGITS_OP})
    assert not strip_functions(model, {LOGITS_OP, MASK_OP}).functions
