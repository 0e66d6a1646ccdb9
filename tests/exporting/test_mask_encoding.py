"""Four pixels of the mask in one int32: the same masks in fewer words, for the runners of this toolkit only."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from nrd_trt.engine.builder import BuildOptions, build_engine
from nrd_trt.errors import ConfigError, ExportError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.tensors import copy_model
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import Precision
from tests.artefacts import needs_rtx
from tests.helpers import STATIC, feed, small_export, small_model


def packed(shape: str = "static") -> onnx.ModelProto:
    """The shared export with a packed mask; do not change it."""
    return small_export(shape=shape, encoding="u8x4")


@pytest.mark.parametrize(
    ("shape", "dims"), [("static", [1, 128, 64]), ("dynamic", ["batch", "height", "width*1//4"])], ids=str
)
def test_graph_gives_int32_of_a_quarter_of_the_width(shape: str, dims: list[Any]) -> None:
    model = packed(shape)
    onnx.checker.check_model(model, full_check=True)
    mask = model.graph.output[0]
    assert (mask.name, mask.type.tensor_type.elem_type) == ("mask", TensorProto.INT32)
    assert [d.dim_param or d.dim_value for d in mask.type.tensor_type.shape.dim] == dims
    (node,) = (node for node in model.graph.node if node.op_type == "NrdPatchDecodeMask")
    assert list(node.output) == ["mask"]  # the plugin writes the network's output itself
    assert onnx.helper.get_node_attr_value(node, "mask_type") == b"u8x4"
    found = {output: read_facts(select_outputs(model, output)).mask_encoding for output in ("mask", "both", "logits")}
    assert found == {"mask": "u8x4", "both": "u8x4", "logits": "uint8"}


@pytest.mark.parametrize(
    ("shape", "size", "precision"),
    [("static", (1, 128, 256), "fp32"), ("dynamic", (3, 64, 320), "fp16"), ("dynamic", (1, 64, 64), "bf16")],
)
def test_runner_gives_the_masks_of_the_plain_file(shape: str, size: tuple[int, int, int], precision: Precision) -> None:
    plain, four = (to_precision(model, precision) for model in (small_export("uint8", shape), packed(shape)))
    assert importer_problems(four) == []
    image = feed("uint8", *size)
    with OrtRunner(plain, threads=1) as first, OrtRunner(four, threads=1) as second:
        wanted, got = first.infer(image), second.infer(image)
        assert second.outputs["mask"] == first.outputs["mask"]
        second.outputs["mask"].check(got["mask"])
    assert len(np.unique(wanted["mask"])) > 1
    np.testing.assert_array_equal(got["mask"], wanted["mask"])
    np.testing.assert_array_equal(got["logits"], wanted["logits"])
    got["mask"][...] = 0  # owned and writable


@needs_rtx
@pytest.mark.parametrize(
    ("shape", "output", "precision"),
    [("static", "mask", "fp16"), ("dynamic", "both", "fp32"), ("dynamic", "mask", "bf16")],
)
def test_tensorrt_rtx_builds_it(shape: str, output: str, precision: Precision) -> None:
    model = select_outputs(to_precision(packed(shape), precision), output)
    engine = build_engine(model, BuildOptions(flavour="tensorrt-rtx", progress=False))
    assert len(engine.plan) > 1_000_000
    assert engine.types_found["int32"] > 10


@pytest.mark.parametrize("head", ["deeplabv3", "bilinear"])
def test_network_without_the_decode_has_no_packed_mask(head: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^mask_encoding='u8x4': expected .* per-patch decode, got the head {head};"
    ):
        export_onnx(small_model(head=head), ExportOptions(shape=STATIC, mask_encoding="u8x4"))


def test_an_earlier_version_has_plain_masks_and_that_of_a_later_one_is_refused() -> None:
    """Read as plain bytes its masks would be wrong."""
    model = copy_model(packed())
    (entry,) = (entry for entry in model.metadata_props if entry.key == "nrd_trt.mask_encoding")
    entry.value = '"u4x8"'
    with pytest.raises(ExportError, match=r"'u4x8'.*mask_encoding"):
        read_facts(model)
    model.metadata_props.remove(entry)
    assert read_facts(model).mask_encoding == "uint8"
