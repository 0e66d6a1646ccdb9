"""What a network is before it is built: its inputs, outputs and convolutions, of the file and as TensorRT parsed it.

onnx is loaded on use: `doctor` does without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nrd_trt.errors import BuildError
from nrd_trt.specs import TensorSpec, spec_differences

if TYPE_CHECKING:
    import onnx

_SHOWN = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution:
    """A convolution, in the words of ONNX.

    Attributes:
        kernel_shape: Size of the kernel along each axis.
        strides: Step along each axis.
        dilations: Distance of the kernel's taps along each axis.
        pads: Padding before each axis, then after each.
        auto_pad: ``"NOTSET"`` where `pads` says it all.
        group: Number of groups.
        maps: Number of output channels.
        weights: Values ``float32`` or ``float16`` in the order of memory; None where they cannot be compared: 8-bit
            weights reach the layer as a tensor that DequantizeLinear writes, and the bindings give no values of bf16.
        bias: Likewise.
    """

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    group: int
    maps: int
    weights: np.ndarray | None
    bias: np.ndarray | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Definition:
    """A network before it is built.

    Attributes:
        inputs: By name; None marks a dynamic dimension.
        outputs: Likewise.
        convolutions: By the name of their node.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    convolutions: Mapping[str, Convolution]


def check_definition(model: onnx.ModelProto, parsed: Definition) -> None:
    """Raise `BuildError` unless a parsed network has the inputs, outputs and convolutions of the file."""
    wanted = definition_of(model)
    found = [
        *spec_differences(wanted.inputs, parsed.inputs),
        *spec_differences(wanted.outputs, parsed.outputs),
        *_differences(wanted.convolutions, parsed.convolutions),
    ]
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise BuildError(
            f"the network that TensorRT parsed is not the file's: {'; '.join(found[:_SHOWN])}{more}. "
            "Use builder='onnxruntime', or report this with TensorRT's messages."
        )


def definition_of(model: onnx.ModelProto) -> Definition:
    """Return what a file defines."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return Definition(
        inputs={value.name: _spec(value) for value in graph.input},
        outputs={value.name: _spec(value) for value in graph.output},
        convolutions={
            node.name: _convolution(node, [tensors[dequantized.get(name, name)] for name in node.input[1:]])
            for node in graph.node
            if node.op_type == "Conv"
        },
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    from onnx import helper

    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape=shape)


def _convolution(node: onnx.NodeProto, tensors: list[onnx.TensorProto]) -> Convolution:
    """Describe a node by its attributes, with the defaults that ONNX gives them, and its weights and bias."""
    from onnx import helper

    given: dict[str, Any] = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    maps, _, *kernel = tensors[0].dims
    auto_pad = given.get("auto_pad", b"NOTSET").decode()
    return Convolution(
        kernel_shape=tuple(given.get("kernel_shape", kernel)),
        strides=tuple(given.get("strides", [1] * len(kernel))),
        dilations=tuple(given.get("dilations", [1] * len(kernel))),
        pads=tuple(given.get("pads", [0] * 2 * len(kernel))),
        auto_pad="NOTSET" if auto_pad == "VALID" else auto_pad,
        group=given.get("group", 1),
        maps=maps,
        weights=_values(tensors[0]),
        bias=_values(tensors[1]) if len(tensors) > 1 else None,
    )


def _values(tensor: onnx.TensorProto) -> np.ndarray | None:
    from onnx import TensorProto, numpy_helper

    compared = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    return numpy_helper.to_array(tensor).reshape(-1) if compared else None


def _differences(wanted: Mapping[str, Convolution], found: Mapping[str, Convolution]) -> Iterator[str]:
    yield from (f"`{name}`: no convolution, expected one" for name in wanted if name not in found)
    yield from (f"`{name}`: a convolution, expected none" for name in found if name not in wanted)
    for name in (name for name in wanted if name in found):
        one, other = vars(wanted[name]), vars(found[name])
        for fact, value in one.items():
            got = other[fact]
            if isinstance(value, np.ndarray) or isinstance(got, np.ndarray):
                if value is not None and got is not None and (text := _unequal(value, got)):
                    yield f"`{name}`: {fact} {text}"
            elif got != value:
                yield f"`{name}`: {fact} {got}, expected {value}"


def _unequal(wanted: np.ndarray, found: np.ndarray) -> str | None:
    """Tell how arrays differ that ought to be equal to the bit; None where they are."""
    if (wanted.dtype, wanted.size) != (found.dtype, found.size):
        return f"{found.size} of {found.dtype}, expected {wanted.size} of {wanted.dtype}"
    bits = np.dtype(f"u{wanted.itemsize}")
    differing = int(np.count_nonzero(wanted.view(bits) != found.view(bits)))
    return f"with {differing} of {wanted.size} values that differ, expected the file's" if differing else None
