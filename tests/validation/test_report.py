"""The page of a validation: its charts, and what few runs have; test_validate.py renders whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.cli.validate import _lines
from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import PLAN_FILE, read_bundle
from nrd_trt.figures import ImageFigures, Localisation, Rebuilds, StageFigures
from nrd_trt.validation.report import error_share, plot_scale, render_report
from nrd_trt.validation.validate import Validation, validate
from tests.artefacts import SIZE_HW, build, bundle, checkpoint, onnx_file

EVIL = '<script>alert("x")</script>&\''


@pytest.mark.parametrize(
    ("error", "share"), [(0.0, 0.0), (1e-9, 0.0), (0.01, 0.5), (1.0, 0.75), (1e9, 1.0), (None, 1.0)]
)
def test_an_error_is_drawn_around_its_tolerance(error: float | None, share: float) -> None:
    assert error_share(error, 0.01) == pytest.approx(share)
    assert error_share(error, 0.0) == (0.0 if error == 0 else 1.0)


@pytest.mark.parametrize("value", [1.0, 0.999999, 0.5, 0.0])
@pytest.mark.parametrize("gate", [0.0, 0.995, 1.0])
def test_the_axis_holds_every_agreement_and_the_gate(value: float, gate: float) -> None:
    low, ticks = plot_scale([ImageFigures(name="one", index=0, pixel_agreement=value, flips=0, far=None)], gate)
    assert 0 <= low <= min(value, gate) and low < 1
    assert 2 <= len(ticks) <= 6
    assert ticks[0] == (1, "1." + "0" * (len(ticks[0][1]) - 2))
    assert all(low - 1e-9 <= tick <= 1 and float(text) == pytest.approx(tick) for tick, text in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


@pytest.fixture(scope="module")
def validation() -> Validation:
    return validate(bundle(), threads=1, progress=False)


def test_every_text_is_escaped(validation: Validation) -> None:
    images = tuple(replace(image, name=EVIL) for image in validation.per_image)
    evil = replace(validation, samples=EVIL, per_image=images)
    page = render_report(read_bundle(bundle()), evil)
    assert "<script" not in page
    assert "&lt;script&gt;" in page.split("<circle")[1]


@pytest.mark.parametrize(
    ("planned", "ran", "said"),
    [
        (False, False, "The bundle has no plan."),
        (True, False, "The plan itself did not run."),
        (True, True, "The plan itself ran."),
    ],
)
def test_it_says_whether_the_plan_ran(planned: bool, ran: bool, said: str, validation: Validation) -> None:
    opened = read_bundle(bundle())
    files = {**opened.record.files, **({PLAN_FILE: "0"} if planned else {})}
    shown = replace(opened, record=replace(opened.record, files=files))
    assert said in render_report(shown, replace(validation, plan_ran=ran))


def test_plans_values_that_are_not_finite_and_unknown_ties(validation: Validation) -> None:
    worst = {"worst_channel": 4, "worst_channel_error": 0.0, "channel_tolerance": 0.01}
    stages = (
        StageFigures(stage="c1", error=None, tolerance=1e-3, not_finite=7, within=False),
        StageFigures(stage="theta", error=1e-5, tolerance=1e-3, within=True, **worst),
    )
    localised = Localisation(
        stages=stages, first_beyond="c1", hints=("a hint",), arithmetic="native", note="all ran", images=("one",)
    )
    rebuilds = Rebuilds(
        builder="tensorrt",
        version="11.4",
        builds=2,
        plans=("a" * 64, "b" * 64),
        same_as_bundle=1,
        types_found=({"fp16": 3}, {"fp16": 2, "fp32": 1}),
        images=0,
        agreement=None,
        note="plans cannot run here",
        distinct_plans=2,
    )
    flips = replace(validation.flips, pixels=1234, share=0.5, near_tie=None, far=None, far_share=None)
    made = replace(validation, localisation=localised, rebuilds=rebuilds, flips=flips)
    page = " ".join(render_report(read_bundle(bundle()), made).split())
    for words in (
        "7 values not finite",
        '<p class="hint">a hint</p>',
        'width="37.5" height="10"',  # two decades below the tolerance
        "There are 2 different plans, 1 of 2 are the bundle's, byte for byte.",
        "<td><code>aaaaaaaaaaaaaaaa…</code></td><td>3 fp16</td>",
        "1 234 pixels differ (50.000 %); the reference's logits are not known",
    ):
        assert words in page, words


def test_what_was_warned_of_the_images_calibrated_on_is_kept_and_shown(tmp_path: Path) -> None:
    """Beside `build`, that of another exposure by `validate`, on the images that it is given."""
    dark, path, page = tmp_path / "dark", tmp_path / "int8.nrd", tmp_path / "report.html"
    dark.mkdir()
    for seed in range(8):
        write_rgb(dark / f"{seed}.png", street_scene(20 + seed, SIZE_HW).image // 4)
    given: dict[str, Any] = {"checkpoint": checkpoint(), "data": dark, "min_agreement": 0.0}
    with pytest.warns(UserWarning):
        made = build(onnx_file(), path, precision="int8", calibration="synthetic", images=7, recipe="minmax", **given)
    exposed = "calibration set: exposed otherwise than the images of data=: brightness"
    kept = made["validation"]["warnings"]
    assert any(text.startswith(exposed) for text in kept)
    assert any(text.startswith("calibration set: 7 images, fewer than 8") for text in kept)
    assert made["exposure"]["images"] == 7
    found = validate(path, **given, report=page, structure=False, threads=1, progress=False)
    (text,) = found.to_dict()["warnings"]
    assert text.startswith(exposed)
    assert next(_lines(found)).startswith("WARNING: calibration set: exposed otherwise than the images of ")
    assert "calibration set: exposed otherwise" in page.read_text()
    assert validate(path, threads=1, progress=False).warnings == (), "its stored inputs are no other images"
