"""From a trained model to one ONNX file in fp32: trace, name, attach preprocessing and decode. torch and onnx only.

Every other precision is derived from this graph (`nrd_trt.graph`).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from nrd_trt.decode import function
from nrd_trt.errors import ConfigError, ExportError
from nrd_trt.graph.metadata import ExporterRecord, GraphFacts, write_facts
from nrd_trt.graph.tensors import rename_tensors
from nrd_trt.model.folding import LogitsAdapter, PatchAdapter
from nrd_trt.model.network import Segmentor
from nrd_trt.model.plans import TWINS
from nrd_trt.specs import STRIDE, InputForm, InputShape, MaskEncoding, ModelInfo

_IR_VERSION = 9  # the one that goes with opset 19
REVISION = 5
"""Counts the changes of this exporter that change a file."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Form of the exported file.

    Attributes:
        shape: Batch and size, each fixed or a range.
        input_form: ``"uint8"``: NHWC RGB with the normalisation in the graph; ``"float"``: NCHW normalised float32;
            ``"rgb_float"``: NCHW RGB float32 in 0-255, with the normalisation in the graph.
        mask_encoding: ``"uint8"``, or ``"u8x4"``, which only the runners of this toolkit unpack.
        confidence: Whether there is a third output, ``confidence``.
    """

    shape: InputShape
    input_form: InputForm = "uint8"
    mask_encoding: MaskEncoding = "uint8"
    confidence: bool = False


def export_onnx(model: Segmentor, options: ExportOptions, *, checkpoint_sha256: str | None = None) -> onnx.ModelProto:
    """Export a model to ONNX in fp32.

    Args:
        model: In evaluation mode.
        options: Form of the file.
        checkpoint_sha256: Recorded in the file's metadata.

    Returns:
        A checked model; equal arguments give equal bytes. Input ``image``; outputs ``mask`` (uint8, full size, or
        int32 of a quarter of the width), ``logits`` (float32, stride s) and ``confidence`` (uint8, full size), of which
        `nrd_trt.graph.outputs` keeps those asked for.

    Raises:
        ConfigError: ``"u8x4"`` is asked of a network without per-patch decode, or a dynamic size of Twins.
        ExportError: The traced graph does not pass ``onnx.checker``.
    """
    config, info = model.config, model.info
    if options.mask_encoding != "uint8" and not config.is_nrd:
        raise ConfigError(
            f"mask_encoding={options.mask_encoding!r}: expected a network with per-patch decode, got the head "
            f"{config.head}; leave it out."
        )
    shape = options.shape
    if config.encoder in TWINS and not (shape.height.is_static and shape.width.is_static):
        raise ConfigError(
            "dynamic=: expected one size for Twins, whose windows and their padding are laid out when it is exported; "
            "give size=, and export one file for each."
        )
    ending = _patch_ending(model, options) if config.is_nrd else _logits_ending(model, options)
    network = _trace(ending.adapter, ending.tensors, options.shape)
    _name_nodes(network, {"pixels", *ending.tensors})
    domains = [helper.make_opsetid("", function.OPSET)]
    if ending.functions:
        domains.append(helper.make_opsetid(function.DOMAIN, function.DOMAIN_VERSION))
    result = helper.make_model(
        _assemble(network, ending, info, options, _output_infos(model, options)),
        functions=ending.functions,
        opset_imports=domains,
        ir_version=_IR_VERSION,
        producer_name="nrd_trt",
    )
    facts = GraphFacts(
        info=info,
        decode=config.decode if config.is_nrd else None,
        upsample=config.upsample,
        shape=options.shape,
        input_form=options.input_form,
        mask_encoding=options.mask_encoding,
        output="mask,logits,confidence" if options.confidence else "both",
        checkpoint_sha256=checkpoint_sha256,
        encoder=config.encoder,
        head=config.head,
        exporter=exporter_record(),
        options=model.options,
    )
    write_facts(result, facts)
    try:
        onnx.checker.check_model(result, full_check=True)
    except onnx.checker.ValidationError as exc:
        raise ExportError(f"the exported graph is not valid ONNX: {exc}") from exc
    return result


def exporter_record() -> ExporterRecord:
    """Describe what writes a file here and now."""
    script = find_spec("onnxscript") and version("onnxscript")
    return ExporterRecord(
        revision=REVISION, torch=str(torch.__version__), onnx=onnx.__version__, onnxscript=script or None
    )


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How a kind of network ends: what is traced of it, and what is attached to the traced tensors."""

    adapter: nn.Module
    tensors: tuple[str, ...]
    nodes: list[onnx.NodeProto]
    functions: list[onnx.FunctionProto]


