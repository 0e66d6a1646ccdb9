"""Validation as a whole: the stages of every kind of file, rebuilds, and the report."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.engine.compat import installed_flavours
from nrd_trt.errors import ConfigError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.specs import InputShape
from nrd_trt.validation.compare import Sample
from nrd_trt.validation.localise import compare_stages
from nrd_trt.validation.rebuild import rebuild_plans, recorded_config
from nrd_trt.validation.references import StoredSamples
from nrd_trt.validation.validate import Validation, validate
from tests.artefacts import SIZE_HW, build, bundle, checkpoint, plant, trained_model
from tests.faults import swap_rgb
from tests.helpers import byte_images, cached_small_model, small_model

EVIL = "<b>&\"'.nrd"


def validated(path: Path, **changes: Any) -> Validation:
    return validate(path, **{"threads": 1, "progress": False, **changes})


# --- stages ----------------------------------------------------------------------------------------------------------


def samples(count: int = 1) -> list[Sample]:
    return [Sample(image=image, restore=np.asarray, name="keyed") for image in byte_images(3, count, *SIZE_HW)]


@pytest.mark.parametrize(
    ("changes", "options", "output", "stages"),
    [
        ({}, {"input_form": "float"}, "mask", "preprocessing c1 c4 theta guidance logits mask"),
        ({}, {"mask_encoding": "u8x4"}, "mask", "preprocessing c1 c4 theta guidance logits mask"),
        ({}, {}, "both", "preprocessing c1 c4 theta guidance logits mask"),
        ({}, {}, "logits", "preprocessing c1 c4 theta guidance logits mask"),
        ({"head": "nrd_no_aspp"}, {}, "mask", "preprocessing c1 c4 theta guidance logits mask"),
        ({"head": "deeplabv3plus"}, {}, "mask", "preprocessing c1 c4 logits mask"),
        ({"head": "bilinear"}, {}, "mask", "preprocessing c4 logits mask"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_kind_of_file_shows_its_stages(
    changes: dict[str, Any], options: dict[str, Any], output: str, stages: str, precision: Any
) -> None:
    model = small_model(**changes) if changes else trained_model()
    file = export_onnx(model, ExportOptions(shape=InputShape.static(SIZE_HW), **options))
    file = select_outputs(to_precision(file, precision), output)
    found = compare_stages(model, file, samples(), mask_tolerance=0.02, threads=1)
    assert [figures.stage for figures in found.stages] == stages.split()
    if not changes or precision == "fp32":  # fp16 is too coarse for the encoder of random weights, from C4 on
        assert found.first_beyond is None, found
    compared = [figures for figures in found.stages if figures.stage not in ("preprocessing", "mask")]
    assert all(figures.error > 0 for figures in compared)  # two forms of the arithmetic, not one compared with itself


def test_a_plan_that_differs_from_its_file_is_named() -> None:
    model = cached_small_model()
    file = select_outputs(export_onnx(model, ExportOptions(shape=InputShape.static(SIZE_HW))), "mask")
    found = compare_stages(
        model, file, samples(2), mask_tolerance=0.01, plan_disagreement=0.2, has_plan=True, threads=1
    )
    assert found.first_beyond == "plan"
    assert "the file is right and the plan is not" in found.hints[0]
    assert "its masks are compared as well" in found.note
    right = compare_stages(model, file, samples(), mask_tolerance=0.01, plan_disagreement=0.0, has_plan=True, threads=1)
    assert (right.first_beyond, right.hints) == (None, ())


def test_a_checkpoint_of_another_kind_has_no_stages_in_common() -> None:
    model = cached_small_model()
    file = export_onnx(model, ExportOptions(shape=InputShape.static(SIZE_HW)))
    assert read_facts(file).head == "nrd"
    with pytest.raises(ConfigError, match=r"expected a checkpoint of the bundle's kind .*no stages in common"):
        compare_stages(small_model(head="deeplabv3plus"), file, samples(), mask_tolerance=0.01)


def test_the_worst_images_are_localised(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for index in range(4):
        write_rgb(data / f"{index}.png", street_scene(index, SIZE_HW).image)
    path = plant(bundle(), tmp_path / "faulty.nrd", swap_rgb)
    found = validated(path, checkpoint=checkpoint(), data=data, localise=True)
    assert found.localisation is not None
    worst = [figures.name for figures in found.worst_images]
    assert len(worst) > 2
    assert sorted(found.localisation.images) == sorted(worst[:2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"localise": True}, "localise= needs checkpoint="),
        ({"rebuild": 1}, "rebuild=1: expected at least 2"),
        ({"rebuild": 0}, "rebuild=0: expected at least 2"),
        ({"report": Path("report.pdf")}, "report=report.pdf: expected a name that ends in .html"),
        ({"report": Path("no/such/folder/r.html")}, "the folder no/such/folder does not exist"),
        ({"data": Path("x")}, "data= needs checkpoint="),
        ({"checkpoint": Path("c"), "labels": Path("x")}, "labels= needs data="),
    ],
)
def test_options_that_cannot_be_had_are_refused_before_any_work(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        validate("absent.nrd", **options)


# --- rebuilds --------------------------------------------------------------------------------------------------------


def test_sessions_of_onnx_runtime_draw_the_same_masks() -> None:
    found = validated(bundle(), rebuild=3).rebuilds
    assert found is not None
    assert (found.builder, found.builds, found.plans, found.same_as_bundle) == ("onnxruntime", 3, (), None)
    assert found.agreement == 1.0
    assert found.images == len(read_bundle(bundle()).references().images)
    assert found.failure(1.0) is None


def test_builds_that_draw_different_masks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(np.zeros((4, 8, 8), np.uint8))
    monkeypatch.setattr("nrd_trt.validation.rebuild._masks", lambda *_: [next(drawn) + np.eye(8, dtype=np.uint8)])
    opened = read_bundle(bundle())
    same = rebuild_plans(opened, 2, samples())
    assert same.agreement == 1.0
    other = iter([np.zeros((8, 8), np.uint8), np.eye(8, dtype=np.uint8)])
    monkeypatch.setattr("nrd_trt.validation.rebuild._masks", lambda *_: [next(other)])
    found = rebuild_plans(opened, 2, samples())
    assert found.agreement == 7 / 8
    assert "agree on 0.875000 of the pixels, at least 0.9 needed" in str(found.failure(0.9))


@pytest.mark.skipif("tensorrt-rtx" not in installed_flavours(), reason="no tensorrt-rtx: pip install nrd-trt[rtx]")
def test_plans_are_built_again_and_compared() -> None:
    path = bundle("fp16", "tensorrt-rtx")
    opened, stages = read_bundle(path), list[str]()
    kept = {file.name: file.read_bytes() for file in path.iterdir()}
    stored = StoredSamples(opened.references())
    found = rebuild_plans(opened, 2, stored, threads=1, progress=False, on_stage=stages.append)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == kept
    assert stages == ["build 1 of 2 with tensorrt-rtx", "build 2 of 2 with tensorrt-rtx"]
    assert len(found.plans) == len(found.types_found) == 2
    assert found.types_found[0] == opened.record.to_dict()["precision"]["found"]
    assert 1 <= found.distinct_plans <= 2
    assert found.same_as_bundle == found.plans.count(opened.record.to_dict()["files"]["model.plan"])
    if found.images == 0:
        assert found.agreement is None
        assert "this machine cannot run them" in found.note
    else:
        assert found.agreement is not None


def test_the_recorded_settings_are_those_of_the_build() -> None:
    opened = read_bundle(bundle())
    settings = {"workspace_mib": 64, "optimization_level": 2, "version_compatible": True, "hardware_compatible": False}
    recorded = {"name": "tensorrt-rtx", "compute_capabilities": ("8.6",), **settings}
    built = replace(opened.record.builder, **recorded)  # type: ignore[arg-type]
    config = recorded_config(replace(opened, record=replace(opened.record, builder=built)))
    assert {"compute_capabilities": ("8.6",), **settings}.items() <= vars(config).items()


# --- report ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects elements, what they load, and the text; open elements must be closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.elements: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(3):
        scene = street_scene(index, (72, 100))
        write_rgb(folder / "images" / f"<i>{index}.png", scene.image)
        Image.fromarray(scene.label).save(folder / "labels" / f"<i>{index}.png")
    return folder


def test_the_report_tells_everything_and_loads_nothing(tmp_path: Path, data: Path) -> None:
    path = plant(bundle(), tmp_path / EVIL, swap_rgb)
    report = tmp_path / "report.html"
    found = validated(path, checkpoint=checkpoint(), data=data, localise=True, rebuild=2, report=report)
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.opened == []
    assert not {"script", "link", "iframe", "object"} & set(page.elements)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "<i>" not in text
    assert "<b>&" not in text
    assert f"Validation of {EVIL}" in page.text
    assert "NOT PASSED" in page.text
    for failure in found.failures:
        assert failure in page.text
    for part in (
        "Gates",
        "Stages: PyTorch against the file",
        "Classes",
        "Agreement per image",
        "Flips",
        "Worst images",
    ):
        assert part in page.text
    for part in ("Build stability", "Precision: asked and found", "Environment", "red and blue are swapped"):
        assert part in page.text
    assert f"{found.pixel_agreement:.6f}" in page.text
    assert all(name in page.text for name in found.per_class_between)
    assert "&lt;i&gt;0.png" in text


def test_the_pictures_of_the_report_are_those_of_the_worst_images(tmp_path: Path, data: Path) -> None:
    path = plant(bundle(), tmp_path / "faulty.nrd", swap_rgb)
    report = tmp_path / "report.html"
    found = validated(path, checkpoint=checkpoint(), data=data, report=report)
    sources = Page(report.read_text(encoding="utf-8")).sources
    assert len(sources) == 4 * len(found.worst_images) == 12
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2])))) for s in sources[:4]]
    assert {picture.shape for picture in pictures} == {(*SIZE_HW, 3)}
    shown = found.pictures[0]
    np.testing.assert_array_equal(pictures[0], shown.image)
    palette = np.array(read_bundle(path).graph.info.palette, np.uint8)
    np.testing.assert_array_equal(pictures[1], palette[shown.reference.mask])
    np.testing.assert_array_equal(pictures[2], palette[shown.engine])
    flipped = shown.reference.mask != shown.engine
    grey = (pictures[3] == pictures[3][..., :1]).all(-1)
    assert not grey[flipped].any()
    assert grey.any()


def test_a_report_without_checkpoint_labels_or_flips(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert validated(bundle(), report=report).passed
    page = Page(report.read_text(encoding="utf-8"))
    assert "PASSED" in page.text
    assert "No pixel differs" in page.text
    assert page.sources == []
    assert "no labels" in page.text
    assert "no checkpoint" in page.text
    assert "Stages" not in page.text


def test_an_existing_report_needs_force(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        validated(bundle(), report=report)
    assert report.read_text() == "mine"
    validated(bundle(), report=report, force=True)
    assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_equal_runs_write_equal_reports(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        validated(bundle("fp16"), checkpoint=checkpoint(), localise=True, report=tmp_path / f"{name}.html")
        pages.append((tmp_path / f"{name}.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_build_of_a_file_that_is_not_what_it_claims_does_not_pass(tmp_path: Path) -> None:
    """An fp32 file whose metadata says fp16, built as it is: agreement is perfect, the promise is not kept."""
    path = plant(bundle(), tmp_path / "claims.nrd", lambda model: _claim_fp16(model))
    facts = build(path, tmp_path / "again.nrd")
    assert facts["passed"] is False
    assert "precision fp16 is claimed and not delivered" in facts["validation"]["failures"][0]


def _claim_fp16(model: Any) -> None:
    from nrd_trt.graph.metadata import with_precision

    with_precision(model, "fp16")


def test_a_baseline_is_validated_with_its_stages(tmp_path: Path) -> None:
    save_checkpoint(small_model(head="deeplabv3plus"), tmp_path / "baseline.safetensors")
    build(tmp_path / "baseline.safetensors", tmp_path / "b.nrd", precision="fp32", size=(64, 96))
    found = validated(tmp_path / "b.nrd", checkpoint=tmp_path / "baseline.safetensors", localise=True)
    assert found.failures == ()
    assert found.localisation is not None
    assert [figures.stage for figures in found.localisation.stages] == ["preprocessing", "c1", "c4", "logits", "mask"]
