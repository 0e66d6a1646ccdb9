"""What TensorRT 10's parser refuses or misreads: found where it is planted, and the node is named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.tensors import copy_model
from tests.helpers import small_export, small_int8


def test_planted_violations_of_an_export_are_found_and_named() -> None:
    model = copy_model(small_int8())
    assert importer_problems(model) == []
    nodes = {node.name: node for node in model.graph.node}
    # as in files of 0.1.0: the function's input has the name of a tensor of the graph
    logits, mask = model.functions
    for owner in (logits, *logits.node):
        owner.input[:] = ["theta" if name == "decode_theta" else name for name in owner.input]
    next(node for node in mask.node if node.op_type == "Resize").attribute.append(helper.make_attribute("antialias", 1))
    model.graph.initializer.append(numpy_helper.from_array(np.array(3, np.int8), "three"))
    nodes["pixels/Q"].input[2] = "three"
    for reader, index, op, changes in (
        ("decode_head.image_pool.0/ReduceMean", 1, "Identity", {}),
        ("classes/fp32", 0, "Cast", {"to": TensorProto.UINT8}),
    ):
        node = helper.make_node(op, [nodes[reader].input[index]], [f"planted/{op}"], f"planted/{op}", **changes)
        model.graph.node.insert(list(model.graph.node).index(nodes[reader]), node)
        nodes[reader].input[index] = node.name
    assert importer_problems(model) == [
        "decode_head/NrdPatchDecode: its function takes or gives theta, as a tensor of the graph is named; rename it",
        "pixels/Q: has the zero points [3.0]; expected 0, one for each scale",
        "decode_head.image_pool.0/ReduceMean: input 1 of ReduceMean is computed; expected a constant",
        "enlarged__2: antialias of Resize is 1; expected one of 0",
        "planted/Cast: gives UINT8 inside the graph; expected it in inputs and outputs of the graph only",
    ]


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ("(uint8[2] x) => (uint8[2] y) {a = Cast<to=1>(x) b = Cast<to=10>(a) c = Cast<to=16>(b) d = Cast<to=6>(c)"
         "e = Cast<to=7>(d) f = Cast<to=10>(e) y = Cast<to=2>(f)}", []),
        ("(int32[2] x) => (uint8[2] y) {y = Cast<to=2>(x)}", ["casts INT32 to UINT8"]),
        ("(int64[2] x) => (uint8[2] y) {y = Cast<to=2>(x)}", ["casts INT64 to UINT8"]),
        ("(uint8[2] x) => (int32[2] y) {y = Cast<to=6>(x)}", ["casts UINT8 to INT32"]),
        ("(bfloat16[2] x) => (uint8[2] y) {y = Cast<to=2>(x)}", ["casts BFLOAT16 to UINT8"]),
        ("(float[2] x) => (bool[2] y) {y = Cast<to=9>(x)}", ["casts FLOAT to BOOL"]),
        ("(uint8[2,1] x) => (uint8[1,2] y) {y = Transpose(x)}", ["Transpose on UINT8; expected FLOAT, INT32"]),
        ("(int32[2,2] x) => (int32[2,2] y) {y = MatMul(x, x)}", ["MatMul on INT32; expected FLOAT, FLOAT16"]),
        ("(int32[2] x) => (int32[2] y) {y = BitwiseNot(x)}", ["BitwiseNot is no operator of the parser"]),
        ("(float[4] x, int64[2] n) => (float[a] y, float[b] z) {y, z = Split(x, n)}", ["input 1 of Split is computed"]),
        ("(float[1,1,2,2] x, float[8] r) => (float[1,1,4,4] y) <float[4] s = {1,1,2,2}> {y = Resize(x, r, s)}",
         ["input 1 of Resize is computed"]),
        ("(float[1,1,2,2] x) => (float[1,1,4,4] y) <float[8] r = {0,0,0,0,1,1,1,1}, float[4] s = {1,1,2,2}>"
         '{y = Resize<mode="linear", coordinate_transformation_mode="half_pixel_symmetric">(x, r, s)}',
         ["coordinate_transformation_mode of Resize is b'half_pixel_symmetric'", "Resize has a region of interest"]),
        ("(float[1,1,8,8] x) => (float[1,1,4,4] y) {y = MaxPool<kernel_shape=[3,3], dilations=[2,2]>(x)}",
         ["dilations of MaxPool is [2, 2]"]),
        ("(float[2] x) => (int8[2] y) <float s = {0.5}, int8 z = {0}> {y = QuantizeLinear(x, s, z)}", []),
        ("(float[2] x) => (uint8[2] y) <float s = {-0.5}> {y = QuantizeLinear(x, s)}",
         ["QuantizeLinear of UINT8; expected INT8", "has a scale that is not positive"]),
        ("(float[2] x) => (int8[2] y) <float[2] s = {1,2}, int8[2] z = {0,0}> {y = QuantizeLinear<axis=0>(x, s, z)}",
         ["has 2 scales; expected one"]),
        ("(float[2] x) => (float[2] y) <float[2] w = {1,2}, float[2] s = {1,2}, int8[2] z = {0,0}>"
         "{q = QuantizeLinear<axis=0>(w, s, z) d = DequantizeLinear<axis=0>(q, s, z) y = Add(x, d)}", []),
        ("(int8[2] x) => (float[2] y) <float s = {1}, int8[2] z = {0,0}> {y = DequantizeLinear(x, s, z)}",
         ["has the zero points [0.0, 0.0]; expected 0, one for each scale"]),
        ("(int8[2] x, float s) => (float[2] y) <int8 z = {0}> {y = DequantizeLinear(x, s, z)}",
         ["input 1 of DequantizeLinear is computed"]),
    ],
)  # fmt: skip
def test_each_rule(graph: str, found: list[str]) -> None:
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> g {graph}')
    onnx.checker.check_model(model, full_check=True)
    problems = importer_problems(model)
    assert len(problems) == len(found)
    assert all(problem.startswith(f"y: {start}") for problem, start in zip(problems, found, strict=True))


def test_no_name_in_a_function_is_that_of_a_tensor_of_a_graph() -> None:
    for model in (small_export(), small_export("float"), small_export(encoding="u8x4"), small_int8()):
        graph = model.graph
        names = {entry.name for entry in (*graph.input, *graph.initializer)}
        names.update(name for node in graph.node for name in node.output)
        for body in model.functions:
            inner = {*body.input, *body.output, *(name for node in body.node for name in (*node.input, *node.output))}
            assert names.isdisjoint(inner)