def _patch_ending(model: Segmentor, options: ExportOptions) -> _Ending:
    """NRD: the decode function on theta and guidance. A plugin may not output uint8: it is cast, or packed in int32."""
    adapter, spec = PatchAdapter(model), model.config.decode
    tables = (adapter.x_table, adapter.y_table)
    packed = options.mask_encoding == "u8x4"
    kind: function.MaskType = "u8x4" if packed else "half"
    outputs = ("mask" if packed else "classes", *(["levels"] if options.confidence else []))
    return _Ending(
        adapter=adapter,
        tensors=("theta", "guidance"),
        nodes=[
            function.logits_node(spec, *tables, "logits"),
            function.mask_node(spec, *tables, *outputs, mask_type=kind),
            *([] if packed else [_byte_cast("classes", "mask")]),
            *([_byte_cast("levels", "confidence")] if options.confidence else []),
        ],
        functions=[
            function.logits_function(spec, *tables),
            function.mask_function(spec, *tables, kind, confidence=options.confidence),
        ],
    )


def _logits_ending(model: Segmentor, options: ExportOptions) -> _Ending:
    """A baseline: bilinear enlargement (``align_corners=False``) and argmax, the lowest index of a tie."""
    enlarged, index, classes = (f"mask/{name}" for name in ("enlarged", "index", "classes"))
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, model.config.upsample, model.config.upsample])
    resize = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return _Ending(
        adapter=LogitsAdapter(model),
        tensors=("logits",),
        nodes=[
            helper.make_node("Constant", [], ["mask/scales"], name="mask/Constant", value=scales),
            helper.make_node("Resize", ["logits", "", "mask/scales"], [enlarged], name="mask/Resize", **resize),
            helper.make_node("ArgMax", [enlarged], [index], name="mask/ArgMax", axis=1, keepdims=0),
            # TensorRT converts uint8 from and to floating point only
            helper.make_node("Cast", [index], [classes], name="mask/Cast_half", to=TensorProto.FLOAT16),
            _byte_cast(classes, "mask"),
            *(function.confidence_nodes(enlarged, "levels") if options.confidence else []),
            *([_byte_cast("levels", "confidence")] if options.confidence else []),
        ],
        functions=[],
    )


def _byte_cast(tensor: str, output: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [tensor], [output], name=f"{output}/Cast", to=TensorProto.UINT8)


def _trace(adapter: nn.Module, tensors: tuple[str, ...], shape: InputShape) -> onnx.ModelProto:
    """Trace images to `tensors`; symbolic dimensions where the shape has a range."""
    dims: dict[int, Any] = {}
    example = []
    for axis, (name, extent, unit) in enumerate(
        [("batch", shape.batch, 1), ("height", shape.height, STRIDE), ("width", shape.width, STRIDE)]
    ):
        axis += bool(axis)  # axis 1 is the channels'
        if not extent.is_static:
            dims[axis] = unit * torch.export.Dim(name, min=extent.min // unit, max=extent.max // unit)
        # torch would fix a symbolic dimension that is traced as 1
        example.append(extent.opt if extent.is_static else min(max(extent.opt, 2 * unit), extent.max))
    images = torch.zeros(example[0], 3, *example[1:])
    registry_log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry_log.level
    registry_log.setLevel(logging.ERROR)  # it reports torchvision's absence, which we do not use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                adapter,
                (images,),
                dynamo=True,
                opset_version=function.OPSET,
                input_names=["pixels"],
                output_names=list(tensors),
                dynamic_shapes=(dims,) if dims else None,
                verbose=False,
            )
    finally:
        registry_log.setLevel(level)
    if program is None:
        raise ExportError("torch.onnx.export returned no program; report this with the torch version.")
    return program.model_proto


def _name_nodes(model: onnx.ModelProto, kept: set[str]) -> None:
    """Name nodes and tensors after the modules they come from, and drop the tracer's notes (paths among them)."""
    graph = model.graph
    fixed = {*kept, *(tensor.name for tensor in graph.initializer)}
    renamed: dict[str, str] = {}
    used: Counter[str] = Counter()
    for node in graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "['', '']")
        scope = json.loads(scopes.replace("'", '"'))[-2]
        name = f"{scope}/{node.op_type}" if scope else node.op_type
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        for index, output in enumerate(node.output):
            if output not in fixed:
                renamed[output] = node.name if index == 0 else f"{node.name}:{index}"
        del node.metadata_props[:]
        node.doc_string = ""
    rename_tensors(graph.node, renamed)


