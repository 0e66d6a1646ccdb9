"""What stands before and after a file's network, compared with this toolkit's own arithmetic on drawn numbers.

Preprocessing and the ending are small and take any form, so they are run rather than read: bytes in, pixels out; theta
and guidance in, logits and mask out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from nrd_trt.data.preprocessing import normalise
from nrd_trt.decode.function import CONFIDENCE_OP, MASK_OP
from nrd_trt.graph.decode_nodes import decode_nodes
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.graph.network import FileNetwork
from nrd_trt.graph.program import function_programs, graph_program
from nrd_trt.graph.tensors import element_types, needed_nodes, replace_nodes
from nrd_trt.optional import require
from nrd_trt.program import Operation, shown
from nrd_trt.runtime.base import unpacked
from nrd_trt.runtime.graph_io import batch_feed
from nrd_trt.validation.hints import describe_pixels

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

_SEED = 1
_PATCHES_HW = (3, 5)
_STEP = {"fp32": 1e-4, "fp16": 2.0**-9, "bf16": 2.0**-7, "int8": 2.0**-9, "fp8": 2.0**-9}
"""Largest error of a logit over the largest: an ending computes in fp32, and its output is rounded to the type."""
_TIE = 1e-3
_RESIZE = {"mode": b"linear", "coordinate_transformation_mode": b"half_pixel"}


def preprocessing_differences(
    file: onnx.ModelProto, network: FileNetwork, model: Segmentor, graph: GraphFacts
) -> list[str]:
    """Run a file's preprocessing on drawn images and compare with `nrd_trt.data.preprocessing.normalise`."""
    rng, (height, width) = np.random.default_rng(_SEED), graph.shape.opt_hw
    images = rng.integers(0, 256, (graph.shape.batch.opt, height, width, 3), np.uint8)
    want = normalise(images, model.info)
    if network.pixels == "image":
        return [] if graph.input_form == "float" else ["preprocessing: the network reads the image without it"]
    try:
        part = _before(file, network.pixels)
        kind = element_types(part)[network.pixels]
        (got,) = _run(part, batch_feed(images, graph)).values()
    except Exception as exc:  # onnxruntime's and onnx's errors have no common base
        return [f"preprocessing: cannot be run alone ({_first_line(exc)})"]
    want = want.astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float32)
    if got.shape != want.shape:
        return [f"preprocessing: gives {list(got.shape)}, expected {list(want.shape)}"]
    if np.array_equal(got, want):
        return []
    difference = float(np.abs(got.astype(np.float64) - want).max())
    look = describe_pixels(want[0], got[0].astype(np.float32)) or "another arithmetic"
    return [f"preprocessing: {look} (largest difference {difference:.3g})"]


def ending_differences(file: onnx.ModelProto, network: FileNetwork, model: Segmentor, graph: GraphFacts) -> list[str]:
    """Run a file's decode, or a baseline's enlargement, on drawn numbers and compare with PyTorch's."""
    from nrd_trt.model.program import draw_ending

    inputs, lines = _drawn(model), [f"ending: {line}" for line in enlargement_differences(file)]
    try:
        got = _run(_after(file, network.results), inputs)
    except Exception as exc:  # onnxruntime's and onnx's errors have no common base
        return [*lines, f"ending: cannot be run alone ({_first_line(exc)})"]
    logits, enlarged = draw_ending(model, inputs)
    if "logits" in got:
        lines += _logit_lines(got["logits"], logits, _STEP[graph.precision])
    if "mask" in got:
        mask = unpacked(got["mask"]) if graph.mask_encoding == "u8x4" else got["mask"]
        lines += _mask_lines(mask, enlarged)
    if "confidence" in got:
        lines += _confidence_lines(got["confidence"], enlarged)
    return lines


def enlargement_differences(file: onnx.ModelProto) -> Iterator[str]:
    """Yield the attributes of what draws the mask, in the graph and in functions, that are not the network's."""
    bodies = {f"function {name.split('.')[-1]}": program for name, program in function_programs(file).items()}
    for place, program in {"the graph": graph_program(file), **bodies}.items():
        for operation in program.operations:
            if operation.kind != "ArgMax":
                continue
            if operation.attributes.get("select_last_index"):
                yield f"the ArgMax of {place}: select_last_index 1, expected 0: ties go to the highest class"
            resize: Operation | None = operation
            while resize is not None and resize.kind != "Resize":
                source = resize.operands[0] if resize.operands else None
                resize = program.operations[source[0]] if isinstance(source, tuple) else None
            for name, wanted in _RESIZE.items() if resize else ():
                got = resize.attributes.get(name) if resize else None
                if got not in (wanted, b"pytorch_half_pixel"):  # which differs for a single pixel only
                    yield f"the Resize of {place}: {name} {shown(got)}, expected {shown(wanted)}"


def decode_attribute_differences(file: onnx.ModelProto, model: Segmentor, graph: GraphFacts) -> list[str]:
    """Compare the constants that a plugin reads from the decode nodes with the checkpoint's."""
    lines = []
    for node in decode_nodes(file):
        values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        for name, want in _decode_attributes(model, graph, node.op_type).items():
            got = values.get(name)
            if isinstance(want, np.ndarray):
                found = np.asarray(() if got is None else got, np.float64)
                if found.shape != want.shape or not np.allclose(found, want, rtol=2.0**-22, atol=2.0**-24):
                    lines.append(f"`{node.op_type}`: {name} {shown(found)}, expected {shown(want)}")
            elif got != want:
                lines.append(f"`{node.op_type}`: {name} {shown(got)}, expected {shown(want)}")
    return lines


