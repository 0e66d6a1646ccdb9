"""The per-patch decode as ONNX model-local functions, and the nodes that call them. onnx and NumPy only.

The body is the decomposed maths in fp32, so the file runs wherever ONNX runs; a consumer that knows the plugin of the
same name takes the node's attributes instead. TensorRT 10.3 does not look at the node's domain, hence
``plugin_namespace`` and ``plugin_version`` on every node. No graph has a tensor of a name that stands in a body: where
one has, TensorRT 10's parser reads it in place of the function's input.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx
from onnx import helper, parser

from nrd_trt.specs import STRIDE, DecodeSpec

DOMAIN = "nrd"
DOMAIN_VERSION = 1
LOGITS_OP = "NrdPatchDecode"
MASK_OP = "NrdPatchDecodeMask"
CONFIDENCE_OP = "NrdPatchDecodeConfidence"
"""The mask and its confidence; there is no plugin of that name."""
OPSET = 19
CONFIDENCE = "confidence/"
"""Begins the names of the nodes of `confidence_nodes`, which compute in fp32."""

MaskType = Literal["int32", "half", "u8x4"]

_SIGNATURE = "num_classes, hidden, guidance_channels, patch, x_table, y_table, plugin_namespace, plugin_version"

# decode_theta (B, P, h, w), decode_guidance (B, m, f·h, f·w) -> decode_logits (B, K, f·h, f·w); B·h·w patches of f·f.
_DECODE_BODY = """
  batch = Shape <start = 0, end = 1> (decode_theta)
  h = Shape <start = 2, end = 3> (decode_theta)
  w = Shape <start = 3, end = 4> (decode_theta)
  k = Constant <value = int64[1] {{{k}}}> ()
  m = Constant <value = int64[1] {{{m}}}> ()
  f = Constant <value = int64[1] {{{f}}}> ()
  last = Constant <value = int64[1] {{-1}}> ()

  per_location = Transpose <perm = [0, 2, 3, 1]> (decode_theta)
  theta_shape = Constant <value = int64[2] {{-1, {p}}}> ()
  per_patch = Reshape (per_location, theta_shape)
  sections = Constant <value = int64[6] {{{sections}}}> ()
  w0_flat, b0_flat, w1_flat, b1_flat, w2_flat, b2_flat = Split <axis = 1> (per_patch, sections)
  w0_shape = Constant <value = int64[3] {{-1, {d}, {inputs}}}> ()
  w1_shape = Constant <value = int64[3] {{-1, {d}, {d}}}> ()
  w2_shape = Constant <value = int64[3] {{-1, {k}, {d}}}> ()
  w0 = Reshape (w0_flat, w0_shape)
  w1 = Reshape (w1_flat, w1_shape)
  w2 = Reshape (w2_flat, w2_shape)
  b0 = Unsqueeze (b0_flat, last)
  b1 = Unsqueeze (b1_flat, last)
  b2 = Unsqueeze (b2_flat, last)
  input_sections = Constant <value = int64[2] {{2, {m}}}> ()
  w0_xy, w0_guidance = Split <axis = 2> (w0, input_sections)

  tile_shape = Concat <axis = 0> (batch, m, h, f, w, f)
  tiles = Reshape (decode_guidance, tile_shape)
  tiles_by_patch = Transpose <perm = [0, 2, 4, 1, 3, 5]> (tiles)
  pixel_shape = Constant <value = int64[3] {{-1, {m}, {pixels}}}> ()
  patch_pixels = Reshape (tiles_by_patch, pixel_shape)
  coordinates = Constant <value = float[2, {pixels}] {{{coordinates}}}> ()

  from_xy = MatMul (w0_xy, coordinates)
  from_guidance = MatMul (w0_guidance, patch_pixels)
  z0_guidance = Add (from_guidance, b0)
  z0 = Add (z0_guidance, from_xy)
  a0 = Relu (z0)
  z1_weighted = MatMul (w1, a0)
  z1 = Add (z1_weighted, b1)
  a1 = Relu (z1)
  z2_weighted = MatMul (w2, a1)
  z2 = Add (z2_weighted, b2)

  patch_shape = Concat <axis = 0> (batch, h, w, k, f, f)
  patches = Reshape (z2, patch_shape)
  rows = Transpose <perm = [0, 3, 1, 4, 2, 5]> (patches)
  height = Mul (h, f)
  width = Mul (w, f)
  logits_shape = Concat <axis = 0> (batch, k, height, width)
  decode_logits = Reshape (rows, logits_shape)
