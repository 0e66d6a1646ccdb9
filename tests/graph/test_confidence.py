"""The output ``confidence``: that of PyTorch in every form of the ending, and proven against the checkpoint."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from nrd_trt.decode.function import CONFIDENCE_OP, mask_function, mask_node
from nrd_trt.decode.reference import confidence_of, upsample
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.cpu import with_ending
from nrd_trt.graph.extremes import Extremes, out_of_range
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs, with_taps
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.tensors import copy_model
from nrd_trt.runtime.graph_io import mask_of_logits
from nrd_trt.runtime.openvino_runner import OpenVinoRunner
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.torch_runner import TorchRunner
from nrd_trt.specs import DecodeSpec, InputForm, MaskEncoding, Precision
from nrd_trt.validation.structure import network_differences
from tests.helpers import SHAPES, feed, infer, quantized, random_decode_inputs, small_export, small_model

PAIR = {"static": (1, 128, 256), "dynamic": (2, 64, 96)}


def confident(
    form: InputForm = "uint8", shape: str = "static", encoding: MaskEncoding = "uint8", head: str = "nrd"
) -> onnx.ModelProto:
    options = ExportOptions(shape=SHAPES[shape], input_form=form, mask_encoding=encoding, confidence=True)
    return export_onnx(small_model(head=head), options)


@pytest.mark.parametrize(
    ("form", "shape", "encoding", "head"),
    [
        ("uint8", "static", "uint8", "nrd"),
        ("float", "dynamic", "u8x4", "nrd"),
        ("uint8", "static", "uint8", "bilinear"),
    ],
)
def test_it_is_that_of_pytorch(form: InputForm, shape: str, encoding: MaskEncoding, head: str) -> None:
    file = select_outputs(confident(form, shape, encoding, head), "mask,confidence")
    assert not importer_problems(file)
    image = feed(form, *PAIR[shape])
    runners = [
        TorchRunner(small_model(head=head), form, logits=False, confidence=True),
        OrtRunner(file, threads=1),
        OpenVinoRunner(file, threads=1, types="file"),
    ]
    got = []
    for runner in runners:
        with runner:
            assert {name: spec.dtype.name for name, spec in runner.outputs.items()} == dict.fromkeys(
                ("mask", "confidence"), "uint8"
            )
            got.append(runner.infer(image))
    want = got[0]
    assert want["confidence"].shape == PAIR[shape]
    assert np.ptp(want["confidence"]) > 70
    for found in got[1:]:
        assert np.array_equal(found["mask"], want["mask"])
        off = np.abs(found["confidence"].astype(int) - want["confidence"])
        assert off.max() <= 1
        assert off.mean() < 0.01


@pytest.mark.parametrize(
    ("precision", "head"), [("fp16", "nrd"), ("bf16", "nrd"), ("int8", "nrd"), ("fp16", "bilinear")]
)
def test_in_other_types_it_is_that_of_the_files_own_logits(precision: Precision, head: str) -> None:
    full = confident(head=head)
    full = quantized(full) if precision == "int8" else full
    file, image = to_precision(full, precision), feed("uint8", 1, 128, 256)
    assert not importer_problems(file)
    got = infer(with_taps(select_outputs(file, "mask,confidence")), image)
    logits, times = got["stage/logits"], read_facts(file).upsample
    want = confidence_of(upsample(torch.from_numpy(logits), times))[0].numpy()
    off = np.abs(got["confidence"][0].astype(int) - want)
    assert off.max() <= {"fp16": 1, "int8": 1, "bf16": 4}[precision]  # the tap of 16 bits is rounded, the decode is not
    assert (got["mask"][0] == mask_of_logits(logits[0], times)).mean() > 0.98


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("encoding", ["uint8", "u8x4"])
def test_without_it_a_file_is_what_it_always_was(precision: Precision, encoding: MaskEncoding) -> None:
    """So that ranges and hashes of a network do not depend on whether it was exported with confidence."""
    full = to_precision(confident(encoding=encoding), precision)
    plain = to_precision(small_export(encoding=encoding), precision)
    for output in ("mask", "logits", "both"):
        one, other = (select_outputs(model, output) for model in (full, plain))
        assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_what_is_no_number_has_no_confidence() -> None:
    spec = DecodeSpec(num_classes=5, hidden=4, guidance_channels=2)
    theta, guidance, *tables = random_decode_inputs(spec, 1, 2, 3)
    theta[0, 0, 0, 0] = np.nan  # a weight of the first patch, whose pixels reach half a patch's pixel beyond it
    node = mask_node(spec, *tables, "classes", "levels")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "decode",
        [value("theta", 1, theta.shape), value("guidance", 1, guidance.shape)],
        [value(name, onnx.TensorProto.FLOAT16, [1, 64, 96]) for name in ("classes", "levels")],
    )
    opsets = [onnx.helper.make_opsetid(*entry) for entry in (("", 19), ("nrd", 1))]
    function = mask_function(spec, *tables, confidence=True)
    model = onnx.helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    import onnxruntime

    for each in (model, with_ending(model, "filters"), with_ending(model, "phases")):
        session = onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        _, got = session.run(None, {"theta": theta, "guidance": guidance})
        assert (got[0, :32, :32] == 0).all()
        assert (got[0, :, 40:] > 0).all()
        assert np.array_equal(got, np.rint(got))
    assert confidence_of(torch.full((1, 3, 2, 2), torch.nan)).max() == 0


@pytest.mark.parametrize("head", ["nrd", "bilinear"])
def test_a_file_with_another_confidence_is_not_the_checkpoints(head: str) -> None:
    model, full = small_model(head=head), confident(head=head)
    file = copy_model(select_outputs(full, "mask,confidence"))
    assert network_differences(file, model)[0] == []
    nodes = next((entry.node for entry in file.functions if entry.name == CONFIDENCE_OP), file.graph.node)
    full_level = next(node for node in nodes if node.output[0].endswith("full_level"))
    full_level.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array([248.0], np.float32)))
    lines, _ = network_differences(file, model)
    assert lines == [f"ending: the confidence is off by up to {lines[0].split()[-4]} of 255 levels"]
    assert 1 < float(lines[0].split()[-4]) < 8


def test_exponentials_that_vanish_are_no_reason_to_keep_a_node() -> None:
    """They are in fp32 anyway, and a list of kept nodes is read by people."""
    model = confident(head="bilinear")
    names = {node.output[0]: Extremes(largest=1.0, underflow=0.9) for node in model.graph.node}
    kept = out_of_range(model, names, "fp16")
    assert kept
    assert not [name for name in kept if name.startswith("confidence/")]
