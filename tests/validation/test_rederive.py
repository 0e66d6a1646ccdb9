"""Files made anew: the fp32 one to the byte, and int8 with ranges measured on the images themselves."""

from __future__ import annotations

import numpy as np
import pytest

from nrd_trt.data.synthetic import street_scene
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.quantize import choose_layers, insert_qdq, plan_quantization
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.validation.rederive import least_lossy, loss, pick_magnitudes, rederive_full, sound_file
from tests.artefacts import SIZE_HW, both_outputs, trained_model
from tests.helpers import infer

IMAGES = [street_scene(seed, SIZE_HW).image for seed in (3, 4)]


def test_the_fp32_file_comes_back_with_both_outputs() -> None:
    facts = read_facts(select_outputs(both_outputs(), "mask"))
    made = rederive_full(trained_model(), facts)
    assert made.SerializeToString(deterministic=True) == both_outputs().SerializeToString(deterministic=True)


def test_the_least_lossy_range_clips_what_is_rare_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    even = rng.uniform(0, 6, 5000)
    assert least_lossy(even) == pytest.approx(even.max())
    normal = np.abs(np.append(rng.standard_normal(5000), 40.0))
    limits = np.linspace(1, 40, 400)
    steps = limits / 127
    losses = [((np.clip(np.rint(normal / step), 0, 127) * step - normal) ** 2).mean() for step in steps]
    best = limits[int(np.argmin(losses))]
    assert least_lossy(normal) == pytest.approx(best, abs=40 * 0.02)
    assert (least_lossy(np.zeros(3)), least_lossy(np.empty(0))) == (0.0, 0.0)
    assert least_lossy(np.array([1.0, np.inf])) == np.inf


def test_values_are_picked_evenly_and_the_largest_is_among_them() -> None:
    full = both_outputs()
    plan = plan_quantization(full, choose_layers(full))
    picked = pick_magnitudes(full, plan.tensors, IMAGES, threads=1)
    tensors = [infer(full, image_feed(image, read_facts(full)), *plan.tensors) for image in IMAGES]
    for name, magnitudes in picked.items():
        values = np.abs(np.concatenate([outputs[name].ravel() for outputs in tensors]))
        assert magnitudes.max() == values.max()
        best = loss(values, least_lossy(values))
        assert loss(values, least_lossy(magnitudes)) <= 1.1 * best, name
        assert best == pytest.approx(_loss(values, least_lossy(values)))


def _loss(values: np.ndarray, limit: float) -> float:
    """The same the long way: what int8 holds of each value, as an integer."""
    integers = np.clip(np.rint(values * (127 / limit)), -128, 127).astype(np.int8)
    return float(np.sqrt(((integers.astype(np.float64) * (limit / 127) - values) ** 2).mean()))


def test_a_sound_file_is_nearer_to_fp32_than_one_of_wrong_ranges() -> None:
    full = both_outputs()
    layers = choose_layers(full)
    sound = sound_file(full, "int8", layers, frozenset(), IMAGES, threads=1)
    plan = plan_quantization(full, layers)
    picked = pick_magnitudes(full, plan.tensors, IMAGES, threads=1)
    wide = {name: 4 * least_lossy(magnitudes) for name, magnitudes in picked.items()}
    wrong = to_precision(insert_qdq(full, plan, wide), "int8")
    feed = image_feed(IMAGES[0], read_facts(full))
    want = infer(full, feed)["logits"]
    errors = [float(np.square(infer(file, feed)["logits"] - want).mean()) for file in (sound, wrong)]
    assert errors[0] < errors[1] / 3
    assert read_facts(sound).precision == "int8"


def test_16_bit_files_are_typed_as_the_bundle_says() -> None:
    full = both_outputs()
    kept = frozenset({full.graph.node[-3].name})
    made = sound_file(full, "fp16", (), kept, IMAGES)
    assert made == to_precision(full, "fp16", kept)
    assert made != to_precision(full, "fp16")
