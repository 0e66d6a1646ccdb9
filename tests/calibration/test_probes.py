"""Probes against the tensors themselves, fetched from the plain graph; groups; and the order in which they run."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

from nrd_trt.calibration.probes import Probe, group_bytes, make_probes, plan_groups, read_masks, with_probes
from nrd_trt.calibration.ranges import tensors_to_calibrate
from nrd_trt.calibration.recipes import RECIPES
from nrd_trt.errors import CalibrationError
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.specs import InputForm, MaskEncoding
from tests.helpers import feed, infer, small_export

SHAPES = {"uint8": {"image": (1, 128, 256, 3)}, "float": {"image": (1, 3, 128, 256)}}


def probes_of(model: onnx.ModelProto, samples: int | None, form: InputForm = "uint8") -> list[Probe]:
    return make_probes(model, tensors_to_calibrate(model, RECIPES["mse"]), SHAPES[form], samples)


@pytest.mark.parametrize(("form", "samples"), [("uint8", 4096), ("float", None)])
def test_readings_are_those_of_the_tensors(form: InputForm, samples: int | None) -> None:
    model = small_export(form)
    probes = probes_of(model, samples, form)
    probed = with_probes(model, probes, masks=samples is not None)
    onnx.checker.check_model(probed, full_check=True)
    assert not any(entry.name.startswith("calibration/") for entry in model.graph.output)
    image = feed(form, 1, 128, 256)
    outputs, expected = infer(probed, image), infer(model, image, *(probe.tensor for probe in probes))
    masks = read_masks(outputs, "uint8")
    assert masks is None if samples is None else (masks == expected["mask"]).all()
    assert {probe.signed for probe in probes} == {True, False}
    for probe in probes:
        reading, tensor = probe.read(outputs), expected[probe.tensor]
        assert probe.shape == tensor.shape
        assert probe.signed or tensor.min() >= 0
        # Other outputs can make ONNX Runtime fuse other nodes: equal up to the order of sums.
        assert reading.largest == pytest.approx(np.abs(tensor).max(), rel=1e-4)
        assert reading.check.shape[0] == 1 and np.isfinite(reading.check).all()
        values = reading.values
        assert values is not None
        if samples is None:
            np.testing.assert_allclose(values, tensor, rtol=1e-3, atol=1e-4)
            assert reading.largest == np.abs(values).max()
        else:
            assert min(samples, tensor.size) / 3 < values.size <= samples
            assert np.isin(np.round(values, 3), np.round(tensor, 3)).mean() > 0.99


@pytest.mark.parametrize("shape", [(1, 8, 64, 96), (1, 16, 33, 45), (2, 3, 64, 64), (1, 640, 11, 15)])
def test_samples_come_from_every_channel_row_and_column(shape: tuple[int, ...]) -> None:
    """Of a tensor whose values are their own places."""
    probe = Probe(tensor="x", shape=shape, samples=4096, signed=True)
    graph = helper.make_graph([], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], [])
    probe.append_to(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    whole = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    reading = probe.read(dict(zip(names, session.run(names, {"x": whole}), strict=True)))
    assert reading.largest == math.prod(shape) - 1
    values = reading.values
    assert values is not None
    places = np.unravel_index(values.astype(np.int64), shape)
    for axis, size in enumerate(shape):
        counts = np.bincount(places[axis], minlength=size)
        assert counts.min() > 0, f"axis {axis}"
        assert counts.max() <= 3 * counts.min() + 3, f"axis {axis}"
    assert 4096 / 2 < len(values) <= 4096


def test_probes_of_a_dynamic_file_know_its_largest_shapes_and_name_wrong_tensors() -> None:
    model = small_export("uint8", "dynamic")
    tensors, feeds = tensors_to_calibrate(model, RECIPES["mse"]), {"image": (2, 256, 320, 3)}
    probes = make_probes(model, tensors, feeds, 4096)
    assert len(probes) == len(tensors)
    assert probes[0].shape == (2, 3, 256, 320)
    for wrong, got in ((("pixels", "nothing"), "'nothing'.*unknown names"), (("classes",), "'classes'.*other types")):
        with pytest.raises(CalibrationError, match=got):
            make_probes(model, wrong, feeds, 4096)


def test_groups_stay_within_the_memory() -> None:
    probes = probes_of(small_export(), None)
    total, largest = group_bytes(probes), max(group_bytes([probe]) for probe in probes)
    assert total == sum(probe.fetched_bytes for probe in probes) + max(probe.working_bytes for probe in probes)
    assert plan_groups(probes, total) == [probes]
    for memory in (largest, 2 * largest, total // 3, total - 1):
        groups = plan_groups(probes, memory)
        assert [probe for group in groups for probe in group] == probes
        assert len(groups) > 1
        assert all(group_bytes(group) <= memory for group in groups)
        joined = [group_bytes([*first, second[0]]) for first, second in pairwise(groups)]
        assert all(size > memory for size in joined)  # no group could have taken the next tensor
    with pytest.raises(CalibrationError, match=r"needs \d+ MB by itself, memory_mb="):
        plan_groups(probes, largest - 1)


def test_samples_of_a_large_network_need_one_pass() -> None:
    shapes = [(1, 256, 256, 512)] * 100
    sampled_probes, whole = (
        [Probe(tensor=str(index), shape=shape, samples=n, signed=True) for index, shape in enumerate(shapes)]
        for n in (1 << 14, None)
    )
    assert len(plan_groups(sampled_probes, 300 << 20)) == 1
    assert len(plan_groups(whole, 2048 << 20)) == 34


@pytest.mark.parametrize("output", ["mask", "logits", "both"])
def test_probes_run_as_soon_as_their_tensor_is_there(output: str, tmp_path: Path) -> None:
    """Else every probed tensor is held until the end; memory would grow with the depth of the network."""
    model = select_outputs(small_export(), output)
    probes = probes_of(model, 4096)
    run = executed(with_probes(model, probes, masks=True), tmp_path)
    places = {name: index for index, (_, name) in enumerate(run)}
    convolutions = [index for index, (operator, _) in enumerate(run) if operator == "Conv"]
    ahead = [
        sum(index < places[f"calibration/{probe.tensor}/{part}"] for index in convolutions)
        for probe in probes
        for part in ("values", "high", "sum")
    ]
    assert len(ahead) == 3 * len(probes) > 120
    assert len(convolutions) > 60
    quarter = len(ahead) // 4
    assert max(ahead[:quarter]) < len(convolutions) / 2 < min(ahead[-quarter:])


def executed(model: onnx.ModelProto, folder: Path) -> list[tuple[str, str]]:
    """Operators and names of the nodes in the order in which ONNX Runtime runs them."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, feed("uint8", 1, 128, 256))
    events = json.loads(Path(session.end_profiling()).read_text())
    end = "_kernel_time"
    return [(e["args"]["op_name"], e["name"].removesuffix(end)) for e in events if e["name"].endswith(end)]


@pytest.mark.parametrize(("output", "encoding"), [("mask", "u8x4"), ("logits", "uint8")])
def test_masks_are_those_of_the_plain_graph(output: str, encoding: MaskEncoding) -> None:
    model = select_outputs(small_export(encoding=encoding), output)
    image = feed("uint8", 1, 128, 256)
    expected, probed = infer(model, image), infer(with_probes(model, [], masks=True), image)
    got = read_masks(probed, read_facts(model).mask_encoding)
    assert got is not None
    assert (got == (expected["mask"] if output == "mask" else expected["logits"].argmax(1))).all()


def test_tensors_behind_a_resize_by_scales_have_shapes() -> None:
    """As in a DeepLabV3+ head: inference reads the scales, which are floats as weights are."""
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> g (float[1,1,2,2] x) => (float[1,1,4,4] y)'
        " <float[4] s = {1,1,2,2}> {up = Resize(x, , s) y = Relu(up)}"
    )
    probes = make_probes(model, ["up"], {"x": (1, 1, 2, 2)}, None)
    assert [probe.shape for probe in probes] == [(1, 1, 4, 4)]