def _write_kernels(graph: onnx.GraphProto) -> None:
    """Say every convolution's kernel: older exporters leave it to the weight's shape, which int8 hides from readers."""
    sides = {tensor.name: tensor.dims[2:] for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and all(entry.name != "kernel_shape" for entry in node.attribute):
            node.attribute.append(helper.make_attribute("kernel_shape", sides[node.input[1]]))


def _assemble(
    network: onnx.ModelProto,
    ending: _Ending,
    info: ModelInfo,
    options: ExportOptions,
    outputs: list[onnx.ValueInfoProto],
) -> onnx.GraphProto:
    """Join preprocessing, the traced network and its ending into one graph."""
    before, constants = _preprocessing(info, options.input_form)
    if not before:
        rename_tensors(network.graph.node, {"pixels": "image"})
    _write_kernels(network.graph)
    # Raw little-endian data and nothing else.
    weights = [numpy_helper.from_array(numpy_helper.to_array(entry), entry.name) for entry in network.graph.initializer]
    return helper.make_graph(
        [*before, *network.graph.node, *ending.nodes],
        "nrd",
        [_input_info(options)],
        outputs,
        initializer=[*constants, *weights],
    )


def _preprocessing(info: ModelInfo, form: InputForm) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """RGB in 0-255 -> float32 NCHW normalised, by the same arithmetic as `nrd_trt.data.preprocessing`."""
    if form == "float":
        return [], []
    shape = (1, 3, 1, 1)
    constants = [
        numpy_helper.from_array(np.asarray(info.mean, np.float32).reshape(shape), "preprocessing.mean"),
        numpy_helper.from_array(np.asarray(info.std, np.float32).reshape(shape), "preprocessing.std"),
    ]
    nodes, planes = [], "image"
    if form == "uint8":
        nodes.append(_step("Cast", ["image"], "float", to=TensorProto.FLOAT))
        nodes.append(_step("Transpose", ["preprocessing/float"], "planes", perm=[0, 3, 1, 2]))
        planes = "preprocessing/planes"
    if info.channel_order == "bgr":
        constants.append(numpy_helper.from_array(np.array([2, 1, 0]), "preprocessing.order"))
        nodes.append(_step("Gather", [planes, "preprocessing.order"], "bgr", axis=1))
        planes = "preprocessing/bgr"
    nodes.append(_step("Sub", [planes, "preprocessing.mean"], "centred"))
    nodes.append(_step("Div", ["preprocessing/centred", "preprocessing.std"], "pixels"))
    nodes[-1].output[:] = ["pixels"]
    return nodes, constants


def _step(op: str, inputs: list[str], name: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [f"preprocessing/{name}"], name=f"preprocessing/{op}", **attributes)


def _dims(options: ExportOptions, *, scale: tuple[int, int] = (1, 1)) -> tuple[int | str, int | str, int | str]:
    """Batch, height and width: a number where fixed, a name where not; sizes times scale[0] over scale[1]."""
    up, down = scale
    suffix = "" if up == down else f"*{up}//{down}"
    shape = options.shape
    batch: int | str = shape.batch.opt if shape.batch.is_static else "batch"
    height: int | str = shape.height.opt * up // down if shape.height.is_static else f"height{suffix}"
    width: int | str = shape.width.opt * up // down if shape.width.is_static else f"width{suffix}"
    return batch, height, width


def _input_info(options: ExportOptions) -> onnx.ValueInfoProto:
    batch, height, width = _dims(options)
    if options.input_form == "uint8":
        return helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, height, width, 3])
    return helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, height, width])


def _output_infos(model: Segmentor, options: ExportOptions) -> list[onnx.ValueInfoProto]:
    batch, height, width = _dims(options, scale=(1, model.config.upsample))
    mask_type, mask_dims = TensorProto.UINT8, _dims(options)
    if options.mask_encoding == "u8x4":
        mask_type, mask_dims = TensorProto.INT32, (*mask_dims[:2], _dims(options, scale=(1, 4))[2])
    infos = [
        helper.make_tensor_value_info("mask", mask_type, list(mask_dims)),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, model.config.num_classes, height, width]),
    ]
    if options.confidence:
        infos.append(helper.make_tensor_value_info("confidence", TensorProto.UINT8, list(_dims(options))))
    return infos
