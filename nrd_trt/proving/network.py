"""The networks that plans are built of: a small one, written here without PyTorch, and those of the zoo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.data.classes import voc_palette
from nrd_trt.decode.function import DOMAIN, DOMAIN_VERSION, OPSET, mask_function, mask_node
from nrd_trt.files import atomic_file
from nrd_trt.graph.metadata import GraphFacts, write_facts
from nrd_trt.specs import STRIDE, DecodeSpec, InputShape, ModelInfo, Size
from nrd_trt.zoo import checkpoint_path

SMALL = "small"
NETWORKS = (SMALL, "nrd_mobilenetv2_camvid", "nrd_r18_camvid", "nrd_r18_pruned_camvid")

_SMALL_HW: Size = (128, 192)
_SEED = 7
_SPEC = DecodeSpec(num_classes=5)
_IR_VERSION = 9
# Every convolution halves the size until theta, which has a 32nd of it; guidance is drawn at a quarter.
_WIDTHS = (3, 16, 16, 24, 32, 48)


def fp32_file(network: str, folder: Path) -> Path:
    """Return the fp32 ONNX file of one of `NETWORKS` in a folder, which is written where it is not there yet.

    Raises:
        MissingDependencyError: A zoo network has to be exported and PyTorch is missing.
    """
    path = folder / f"{network}.onnx"
    if path.is_file():
        return path
    if network != SMALL:
        from nrd_trt.exporting.export import export  # which needs no PyTorch until it is called

        export(checkpoint_path(network), path, progress=False)
        return path
    with atomic_file(path) as temporary:
        temporary.write_bytes(small_network().SerializeToString(deterministic=True))
    return path


def small_network() -> onnx.ModelProto:
    """Return a network of the released form with few, random and always equal weights, in fp32.

    It has what plans are made of, convolutions and the per-patch decode, and is built in seconds.
    """
    spec, (height, width) = _SPEC, _SMALL_HW
    names = tuple(f"class_{index}" for index in range(spec.num_classes))
    info = ModelInfo(class_names=names, palette=voc_palette(spec.num_classes))
    table = (np.arange(spec.patch) / spec.patch).astype(np.float32)
    weights = _weights(spec, info)
    graph = helper.make_graph(
        [*_encoder(), mask_node(spec, table, table, "classes"), _node("Cast", "mask", "classes", to=TensorProto.UINT8)],
        "nrd",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, height, width, 3])],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, [1, height, width])],
        initializer=[numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(
        graph,
        functions=[mask_function(spec, table, table)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        ir_version=_IR_VERSION,
    )
    facts = GraphFacts(
        info=info,
        decode=spec,
        shape=InputShape.static(_SMALL_HW),
        input_form="uint8",
        output="mask",
        encoder=SMALL,
        head="nrd",
        upsample=STRIDE // spec.patch,
    )
    write_facts(model, facts)
    return model


def _encoder() -> Iterator[onnx.NodeProto]:
    """Yield the nodes from the image to theta and guidance."""
    yield _node("Cast", "float", "image", to=TensorProto.FLOAT)
    yield _node("Transpose", "planes", "float", perm=[0, 3, 1, 2])
    yield _node("Sub", "centred", "planes", "preprocessing.mean")
    yield _node("Div", "pixels", "centred", "preprocessing.std")
    last = "pixels"
    for stage in range(1, len(_WIDTHS)):
        name = f"stage{stage}"
        yield _conv(f"{name}/sum", last, name, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        yield _node("Relu", name, f"{name}/sum")
        last = name
    yield _conv("guidance", "stage2", "guidance", kernel_shape=[1, 1])
    yield _conv("theta", last, "theta", kernel_shape=[1, 1])


def _conv(output: str, source: str, weights: str, **attributes: Any) -> onnx.NodeProto:
    return _node("Conv", output, source, f"{weights}.weight", f"{weights}.bias", **attributes)


def _node(op: str, output: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"small/{output}", **attributes)


def _weights(spec: DecodeSpec, info: ModelInfo) -> dict[str, np.ndarray]:
    """Draw weights that keep the spread of the values from layer to layer."""
    draw = np.random.default_rng(_SEED)
    found = {
        "preprocessing.mean": np.asarray(info.mean, np.float32).reshape(1, 3, 1, 1),
        "preprocessing.std": np.asarray(info.std, np.float32).reshape(1, 3, 1, 1),
    }
    outer = {"guidance": (_WIDTHS[2], spec.guidance_channels, 1), "theta": (_WIDTHS[-1], spec.theta_channels, 1)}
    stages = {f"stage{index}": (*_WIDTHS[index - 1 : index + 1], 3) for index in range(1, len(_WIDTHS))}
    for name, (inputs, outputs, side) in (stages | outer).items():
        spread = (2 / (inputs * side * side)) ** 0.5
        found[f"{name}.weight"] = draw.normal(0, spread, (outputs, inputs, side, side)).astype(np.float32)
        found[f"{name}.bias"] = draw.normal(0, 0.5, outputs).astype(np.float32)
    # Parameters that vary little from patch to patch leave masks whose classes are not all near ties.
    found["theta.weight"] *= np.float32(0.25)
    return found