"""

# Bilinear enlargement as PyTorch's align_corners=False; ArgMax takes the lowest index of a tie.
_MASK_BODY = """
  no_roi = Constant <value = float[0] {{}}> ()
  scales = Constant <value = float[4] {{1.0, 1.0, {s}.0, {s}.0}}> ()
  enlarged = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (decode_logits, no_roi, scales)
  index = ArgMax <axis = 1, keepdims = 0> (enlarged)
"""

# The softmax of the class drawn: its own exponential is 1. What reads all classes comes before the mask's ending, see
# `nrd_trt.graph.cpu`.
_TOTAL_BODY = """
  class_axis = Constant <value = int64[1] {1}> ()
  best_logit = ReduceMax <keepdims = 1> (enlarged, class_axis)
  below_best = Sub (enlarged, best_logit)
  exponentials = Exp (below_best)
  total = ReduceSum <keepdims = 0> (exponentials, class_axis)
"""

# A total below 1 is not a number, and has confidence 0.
_LEVELS_BODY = """
  one = Constant <value = float[1] {1.0}> ()
  zero_level = Constant <value = float[1] {0.0}> ()
  full_level = Constant <value = float[1] {255.0}> ()
  is_number = GreaterOrEqual (total, one)
  quotient = Div (full_level, total)
  level = Where (is_number, quotient, zero_level)
  whole_level = Round (level)
  decode_levels = Cast <to = 10> (whole_level)
"""

_CAST_BODY = """
  decode_classes = Cast <to = {element}> (index)
"""

# Four neighbours of a row in one int32, the first in the lowest byte. The highest byte is made negative from 128 on, so
# that no step overflows; TensorRT's parser has no bit operators.
_PACK_BODY = """
  indices = Cast <to = {element}> (index)
  fours_shape = Constant <value = int64[4] {{0, 0, -1, 4}}> ()
  fours = Reshape (indices, fours_shape)
  ones = Constant <value = int64[4] {{1, 1, 1, 1}}> ()
  byte0, byte1, byte2, byte3 = Split <axis = 3> (fours, ones)
  largest = Constant <value = int32[1] {{127}}> ()
  turn = Constant <value = int32[1] {{256}}> ()
  is_negative = Greater (byte3, largest)
  below_zero = Sub (byte3, turn)
  signed3 = Where (is_negative, below_zero, byte3)
  place1 = Constant <value = int32[1] {{256}}> ()
  place2 = Constant <value = int32[1] {{65536}}> ()
  place3 = Constant <value = int32[1] {{16777216}}> ()
  placed1 = Mul (byte1, place1)
  placed2 = Mul (byte2, place2)
  placed3 = Mul (signed3, place3)
  sum01 = Add (byte0, placed1)
  sum012 = Add (sum01, placed2)
  words = Add (sum012, placed3)
  decode_classes = Squeeze (words, last)
