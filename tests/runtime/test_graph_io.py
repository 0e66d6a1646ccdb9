"""Image in, mask out, whatever the runner's form; the enlargement against PyTorch's own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from nrd_trt.data.preprocessing import normalise
from nrd_trt.engine.definition import definition_of
from nrd_trt.engine.loading import LoadedEngine
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.graph_io import first_mask, graph_specs, image_feed, mask_of_logits, plan_differences
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import InputForm, InputShape, Range, TensorSpec
from tests.artefacts import SIZE_HW, both_outputs, trained_model
from tests.engine.records import record
from tests.helpers import model_info, small_export

INFO = model_info(3, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))


def facts(form: InputForm = "uint8", batch: int = 1, upsample: int = 4) -> GraphFacts:
    shape = replace(InputShape.static((32, 64)), batch=Range(min=batch, opt=batch, max=batch + 1))
    return replace(record().model, info=INFO, shape=shape, input_form=form, upsample=upsample)


def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (32, 64, 3), dtype=np.uint8)


def torch_mask(logits: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of every pixel, and the gap between its two best logits."""
    tensor = torch.from_numpy(logits)[None]
    enlarged = functional.interpolate(tensor, scale_factor=scale, mode="bilinear", align_corners=False)[0]
    best = enlarged.topk(2, dim=0).values
    return enlarged.argmax(0).numpy(), (best[0] - best[1]).numpy()


@pytest.mark.parametrize(("size", "scale"), [((11, 8, 12), 4), ((2, 1, 5), 8), ((150, 3, 1), 2), ((256, 4, 4), 1)])
def test_mask_of_logits_is_torchs(size: tuple[int, int, int], scale: int) -> None:
    logits = np.random.default_rng(scale).standard_normal(size).astype(np.float32)
    expected, gap = torch_mask(logits, scale)
    got = mask_of_logits(logits, scale)
    assert got.dtype == np.uint8
    assert got.shape == expected.shape == (size[1] * scale, size[2] * scale)
    clear = gap > 1e-5
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(got[clear], expected[clear])


def test_ties_go_to_the_lowest_class_and_edges_repeat_the_border() -> None:
    logits = np.zeros((4, 2, 2), np.float32)
    logits[1:3] = 1.0
    np.testing.assert_array_equal(mask_of_logits(logits, 4), np.ones((8, 8)))
    logits = np.array([[[0.0, 1.0]], [[0.5, 0.5]]], np.float32)  # class 0 wins right of the middle
    np.testing.assert_array_equal(mask_of_logits(logits, 4), np.tile([1, 1, 1, 1, 0, 0, 0, 0], (4, 1)))


def test_feed_is_the_image_in_the_graphs_form_as_often_as_its_smallest_batch_asks() -> None:
    feed = image_feed(image(), facts(batch=3))
    assert feed.keys() == {"image"} and feed["image"].dtype == np.uint8
    np.testing.assert_array_equal(feed["image"], np.stack([image()] * 3))
    normal = image_feed(image(), facts("float", batch=2))["image"]
    assert (normal.dtype, normal.shape) == (np.float32, (2, 3, 32, 64))
    np.testing.assert_array_equal(normal, normalise(np.stack([image()] * 2), INFO))
    assert normal[1, 1, 5, 7] == pytest.approx((float(image()[5, 7, 1]) - 20) / 4)
    plain = image_feed(image(), facts("rgb_float", batch=2))["image"]
    assert (plain.dtype, plain.shape, plain.flags.c_contiguous) == (np.float32, (2, 3, 32, 64), True)
    np.testing.assert_array_equal(plain[1].transpose(1, 2, 0), image())


@pytest.mark.parametrize("upsample", [1, 4])
def test_mask_output_is_taken_before_logits_which_are_enlarged_by_the_networks_factor(upsample: int) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (2, 32, 64), dtype=np.uint8)
    logits = np.random.default_rng(1).standard_normal((1, 3, 32 // upsample, 64 // upsample)).astype(np.float32)
    np.testing.assert_array_equal(first_mask({"mask": mask, "logits": logits}, facts(upsample=upsample)), mask[0])
    got = first_mask({"logits": logits}, facts(upsample=upsample))
    np.testing.assert_array_equal(got, mask_of_logits(logits[0], upsample))
    assert got.shape == (32, 64)


def test_mask_and_logits_of_the_trained_network_give_one_mask() -> None:
    """The graph's own enlargement, NumPy's and PyTorch's."""
    pixels = np.random.default_rng(5).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    masks = []
    for output in ("mask", "logits"):
        model = select_outputs(both_outputs(), output)
        with Engine(OrtRunner(model, threads=1), replace(facts(), decode=trained_model().config.decode)) as engine:
            masks.append(engine.mask(pixels))
    network = trained_model()
    expected = network.predict(torch.from_numpy(normalise(pixels[None], network.info)))[0].numpy()
    for mask in masks:
        assert (mask == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1


# --- what a plan must have


def plan_of(graph: GraphFacts, **changes: TensorSpec | None) -> LoadedEngine:
    """Return a plan of a graph with other tensors."""
    inputs, outputs = graph_specs(graph)
    tensors = {**inputs, **outputs, **changes}
    kept = {name: spec for name, spec in tensors.items() if spec is not None}
    plan: Any = SimpleNamespace(
        inputs={"image": kept.pop("image")}, outputs=kept, profile_range=lambda name: graph.image_range
    )
    return plan  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("form", "encoding", "shape"),  # exports that other tests need too
    [
        ("uint8", "uint8", "static"),
        ("uint8", "uint8", "dynamic"),
        ("uint8", "u8x4", "static"),
        ("float", "uint8", "static"),
        ("float", "uint8", "dynamic"),
        ("rgb_float", "uint8", "static"),
    ],
)
@pytest.mark.parametrize("output", ["mask", "logits", "both"])
def test_tensors_of_a_graph_are_those_of_its_file(output: str, form: InputForm, encoding: Any, shape: str) -> None:
    file = select_outputs(small_export(form, shape, encoding), output)
    found = definition_of(file)
    assert graph_specs(read_facts(file)) == (found.inputs, found.outputs)


def test_a_plan_of_its_graph_has_no_differences() -> None:
    for form in ("uint8", "float", "rgb_float"):
        graph = facts(form)  # type: ignore[arg-type]
        assert plan_differences(plan_of(graph), graph) == []


def test_each_tensor_of_another_plan_is_named() -> None:
    graph = replace(facts(), output="both", mask_encoding="uint8")
    words = TensorSpec(name="mask", dtype=np.dtype(np.int32), shape=(None, 32, 16))
    wide = TensorSpec(name="logits", dtype=np.dtype(np.float32), shape=(None, 4, 8, 16))
    for changes, told in (
        ({"mask": words}, "tensor 'mask': int32 any×32×16, expected uint8 any×32×64"),
        ({"mask": None}, "tensor 'mask': none, expected uint8 any×32×64"),
        ({"logits": wide}, "tensor 'logits': float32 any×4×8×16, expected float32 any×3×8×16"),
        ({"margin": replace(wide, name="margin")}, "tensor 'margin': float32 any×4×8×16, expected none"),
    ):
        assert plan_differences(plan_of(graph, **changes), graph) == [told]  # type: ignore[arg-type]


def test_another_range_of_sizes_is_named() -> None:
    graph, built = facts(batch=1), facts(batch=2)
    assert plan_differences(plan_of(built), graph) == [
        "tensor 'image': sizes from 2×32×64×3 to 3×32×64×3, expected 1×32×64×3 to 2×32×64×3"
    ]
