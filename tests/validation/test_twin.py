"""A file beside sound ones: what is sound passes, and a fault is told wherever it was made, in the file or upstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.record import PrecisionRecord
from nrd_trt.exporting.onnx_export import exporter_record
from nrd_trt.figures import SoundComparison
from nrd_trt.graph import quantize
from nrd_trt.graph.metadata import ExporterRecord
from nrd_trt.graph.network import named_as
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.quantize import choose_layers, insert_qdq, plan_quantization
from nrd_trt.graph.tensors import copy_model
from nrd_trt.model.stages import excitation
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import Precision
from nrd_trt.validation import twin
from nrd_trt.validation.rederive import pick_magnitudes
from nrd_trt.validation.twin import compare_with_sound, held_ranges
from tests.artefacts import SIZE_HW, both_outputs, trained_model
from tests.faults import activation_scale, double, double_row, rename, swap_rgb, transpose_in_decode

IMAGES = {name: street_scene(seed, SIZE_HW).image for name, seed in (("one", 1), ("four", 4))}


@cache
def ranges() -> Mapping[str, float]:
    """Ranges measured on other images, as a calibration does, and the largest seen."""
    images = [street_scene(seed, SIZE_HW).image for seed in (5, 6, 7)]
    picked = pick_magnitudes(both_outputs(), plan_quantization(both_outputs(), layers()).tensors, images, threads=1)
    return {name: float(values.max()) for name, values in picked.items()}


@cache
def layers() -> tuple[str, ...]:
    return choose_layers(both_outputs())


def made(
    precision: Precision, changed: Mapping[str, float] | None = None, full: onnx.ModelProto | None = None
) -> onnx.ModelProto:
    """A file as a build makes it, with some ranges multiplied."""
    full = full or both_outputs()
    if precision != "int8":
        return to_precision(full, precision)
    held = {name: limit * (changed or {}).get(name, 1.0) for name, limit in ranges().items()}
    return to_precision(insert_qdq(full, plan_quantization(full, layers()), held), "int8")


def compared(
    file: onnx.ModelProto,
    full: onnx.ModelProto | None = None,
    images: Mapping[str, np.ndarray] = IMAGES,
    **changes: Any,
) -> SoundComparison:
    int8 = layers() if "int8" in str(file.metadata_props) else ()
    record = PrecisionRecord(asked="fp32", found=None, kept_fp32=(), kept_because={}, int8_layers=int8, layers=())
    options: dict[str, Any] = {"exporter": exporter_record(), "threads": 1, **changes}
    return compare_with_sound(trained_model(), full or both_outputs(), file, record, images, **options)


def planted(file: onnx.ModelProto, change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    result = copy_model(file)
    change(result)
    return result


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_sound_file_passes_and_is_its_own_twin(precision: Precision) -> None:
    found = compared(made(precision))
    assert (found.failures, found.note) == ((), "")
    assert [one.stage for one in found.bundle] == "preprocessing c1 c4 theta guidance logits mask".split()
    assert all(one.error == 0 for one in found.twin)
    assert all(one.error and one.error < 1e-5 for one in found.exported if one.stage not in ("preprocessing", "mask"))
    assert (len(found.ranges) > 0) is (precision == "int8")
    assert found.images == ("one", "four", "one, brighter")


def flat(level: int) -> np.ndarray:
    return np.full((*SIZE_HW, 3), level, np.uint8)


def faint(seed: int) -> np.ndarray:
    """A scene in fog: an eighth of its contrast."""
    return street_scene(seed, SIZE_HW).image // 8 + np.uint8(110)


@pytest.mark.parametrize(
    "images",
    [[flat(90), flat(160)], [flat(128)], [flat(255)] * 2, [flat(0)] * 3, [faint(1), faint(4)]],
    ids=["greys", "one grey", "white", "dark", "fog"],
)
def test_images_that_do_not_excite_the_network_judge_no_range(images: list[np.ndarray]) -> None:
    """Of a sound file they need too little, and what int8 costs beside what hardly varies says nothing."""
    named = {str(index): image for index, image in enumerate(images)}
    found = compared(made("int8"), images=named)
    assert found.note.startswith("not judged: the ranges, and what int8 costs at the stages; the images excite")
    assert (found.failures, found.sound, found.bundle, found.ranges) == ((), (), (), ())
    assert found.exported and found.twin
    assert compared(planted(made("int8"), swap_rgb), images={**named, "red": flat(9) + np.uint8([200, 0, 0])}).failures


def test_ranges_are_judged_on_the_images_that_excite_the_network() -> None:
    found = compared(made("int8"), images={"grey": flat(128), **IMAGES})
    assert (found.images, found.note, found.failures) == (("one", "four", "one, brighter"), "", ())
    assert found.ranges
    wide = compared(made("int8", dict.fromkeys(ranges(), 4.0)), images={"grey": flat(128), "one": IMAGES["one"]})
    assert wide.images == ("one", "one, brighter")
    assert any(line.startswith("the range of ") for line in wide.failures)


def test_one_image_and_equal_images_are_judged() -> None:
    for images in ({"one": IMAGES["one"]}, dict.fromkeys(("one", "again", "once more"), IMAGES["one"])):
        found = compared(made("int8"), images=images)
        assert (found.note, found.failures) == ("", ()) and found.ranges


def test_a_network_knows_how_much_an_image_excites_it() -> None:
    shares = [excitation(trained_model(), image) for image in (IMAGES["one"], faint(1), flat(128))]
    assert all(share is not None for share in shares)
    assert 0.92 < (shares[0] or 0) < 1.1 and (shares[1] or 1) < 0.6 and (shares[2] or 1) < 0.4


def test_a_file_of_other_libraries_may_round_at_other_places() -> None:
    """Weights that are off by less than they are rounded by: another order of sums does as much, one exporter never."""
    other = ExporterRecord(revision=0, torch="0", onnx="0", onnxscript=None)
    file = planted(made("fp16"), lambda model: _nudge(model, 2e-4))
    assert compared(file, exporter=other).failures == ()
    assert "does not compute what the checkpoint gives" in compared(file).failures[0]


def _nudge(model: onnx.ModelProto, share: float) -> None:
    for tensor in model.graph.initializer:
        if tensor.name.startswith("decode_head.c1_bottleneck") and tensor.data_type == onnx.TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor)
            noise = np.random.default_rng(0).standard_normal(values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values * (1 + share * noise)).astype(np.float16), tensor.name))


TWIN = "the file does not compute what the checkpoint gives in its own form and ranges: "


@pytest.mark.parametrize(
    ("precision", "change", "stage"),
    [
        ("fp32", swap_rgb, "preprocessing"),
        ("fp16", double_row("backbone.layer5.1.conv.2.conv", 7), "c4"),
        ("bf16", double("decode_head.c1_bottleneck.1.conv.weight"), "guidance"),
        ("int8", swap_rgb, "preprocessing"),
        ("int8", transpose_in_decode("w1"), "logits"),
    ],
)
def test_a_fault_in_the_file_is_told_by_its_twin(
    precision: Precision, change: Callable[[onnx.ModelProto], None], stage: str
) -> None:
    found = compared(planted(made(precision), change))
    assert found.failures[0].startswith(TWIN)
    assert stage in found.failures[0].lower()
    assert all(one.within for one in (*found.exported, *found.sound))


@pytest.mark.parametrize("change", [lambda model: None, activation_scale("backbone.layer3.1/Add", 0.25)])
def test_names_of_a_file_do_not_count(change: Callable[[onnx.ModelProto], None]) -> None:
    """Sound or faulty, the comparison finds the same in a file whose nodes and tensors are all called otherwise."""
    file = planted(made("int8"), change)
    renamed = named_as(planted(file, rename), both_outputs())
    found = compared(renamed)
    assert found == compared(file)
    assert [one.stage for one in found.twin] == "preprocessing c1 c4 theta guidance logits mask".split()
    told = any(line.startswith("the range of backbone.layer3.1/Add is ") for line in found.failures)
    assert told is bool(found.failures) is (file != made("int8"))


@pytest.mark.parametrize("times", [0.25, 4.0])
def test_a_range_that_a_calibration_got_wrong_is_told(times: float) -> None:
    """The twin has it as well, as a calibration that is wrong everywhere would give it."""
    name = "backbone.layer3.1/Add"
    found = compared(made("int8", {name: times}))
    assert all(one.within for one in found.twin)
    assert any(line.startswith(f"the range of {name} is {ranges()[name] * times:.4g}") for line in found.failures)


def test_ranges_that_are_all_too_wide_are_told_by_the_stages() -> None:
    found = compared(made("int8", dict.fromkeys(ranges(), 4.0)))
    assert any("the file is farther from PyTorch than a sound one explains" in line for line in found.failures)


def test_an_exporter_that_is_wrong_for_all_is_told() -> None:
    """Bundle, twin and sound file have the same fault."""
    full = planted(both_outputs(), double("backbone.conv1.conv.weight"))
    found = compared(made("fp16", full=full), full)
    assert "exported anew in fp32 is not PyTorch's network: " in found.failures[0]
    assert "this installation is at fault" in found.failures[0]
    assert not any(line.startswith(TWIN) for line in found.failures)


def test_a_runner_that_is_wrong_for_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = OrtRunner._run

    def swapped(self: OrtRunner, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return run(self, {"image": np.ascontiguousarray(feed["image"][..., ::-1])})

    monkeypatch.setattr(OrtRunner, "_run", swapped)
    assert "preprocessing" in compared(made("fp16")).failures[0]


def test_a_pass_that_is_wrong_for_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in int8 that end at half of the largest."""
    scales = quantize.weight_scales
    monkeypatch.setattr(quantize, "weight_scales", lambda *given: scales(*given) * np.float32(0.5))
    found = compared(made("int8"))
    assert all(one.within for one in (*found.exported, *found.twin))
    assert any("derived anew in the bundle's precision is too far from PyTorch" in line for line in found.failures)


def test_ranges_are_read_from_the_file() -> None:
    plan = plan_quantization(both_outputs(), layers())
    file = made("int8")
    found = held_ranges(file, both_outputs(), plan)
    assert found.keys() == ranges().keys()
    assert held_ranges(planted(file, rename), both_outputs(), plan) == found
    groups = plan.shared
    alone = found.keys() - frozenset().union(*groups)
    assert all(found[name] == pytest.approx(ranges()[name], rel=1e-3) for name in alone)


def test_what_cannot_be_derived_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "held_ranges", lambda *_: {"other": 1.0})
    found = compared(made("int8"))
    assert "the file has ranges of 1 activations" in found.note
    assert (found.twin, found.ranges, found.failures) == ((), (), ())
    monkeypatch.setattr(twin, "plan_quantization", lambda *_: plan_quantization(both_outputs(), ["absent"]))
    found = compared(made("int8"))
    assert "no sound int8 file could be derived: layers absent" in found.note
    assert (found.sound, found.bundle) == ((), ())
