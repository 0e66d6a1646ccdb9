"""The exported file: parity with PyTorch, names, sizes, and bytes that depend on nothing but the model."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from nrd_trt.errors import ExportError, ShapeError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx, exporter_record
from nrd_trt.files import sha256_bytes
from nrd_trt.graph.metadata import GraphFacts, read_facts, write_facts
from nrd_trt.graph.tensors import copy_model
from nrd_trt.model.network import Segmentor
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.torch_runner import TorchRunner
from nrd_trt.specs import InputForm, InputShape
from tests.conftest import REPOSITORY
from tests.helpers import (
    DYNAMIC,
    SHAPES,
    STATIC,
    agreement,
    cached_model,
    cached_small_model,
    exported,
    feed,
    infer,
    small_export,
    small_model,
)  # fmt: skip
from tests.warm.programs import python

TINY = InputShape.static((64, 96))
"""As in tests of validation, which share the traces."""
LOGITS = 1e-3
"""Of their spread: batch norms are folded and sums run in another order. MobileNetV2 shows 4e-4, ResNets 1e-5."""


def check_parity(model: Segmentor, graph: onnx.ModelProto, image: dict[str, np.ndarray]) -> None:
    """Assert that the file draws PyTorch's mask from nearly PyTorch's logits."""
    form = read_facts(graph).input_form
    with TorchRunner(model, form) as reference, OrtRunner(graph, threads=1) as runner:
        expected, got = reference.infer(image), runner.infer(image)
    assert len(np.unique(expected["mask"])) > 1  # one class everywhere would agree with anything of one class
    assert agreement(got["mask"], expected["mask"]) >= 0.9999
    assert np.abs(got["logits"] - expected["logits"]).max() <= LOGITS * expected["logits"].std()


@pytest.mark.parametrize(
    ("encoder", "classes", "form"),
    [("resnetv1c18", 19, "uint8"), pytest.param("resnetv1c50", 150, "float", marks=pytest.mark.all_combinations)],
)
def test_parity_with_torch(encoder: str, classes: int, form: InputForm) -> None:
    channels = 64 if encoder == "resnetv1c18" else 512  # 64 as in other tests, which share the trace
    model, graph = cached_model(encoder, classes, channels), exported(encoder, classes, form, channels=channels)
    check_parity(model, graph, feed(form, 1, 128, 256))


@pytest.mark.parametrize(
    ("changes", "batch"), [({"head": "nrd_no_aspp"}, 1), ({"dilations": (1, 2, 3, 4), "hidden": 8}, 2)], ids=str
)
def test_parity_of_variants_and_of_a_static_batch(changes: dict[str, Any], batch: int) -> None:
    model = small_model(**changes)
    model.decode_head.cat_norm.get_buffer("running_var").fill_(2e-5)  # about the norm's epsilon, which is added to it
    graph = export_onnx(model, ExportOptions(shape=InputShape.static((64, 96), batch=batch), input_form="float"))
    check_parity(model, graph, feed("float", batch, 64, 96))
    with OrtRunner(graph, threads=1) as runner, pytest.raises(ShapeError, match=f"expected float32 {batch}×3×64×96"):
        runner.infer(feed("float", 3 - batch, 64, 96))


D8: dict[str, Any] = {"output_stride": 8, "dilations": (1, 12, 24, 36)}


@pytest.mark.parametrize(
    ("head", "changes", "shape"),
    [("bilinear", {}, "static"), ("deeplabv3", D8, "dynamic"), ("deeplabv3plus", D8, "static")],
)
def test_parity_of_baselines(head: str, changes: dict[str, Any], shape: str) -> None:
    model = small_model(head=head, **changes)
    graph = export_onnx(model, ExportOptions(shape=TINY if shape == "static" else DYNAMIC, input_form="uint8"))
    facts = read_facts(graph)
    assert facts.decode is None and facts.head == head and facts.upsample == model.config.upsample
    assert not graph.functions and {node.domain for node in graph.graph.node} == {""}
    check_parity(model, graph, feed("uint8", 1, *((64, 96) if shape == "static" else (64, 320))))


def test_baseline_masks_enlarge_like_torch_and_take_the_lowest_index_of_a_tie() -> None:
    model = small_model(head="bilinear")
    model.decode_head.conv_seg.weight.data[5] = model.decode_head.conv_seg.weight.data[2]
    model.decode_head.conv_seg.bias.data[[2, 5]] = 1e3  # both classes always win, by exactly the same logits
    graph = export_onnx(model, ExportOptions(shape=TINY, input_form="uint8"))
    assert (infer(graph, feed("uint8", 1, 64, 96))["mask"] == 2).all()


@pytest.mark.parametrize(
    ("form", "size"),
    [("uint8", (1, 64, 64)), ("float", (2, 128, 256)), ("rgb_float", (3, 96, 320)), ("float", (1, 256, 64))],
)
def test_dynamic_sizes_and_batches(form: InputForm, size: tuple[int, int, int]) -> None:
    check_parity(cached_small_model(), small_export(form, "dynamic"), feed(form, *size))


ALONE = InputShape.of(size=None, dynamic=((64, 64), (96, 128), (224, 352)), batch=(1, 2, 3), default=(96, 128))
"""Of one test alone, so that its network is traced there."""


def test_sizes_are_traced_as_multiples_of_32_in_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: dict[str, Any] = {}
    monkeypatch.setattr(torch.onnx, "export", lambda adapter, images, **options: traced.update(options))
    with pytest.raises(ExportError, match="returned no program"):
        export_onnx(cached_small_model(), ExportOptions(shape=ALONE))
    (dims,) = traced["dynamic_shapes"]
    assert {axis: (dim.min, dim.max) for axis, dim in dims.items()} == {0: (1, 3), 2: (64, 224), 3: (64, 352)}


@pytest.mark.parametrize(
    ("form", "shape", "image", "mask", "logits"),
    [
        ("uint8", "static", [1, 128, 256, 3], [1, 128, 256], [1, 11, 32, 64]),
        (
            "float",
            "dynamic",
            ["batch", 3, "height", "width"],
            ["batch", "height", "width"],
            ["batch", 11, "height*1//4", "width*1//4"],
        ),
    ],
)
def test_file_is_valid_and_has_its_names_and_types(
    form: InputForm, shape: str, image: list[Any], mask: list[Any], logits: Any
) -> None:
    model = small_export(form, shape)
    graph = model.graph

    def described(entries: Any) -> list[tuple[str, int, list[Any]]]:
        return [
            (e.name, e.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in e.type.tensor_type.shape.dim])
            for e in entries
        ]

    kind = TensorProto.UINT8 if form == "uint8" else TensorProto.FLOAT
    assert described(graph.input) == [("image", kind, image)]
    assert described(graph.output) == [("mask", TensorProto.UINT8, mask), ("logits", TensorProto.FLOAT, logits)]
    onnx.checker.check_model(model, full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert opsets[""] >= 19 and opsets["nrd"] == 1
    assert {entry.name for entry in model.functions} == {"NrdPatchDecode", "NrdPatchDecodeMask"}


def louder_model() -> Segmentor:
    """The quickest network with other weights."""
    model = small_model()
    for parameter in model.parameters():
        parameter *= 1.25
    return model


_EXPORT_AGAIN = """
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.files import sha256_bytes
from tests.exporting.test_onnx_export import SHAPES, louder_model
print(sha256_bytes(export_onnx(louder_model(), ExportOptions(shape=SHAPES["{}"])).SerializeToString()))
"""


@pytest.mark.parametrize("shape", ["static", pytest.param("dynamic", marks=pytest.mark.all_combinations)])
def test_equal_bytes_from_another_process_and_an_untouched_model(shape: str) -> None:
    """Another process has another hash seed and other addresses, and traces this network; here the trace is that of
    the network with other weights, as it is for all tests (tests/conftest.py)."""
    command = [python(), "-c", _EXPORT_AGAIN.format(shape)]
    again = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()
    first = small_export("uint8", shape)
    model = louder_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    here = export_onnx(model, ExportOptions(shape=SHAPES[shape])).SerializeToString()
    assert here != first.SerializeToString()
    assert sha256_bytes(here) == again
    assert all(bool((before[name] == tensor).all()) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("shape", SHAPES)
def test_no_path_and_no_trace_of_this_machine(shape: str) -> None:
    model = copy_model(small_export("uint8", shape))
    for tensor in model.graph.initializer:
        assert not tensor.doc_string
        assert tensor.data_location == TensorProto.DEFAULT
        tensor.raw_data = b""  # any short word may stand in numbers
    exporter = next(entry for entry in model.metadata_props if entry.key == "nrd_trt.exporter")
    assert set(json.loads(exporter.value)) == {"revision", "torch", "onnx", "onnxscript"}
    model.metadata_props.remove(exporter)  # names PyTorch
    content = model.SerializeToString()
    for word in (str(REPOSITORY), sys.prefix, "site-packages", ".py", 'File "', "stack_trace", "pkg.torch", "torch"):
        assert word.encode() not in content, word


def test_metadata_round_trip() -> None:
    model = small_model(info={"channel_order": "bgr", "ignore_index": 11, "size_hw": (64, 96)})
    facts = read_facts(export_onnx(model, ExportOptions(shape=STATIC), checkpoint_sha256="ab" * 32))
    assert facts == GraphFacts(
        info=model.info, decode=model.config.decode, shape=STATIC, input_form="uint8", output="both",
        encoder="mobilenetv2", head="nrd", checkpoint_sha256="ab" * 32, exporter=exporter_record(),
    )  # fmt: skip
    assert read_facts(small_export("float", "dynamic")).shape == DYNAMIC
    bare = onnx.ModelProto()
    write_facts(bare, facts)
    assert read_facts(bare) == facts


@pytest.mark.parametrize("key", [None, "nrd_trt.decode", "nrd_trt.info"])
def test_foreign_metadata_is_refused(key: str | None) -> None:
    model = onnx.ModelProto()
    if key is not None:
        write_facts(model, read_facts(small_export()))
        next(entry for entry in model.metadata_props if entry.key == key).value = '{"x": 1}'
    with pytest.raises(ExportError, match=r"does not carry this toolkit's metadata.*with nrd_trt\.export"):
        read_facts(model)


def test_nodes_are_named_after_modules_and_once_only() -> None:
    graph = small_export().graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    modules = dict(cached_small_model().named_modules())
    convolutions = [node.name.split("/") for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 50
    assert all(kind == "Conv" and scope in modules for scope, kind in convolutions)
    outputs = [name for node in graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)
    assert "BatchNormalization" not in {node.op_type for node in graph.node}, "it is folded"
    assert not any(".bn" in tensor.name or "cat_norm" in tensor.name for tensor in graph.initializer)


def test_what_wrote_a_file_is_described() -> None:
    record = exporter_record()
    assert record.revision >= 1
    assert (record.torch, record.onnx) == (torch.__version__, onnx.__version__)
    assert record.onnxscript == version("onnxscript")
