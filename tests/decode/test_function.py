"""The ONNX functions, run by ONNX Runtime, against the decode in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.decode import function
from nrd_trt.decode.reference import patch_decode, upsample
from nrd_trt.specs import DecodeSpec
from tests.helpers import random_decode_inputs

SPECS = [
    DecodeSpec(num_classes=2, hidden=8, guidance_channels=8, patch=4, upsample=8),
    DecodeSpec(num_classes=19),
    DecodeSpec(num_classes=19, hidden=32, guidance_channels=8, patch=16, upsample=2),
    DecodeSpec(num_classes=150),
    DecodeSpec(num_classes=150, hidden=8, guidance_channels=16, patch=4, upsample=8),
    DecodeSpec(num_classes=256, hidden=16, guidance_channels=8, patch=8, upsample=4),
]
SIZES = [(1, 1, 1), (1, 2, 3), (3, 4, 1)]  # batch, h, w
FLOAT = TensorProto.FLOAT
ELEMENTS = {"int32": np.int32, "half": np.float16, "u8x4": np.uint8}  # as read: u8x4 by its bytes


def both(spec: DecodeSpec, x_table: np.ndarray, y_table: np.ndarray, mask_type: Any = "half") -> onnx.ModelProto:
    """One file with both functions and dynamic batch and size."""
    tables = (x_table, y_table)
    kind = TensorProto.FLOAT16 if mask_type == "half" else TensorProto.INT32
    graph = helper.make_graph(
        [
            function.logits_node(spec, *tables, "logits"),
            function.mask_node(spec, *tables, "classes", mask_type=mask_type),
        ],
        "decode",
        [
            helper.make_tensor_value_info("theta", FLOAT, ["b", spec.theta_channels, "h", "w"]),
            helper.make_tensor_value_info("guidance", FLOAT, ["b", spec.guidance_channels, "gh", "gw"]),
        ],
        [
            helper.make_tensor_value_info("logits", FLOAT, ["b", spec.num_classes, "gh", "gw"]),
            helper.make_tensor_value_info("classes", kind, ["b", "H", "V" if mask_type == "u8x4" else "W"]),
        ],
    )
    return helper.make_model(
        graph,
        functions=[function.logits_function(spec, *tables), function.mask_function(spec, *tables, mask_type)],
        opset_imports=[helper.make_opsetid("", function.OPSET), helper.make_opsetid(function.DOMAIN, 1)],
        ir_version=9,
    )


def run(model: onnx.ModelProto, theta: np.ndarray, guidance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits, classes = session.run(["logits", "classes"], {"theta": theta, "guidance": guidance})
    packed = classes.dtype == np.int32 and classes.shape[-1] < theta.shape[-1] * 32
    return logits, classes.view(np.uint8) if packed else classes


@pytest.mark.parametrize(("spec", "mask_type"), list(zip(SPECS, [*ELEMENTS] * 2, strict=True)))
def test_equal_to_torch(spec: DecodeSpec, mask_type: str) -> None:
    tables = random_decode_inputs(spec, 1, 1, 1)[2:]
    model = both(spec, *tables, mask_type)
    onnx.checker.check_model(model, full_check=True)
    for size in SIZES:
        theta, guidance, *_ = random_decode_inputs(spec, *size, seed=sum(size))
        logits, classes = run(model, theta, guidance)
        expected = patch_decode(*map(torch.from_numpy, (theta, guidance, *tables)), spec)
        assert np.abs(logits - expected.numpy()).max() <= 1e-5 * expected.abs().max()

        enlarged = upsample(expected, spec.upsample)
        assert classes.dtype == ELEMENTS[mask_type]
        assert classes.shape == enlarged[:, 0].shape
        best = enlarged.topk(2, dim=1).values
        clear = (best[:, 0] - best[:, 1]).numpy() > 1e-4 * float(expected.std())
        assert clear.mean() > 0.99
        assert np.array_equal(classes[clear], enlarged.argmax(1).numpy()[clear])
        assert len(np.unique(classes)) > 1


@pytest.mark.parametrize("mask_type", ELEMENTS)
def test_ties_go_to_the_lowest_index_and_255_is_exact(mask_type: str) -> None:
    spec = DecodeSpec(num_classes=256)
    tables = random_decode_inputs(spec, 1, 1, 1)[2:]
    theta = np.zeros((1, spec.theta_channels, 1, 2), np.float32)
    theta[0, [-256 + 3, -256 + 7], 0, 0] = 1  # left patch: classes 3 and 7 tie
    theta[0, -1, 0, 1] = 1  # right patch: class 255
    _, classes = run(both(spec, *tables, mask_type), theta, np.zeros((1, 16, 8, 16), np.float32))
    assert np.unique(classes[..., :32]).tolist() == [3]
    assert np.unique(classes[..., 32:]).tolist() == [255]


def test_neighbours_are_packed_in_their_order_and_no_step_leaves_int32() -> None:
    """In int64 the same steps give the same words, so nothing relies on how a runtime wraps."""
    spec = DecodeSpec(num_classes=256, patch=16, upsample=2)
    theta, guidance, *tables = random_decode_inputs(spec, 2, 2, 3)
    model = both(spec, *tables, "u8x4")
    classes = run(model, theta, guidance)[1]
    assert np.array_equal(classes, run(both(spec, *tables, "int32"), theta, guidance)[1])
    words = classes.reshape(-1, 4)
    assert (np.diff(np.sort(words, axis=1)) != 0).all(axis=1).any()  # four neighbours that all differ
    assert all((words[:, place] < 128).any() and (words[:, place] >= 128).any() for place in range(4))
    packed = classes.view("<i4")
    for node in model.functions[1].node:
        for entry in node.attribute:
            if node.op_type == "Cast":
                entry.i = TensorProto.INT64
            elif entry.name == "value" and entry.t.data_type == TensorProto.INT32:
                entry.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry.t).astype(np.int64)))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    wide = run(model, theta, guidance)[1]
    assert wide.dtype == np.int64
    assert np.array_equal(wide, packed)


def test_every_index_is_packed() -> None:
    """Patches of one class each, among them the two sides of the sign bit."""
    spec = DecodeSpec(num_classes=256, hidden=8, guidance_channels=8, patch=4, upsample=8)
    theta = np.zeros((1, spec.theta_channels, 1, 256), np.float32)
    theta[0, -256:, 0] = np.eye(256)
    guidance = np.zeros((1, 8, 4, 4 * 256), np.float32)
    tables = np.zeros((2, 4), np.float32)
    packed, plain = (run(both(spec, *tables, kind), theta, guidance)[1] for kind in ("u8x4", "int32"))
    assert np.array_equal(packed, plain)
    assert set(np.unique(packed)) == set(range(256))


def test_nodes_carry_what_a_plugin_needs() -> None:
    spec = SPECS[2]
    tables = random_decode_inputs(spec, 1, 1, 1)[2:]
    expected = {
        "num_classes": 19, "hidden": 32, "guidance_channels": 8, "patch": 16, "x_table": tables[0].tolist(),
        "y_table": tables[1].tolist(), "plugin_namespace": b"nrd", "plugin_version": b"1",
    }  # fmt: skip
    model = both(spec, *tables)
    for node, body in zip(model.graph.node, model.functions, strict=True):
        assert (node.domain, node.op_type) == (body.domain, body.name)
        assert {entry.name for entry in node.attribute} == set(body.attribute)
        assert list(node.input) == ["theta", "guidance"] and list(body.input) == ["decode_theta", "decode_guidance"]
    logits, mask = model.graph.node
    values = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in (logits, mask)]
    assert values[0] == expected
    assert values[1] == {**expected, "upsample": 2, "mask_type": b"half"}
    packed = both(spec, *tables, "u8x4").graph.node[1]
    assert helper.get_node_attr_value(packed, "mask_type") == b"u8x4"
    assert (logits.op_type, mask.op_type) == ("NrdPatchDecode", "NrdPatchDecodeMask")
    assert {logits.domain, mask.domain} == {"nrd"}