"""

_MASK_ENDING: dict[MaskType, tuple[str, int]] = {
    "int32": (_CAST_BODY, onnx.TensorProto.INT32),
    "half": (_CAST_BODY, onnx.TensorProto.FLOAT16),
    "u8x4": (_PACK_BODY, onnx.TensorProto.INT32),
}


def logits_function(spec: DecodeSpec, x_table: np.ndarray, y_table: np.ndarray) -> onnx.FunctionProto:
    """Return ``nrd.NrdPatchDecode(theta, guidance) -> logits`` in fp32.

    Args:
        spec: Build-time constants; they are written into the body.
        x_table: ``(f,)`` float32, first input of the perceptron for each column of a patch.
        y_table: ``(f,)`` float32, second input for each row.
    """
    body = _DECODE_BODY.format(**_constants(spec, x_table, y_table))
    return _parse(LOGITS_OP, _SIGNATURE, "decode_logits", body)


def mask_function(
    spec: DecodeSpec,
    x_table: np.ndarray,
    y_table: np.ndarray,
    mask_type: MaskType = "half",
    *,
    confidence: bool = False,
) -> onnx.FunctionProto:
    """Return ``nrd.NrdPatchDecodeMask(theta, guidance) -> classes (B, s·f·h, s·f·w)`` of type `mask_type`.

    ``"u8x4"`` gives int32 ``(B, s·f·h, s·f·w / 4)``: four indices of a row in the bytes of each, the first lowest.

    With `confidence` it is ``nrd.NrdPatchDecodeConfidence(theta, guidance) -> classes, levels``; levels are whole
    numbers ``(B, s·f·h, s·f·w) float16`` in 0-255: 255 times the softmax of the class drawn.
    """
    constants = _constants(spec, x_table, y_table)
    ending, element = _MASK_ENDING[mask_type]
    mask, cast = (
        text.format(**constants, s=spec.upsample, element=element) for text in (_DECODE_BODY + _MASK_BODY, ending)
    )
    signature = f"{_SIGNATURE}, upsample, mask_type"
    if not confidence:
        return _parse(MASK_OP, signature, "decode_classes", mask + cast)
    return _parse(CONFIDENCE_OP, signature, "decode_classes, decode_levels", mask + _TOTAL_BODY + cast + _LEVELS_BODY)


def confidence_nodes(enlarged: str, levels: str) -> list[onnx.NodeProto]:
    """Return nodes of a graph, all named ``confidence/…``, from enlarged logits to levels as of `mask_function`."""
    text = _TOTAL_BODY + _LEVELS_BODY
    nodes = [parser.parse_node(line) for line in text.splitlines() if line]
    given = {"enlarged": enlarged, "decode_levels": levels}
    for node in nodes:
        node.name = f"{CONFIDENCE}{node.output[0]}"
        for names in (node.input, node.output):
            names[:] = [given.get(name, f"{CONFIDENCE}{name}") for name in names]
    return nodes


def logits_node(spec: DecodeSpec, x_table: np.ndarray, y_table: np.ndarray, output: str) -> onnx.NodeProto:
    """Return the call of `logits_function` on ``theta`` and ``guidance``."""
    return _node(LOGITS_OP, spec, x_table, y_table, output)


def mask_node(
    spec: DecodeSpec, x_table: np.ndarray, y_table: np.ndarray, *outputs: str, mask_type: MaskType = "half"
) -> onnx.NodeProto:
    """Return the call of `mask_function` on ``theta`` and ``guidance``; with two outputs that with confidence."""
    node = _node(MASK_OP if len(outputs) == 1 else CONFIDENCE_OP, spec, x_table, y_table, *outputs)
    node.attribute.extend(
        [helper.make_attribute("upsample", spec.upsample), helper.make_attribute("mask_type", mask_type)]
    )
    return node


def function_of(call: onnx.NodeProto) -> onnx.FunctionProto:
    """Return the function that a node of `logits_node` or `mask_node` calls, by the node's attributes alone.

    Raises:
        KeyError: An attribute is missing.
        ConfigError: The attributes are those of no decode.
    """
    values = {entry.name: helper.get_attribute_value(entry) for entry in call.attribute}
    spec = DecodeSpec(
        **{name: values[name] for name in ("num_classes", "hidden", "guidance_channels", "patch")},
        upsample=values.get("upsample", STRIDE // values["patch"]),
    )
    x_table, y_table = (np.array(values[name], np.float32) for name in ("x_table", "y_table"))
    if call.op_type == LOGITS_OP:
        return logits_function(spec, x_table, y_table)
    mask_type = values["mask_type"].decode()
    return mask_function(spec, x_table, y_table, mask_type, confidence=call.op_type == CONFIDENCE_OP)


def _node(op: str, spec: DecodeSpec, x_table: np.ndarray, y_table: np.ndarray, *outputs: str) -> onnx.NodeProto:
    return helper.make_node(
        op,
        ["theta", "guidance"],
        outputs,
        name=f"decode_head/{op}",
        domain=DOMAIN,
        num_classes=spec.num_classes,
        hidden=spec.hidden,
        guidance_channels=spec.guidance_channels,
        patch=spec.patch,
        x_table=x_table.tolist(),
        y_table=y_table.tolist(),
        plugin_namespace=DOMAIN,
        plugin_version=str(DOMAIN_VERSION),
    )


def _constants(spec: DecodeSpec, x_table: np.ndarray, y_table: np.ndarray) -> dict[str, object]:
    f = spec.patch
    coordinates = np.stack([np.tile(x_table, f), np.repeat(y_table, f)]).astype(np.float32)
    return {
        "k": spec.num_classes,
        "d": spec.hidden,
        "m": spec.guidance_channels,
        "f": f,
        "p": spec.theta_channels,
        "inputs": 2 + spec.guidance_channels,
        "pixels": f * f,
        "sections": _listed(spec.sections),
        "coordinates": _listed(float(value) for value in coordinates.ravel()),
    }


def _listed(values: Iterable[object]) -> str:
    return ", ".join(repr(value) for value in values)


def _parse(op: str, signature: str, outputs: str, body: str) -> onnx.FunctionProto:
    """Parse ONNX text; repr of a float32's float64 value reads back to the same float32."""
    return parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n'
        f"{op} <{signature}> (decode_theta, decode_guidance) => ({outputs}) {{{body}}}"
    )