def _decode_attributes(model: Segmentor, graph: GraphFacts, op_type: str) -> dict[str, Any]:
    from nrd_trt.model.program import decode_tables

    config, (x_table, y_table) = model.config, decode_tables(model.decode_head)  # type: ignore[arg-type]
    expected: dict[str, Any] = {
        "num_classes": config.num_classes,
        "hidden": config.hidden,
        "guidance_channels": config.guidance_channels,
        "patch": config.patch,
        "x_table": x_table,
        "y_table": y_table,
        "plugin_namespace": b"nrd",
        "plugin_version": b"1",
    }
    if op_type in (MASK_OP, CONFIDENCE_OP):
        kind = b"u8x4" if graph.mask_encoding == "u8x4" else b"half"
        expected |= {"upsample": 32 // config.patch, "mask_type": kind}
    return expected


def _drawn(model: Segmentor) -> dict[str, np.ndarray]:
    """Draw what the network would give: values that every type of a file holds exactly."""
    config, (height, width) = model.config, _PATCHES_HW
    rng = np.random.default_rng(_SEED)

    def numbers(*shape: int) -> np.ndarray:
        return np.asarray(np.rint(rng.standard_normal(shape) * 32).clip(-96, 96) / 64, np.float32)

    if not config.is_nrd:
        return {"logits": numbers(1, config.num_classes, 4 * height, 4 * width)}
    f = config.patch
    return {
        "theta": numbers(1, config.decode.theta_channels, height, width),
        "guidance": numbers(1, config.guidance_channels, f * height, f * width),
    }


def _logit_lines(got: np.ndarray, want: np.ndarray, step: float) -> Iterator[str]:
    if got.shape != want.shape:
        yield f"ending: logits {list(got.shape)} of {list(want.shape)} expected"
        return
    error = float(np.abs(got - want).max() / np.abs(want).max())
    if not error <= step:
        yield f"ending: logits of the file's decode are off by up to {error:.2g} of the largest"


def _mask_lines(got: np.ndarray, enlarged: np.ndarray) -> Iterator[str]:
    want = enlarged.argmax(axis=1)
    if got.shape != want.shape:
        yield f"ending: a mask {list(got.shape)}, expected {list(want.shape)}"
        return
    best = np.sort(enlarged, axis=1)
    clear = best[:, -1] - best[:, -2] > _TIE * enlarged.std()
    wrong = (got != want) & clear
    if wrong.any():
        yield f"ending: from the same theta and guidance {float(wrong.mean()):.2%} of the pixels are drawn otherwise"


def _confidence_lines(got: np.ndarray, enlarged: np.ndarray) -> Iterator[str]:
    want = 255 / np.exp(enlarged - enlarged.max(axis=1, keepdims=True)).sum(axis=1)
    if got.shape != want.shape:
        yield f"ending: a confidence {list(got.shape)}, expected {list(want.shape)}"
    elif not (error := float(np.abs(got - want).max())) <= 1:  # rounding takes half a level
        yield f"ending: the confidence is off by up to {error:.3g} of 255 levels"


# --- parts of a file --------------------------------------------------------------------------------------------------


def _before(file: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """Return the part of a file that makes a tensor; it is given in float32."""
    part = onnx.ModelProto()
    part.CopyFrom(file)
    replace_nodes(part.graph, needed_nodes(file.graph.node, [tensor]), list(file.graph.initializer))
    del part.graph.output[:], part.functions[:]
    output = f"{tensor}/given"
    part.graph.node.append(helper.make_node("Cast", [tensor], [output], name=output, to=TensorProto.FLOAT))
    part.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    return part


def _after(file: onnx.ModelProto, tensors: Mapping[str, str]) -> onnx.ModelProto:
    """Return the part of a file that reads these tensors; its inputs are float32 and have their keys for names."""
    part = onnx.ModelProto()
    part.CopyFrom(file)
    made = set(tensors.values())
    rest = [node for node in file.graph.node if made.isdisjoint(node.output)]
    types = element_types(file)
    casts = [
        helper.make_node("Cast", [f"given/{name}"], [tensor], name=f"given/{name}/Cast", to=types[tensor])
        for name, tensor in tensors.items()
    ]
    wanted = [entry.name for entry in file.graph.output]
    outputs = [(entry.name, entry.type.tensor_type.elem_type) for entry in file.graph.output]
    if made & set(wanted):  # logits are their own ending
        outputs = [(name, kind) for name, kind in outputs if name not in made]
        wanted = [name for name, _ in outputs]
    nodes = [*casts, *needed_nodes(rest, wanted)]
    replace_nodes(part.graph, nodes, list(file.graph.initializer))
    del part.graph.input[:], part.graph.output[:]
    part.graph.input.extend(helper.make_tensor_value_info(f"given/{name}", TensorProto.FLOAT, None) for name in tensors)
    part.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in outputs)
    return part


def _run(part: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    ort = require("onnxruntime", extra="ort", purpose="running parts of ONNX files on the CPU")
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in part.graph.output]
    if not names:
        return {}
    given = {entry.name: feed[entry.name.removeprefix("given/")] for entry in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:160]
