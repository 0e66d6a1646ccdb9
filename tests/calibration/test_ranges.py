"""Ranges end to end on a real network in ONNX Runtime: against its tensors, in several passes, with planted faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from nrd_trt.calibration import ranges as module
from nrd_trt.calibration.cache import Ranges
from nrd_trt.calibration.coverage import ClassCounter
from nrd_trt.calibration.ranges import measure_ranges, tensors_to_calibrate
from nrd_trt.calibration.recipes import RECIPES, Recipe
from nrd_trt.calibration.stream import CalibrationStream, Feed
from nrd_trt.errors import CalibrationError
from nrd_trt.graph.metadata import read_facts, with_precision
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.tensors import copy_model
from nrd_trt.specs import InputShape
from tests.helpers import byte_images, infer, small_export

FEEDS = [{"image": byte_images(20 + 5 * index, 1, 128, 256)} for index in range(3)]
pytestmark = pytest.mark.filterwarnings("ignore:classes never predicted:UserWarning")  # by an untrained network
EVERY_VALUE = {name: replace(recipe, samples=None) for name, recipe in RECIPES.items()}


def run(
    model: onnx.ModelProto, recipe: Recipe, stream: Any = None, tensors: Sequence[str] | None = None, **changes: Any
) -> Ranges:
    tensors = tensors_to_calibrate(model, recipe) if tensors is None else tensors
    stream = FEEDS if stream is None else stream
    return measure_ranges(model, stream, tensors, recipe, threads=1, progress=False, **changes)


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    """Every calibrated tensor over all feeds, as the plain graph computes it."""
    names = tensors_to_calibrate(small_export(), RECIPES["mse"])
    runs = [infer(small_export(), feed, *names) for feed in FEEDS]
    return {name: np.concatenate([outputs[name] for outputs in runs]) for name in names}


@pytest.mark.parametrize("name", RECIPES)
def test_largest_is_that_of_every_value(name: str, values: dict[str, np.ndarray]) -> None:
    found = run(small_export(), RECIPES[name])
    assert found.tensors.keys() == values.keys()
    for tensor, array in values.items():
        assert found.figures[tensor].largest == pytest.approx(np.abs(array).max(), rel=1e-4)
        assert 0 < found.tensors[tensor] <= found.figures[tensor].largest
    if name == "minmax":
        assert all(found.tensors[tensor] == figures.largest for tensor, figures in found.figures.items())


def test_percentile_of_every_value_is_that_of_numpy(values: dict[str, np.ndarray]) -> None:
    found = run(small_export(), replace(EVERY_VALUE["percentile"], percentile=99.0))
    for tensor, array in values.items():
        step, amax = found.figures[tensor].largest / 2048, found.tensors[tensor]
        below, above = ((np.abs(array) <= amax + shift).mean() for shift in (-2 * step, 2 * step))
        assert below <= 0.99 <= above, tensor


@pytest.mark.parametrize("name", ["percentile", "entropy", "mse"])
def test_samples_estimate_what_all_values_give(name: str, values: dict[str, np.ndarray]) -> None:
    """16 384 of up to 3 million values: int8 with either range has much the same error."""
    sampled, whole = (run(small_export(), recipes[name]) for recipes in (RECIPES, EVERY_VALUE))
    for tensor, array in values.items():
        if array[0].size > 1 << 14:
            errors = []
            for step in (found.tensors[tensor] / 127 for found in (sampled, whole)):
                errors.append(((array - np.clip(np.rint(array / step), -127, 127) * step) ** 2).mean())
            assert errors[0] < 1.3 * errors[1], tensor


@pytest.mark.parametrize(("recipe", "memory_mb"), [(RECIPES["mse"], 10), (EVERY_VALUE["mse"], 25)])
def test_little_memory_takes_more_passes_to_the_same_ranges(recipe: Recipe, memory_mb: int) -> None:
    with mock.patch.object(module, "with_probes", wraps=module.with_probes) as passes:
        small = run(small_export(), recipe, memory_mb=memory_mb)
        groups = [call.args[1] for call in passes.call_args_list]
        assert len(groups) > 2
        assert [probe.tensor for group in groups for probe in group] == list(small.tensors)
        drawn = [call.kwargs["masks"] for call in passes.call_args_list]
        assert drawn == [True] + [False] * (len(groups) - 1), "the masks are drawn once"
        passes.reset_mock()
        large = run(small_export(), recipe)
        passes.assert_called_once()
    # Other outputs let ONNX Runtime fuse other nodes: a value may fall into the next bin.
    assert small.tensors == pytest.approx(large.tensors, rel=5e-3)
    assert (small.images, small.coverage, small.keys) == (large.images, large.coverage, large.keys)


def test_keys_follow_model_data_and_recipe_and_a_calibration_stream_has_its_own() -> None:
    def keys(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], name: str) -> tuple[str, ...]:
        found = run(model, RECIPES[name], feeds, tensors=["pixels"]).keys
        assert found.checkpoint is None, "they serve the one model"
        return found.model, found.data, found.recipe

    plain = keys(small_export(), FEEDS, "minmax")
    assert keys(small_export(), FEEDS, "minmax") == plain
    other_model = keys(select_outputs(small_export(), "mask"), FEEDS, "minmax")
    other_data, other_recipe = keys(small_export(), FEEDS[:2], "minmax"), keys(small_export(), FEEDS, "mse")
    differing = [
        [a != b for a, b in zip(plain, other, strict=True)] for other in (other_model, other_data, other_recipe)
    ]
    assert differing == [[True, False, False], [False, True, False], [False, False, True]]
    stream = CalibrationStream("synthetic", read_facts(small_export()), images=2)
    found = run(small_export(), RECIPES["minmax"], stream)
    assert (found.images, found.keys.data) == (2, stream.sha256)
    assert found.keys.recipe == RECIPES["minmax"].sha256


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([], "expected at least one feed, got none; an iterator may be used up, a folder empty"),
        (iter(FEEDS), "expected feeds that can be iterated again, got an iterator"),
        (FEEDS[:1] * 4, "expected different images, got 4 copies of one image"),
    ],
)
def test_unusable_streams(stream: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        run(small_export(), RECIPES["minmax"], stream)


def test_typed_file_is_refused() -> None:
    with_precision(model := copy_model(small_export()), "fp16")
    with pytest.raises(CalibrationError, match="expected an fp32 file, got fp16"):
        run(model, RECIPES["minmax"], tensors=["pixels"])


def test_stream_that_runs_dry() -> None:
    class Shrinking:
        """Gives one feed less in every pass."""

        passes = 0

        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            self.passes += 1
            return iter(FEEDS[: 5 - self.passes])

    # Two iterators are made before the first pass: one for the check, one for the first feed.
    with pytest.raises(CalibrationError, match="expected 2 images in every pass, got 1; give one that can be repeated"):
        run(small_export(), RECIPES["mse"], Shrinking(), memory_mb=10)


def test_images_of_one_batch_are_told_apart() -> None:
    batch = np.concatenate([feed["image"] for feed in FEEDS])
    dynamic = small_export("uint8", "dynamic")
    assert run(dynamic, RECIPES["minmax"], [{"image": batch}]).images == 3
    with pytest.raises(CalibrationError, match="got 2 copies of one image"):
        run(dynamic, RECIPES["minmax"], [{"image": batch[[0, 0]]}])


def with_weights(places: slice, value: float, *names: str) -> onnx.ModelProto:
    """The network with some numbers of some of its weights changed."""
    model = copy_model(small_export())
    for tensor in model.graph.initializer:
        if tensor.name in names:
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[places] = value
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@pytest.mark.parametrize(
    ("recipe", "value"),
    [
        (RECIPES["minmax"], np.nan),
        (RECIPES["mse"], np.inf),
        (EVERY_VALUE["mse"], -np.inf),
        (EVERY_VALUE["mse"], np.nan),
    ],
)
def test_activations_that_are_not_finite_are_named(recipe: Recipe, value: float) -> None:
    model = with_weights(slice(3, 4), value, "backbone.layer2.0.conv.2.conv.weight")
    feeds = [Feed(feed, [f"frame{index}.png"], [(128, 256)]) for index, feed in enumerate(FEEDS)]
    message = r"tensor '.*layer2.0.conv.2.conv/Conv', frame0.png: expected finite activations, got NaN or infinity"
    with pytest.raises(CalibrationError, match=message):
        run(model, recipe, feeds)


@pytest.mark.parametrize(
    ("name", "place"), [("minmax", (0, 0, 0, 0)), ("mse", (1, 2, 77, 133)), ("minmax", (1, 0, 127, 255))]
)
def test_one_nan_among_the_values_is_found_and_its_image_named(name: str, place: tuple[int, ...]) -> None:
    """ONNX Runtime's maximum steps over it, and hardly any sample would meet it."""
    images = np.random.default_rng(0).standard_normal((2, 3, 128, 256)).astype(np.float32)
    images[place] = np.nan
    feeds = [Feed({"image": images}, ["a.png", "b.png"], [(128, 256)] * 2)]
    with pytest.raises(CalibrationError, match=rf"tensor 'image', {'ab'[place[0]]}.png: expected finite"):
        run(small_export("float", "dynamic"), RECIPES[name], feeds, tensors=["image"])


def test_tensor_that_is_zero_everywhere() -> None:
    """Any range represents it; int8 needs one above 0."""
    model = with_weights(slice(None), 0, "decode_head.bottleneck.conv.weight", "decode_head.bottleneck.conv.bias")
    with pytest.warns(UserWarning) as caught:
        found = run(model, RECIPES["mse"])
    assert found.zero == ("decode_head.bottleneck.act/Relu",)
    assert found.tensors[found.zero[0]] == 1.0
    assert found.zero[0] not in found.figures
    assert any("zero everywhere, range set to 1: decode_head.bottleneck.act/Relu (1)" in str(w.message) for w in caught)


@pytest.mark.parametrize("output", ["mask", "logits"])
def test_coverage_is_that_of_the_predicted_masks(output: str) -> None:
    model = select_outputs(small_export(), output)
    outputs = [infer(model, feed) for feed in FEEDS]
    masks = np.concatenate([run["mask"] if output == "mask" else run["logits"].argmax(1) for run in outputs])
    names = read_facts(model).info.class_names
    with pytest.warns(UserWarning) as caught:
        found = run(model, RECIPES["minmax"], tensors=["pixels"]).coverage
    assert found is not None
    for index, name in enumerate(names):
        assert found.pixel_share[name] == pytest.approx((masks == index).mean())
        assert found.images[name] == (masks == index).any((1, 2)).sum()
    unseen = tuple(name for index, name in enumerate(names) if not (masks == index).any())
    assert unseen and found.never_seen == unseen
    message = f"classes never predicted on the calibration images: {', '.join(unseen[:8])}"
    assert [w for w in caught if str(w.message).startswith(message)]


def test_coverage_leaves_padding_out_and_needs_masks() -> None:
    facts = replace(read_facts(small_export()), shape=InputShape.static((128, 256)))
    stream = CalibrationStream("synthetic", facts, images=2)
    cropped = [Feed(dict(feed), feed.names, [(64, 96)]) for feed in stream]
    masks = [infer(small_export(), feed)["mask"][0, :64, :96] for feed in stream]
    found = run(small_export(), RECIPES["minmax"], cropped, tensors=["pixels"]).coverage
    assert found is not None
    expected = np.bincount(np.ravel(masks), minlength=11) / (2 * 64 * 96)
    assert list(found.pixel_share.values()) == pytest.approx(expected.tolist())
    assert ClassCounter(["a", "b"]).counts() is None
