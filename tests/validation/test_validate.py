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
import onnx
import pytest
from PIL import Image

from nrd_trt.cli.validate import _lines
from nrd_trt.data import samples as data_samples
from nrd_trt.data.images import read_image
from nrd_trt.data.samples import Sample
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.exporting import onnx_export
from nrd_trt.graph.metadata import with_precision
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.machine.gpu import Gpu
from nrd_trt.model.network import Segmentor
from nrd_trt.runtime.select import RunOptions
from nrd_trt.specs import InputShape
from nrd_trt.validation.localise import compare_stages
from nrd_trt.validation.rebuild import rebuild_plans, recorded_config
from nrd_trt.validation.references import StoredSamples
from nrd_trt.validation.validate import Validation, validate
from tests.artefacts import SIZE_HW, build, bundle, checkpoint, needs_rtx, plant, scenes, trained_model
from tests.building.plugin_machine import show_to_runners
from tests.faults import double, swap_rgb
from tests.helpers import byte_images, cached_small_model, small_model

EVIL = "<b>&\"'.nrd"


def validated(path: Path, **changes: Any) -> Validation:
    return validate(path, **{"threads": 1, "progress": False, **changes})


# --- stages ----------------------------------------------------------------------------------------------------------


def samples(count: int = 1) -> list[Sample]:
    return [Sample(image=image, restore=np.asarray, name="keyed") for image in byte_images(3, count, *SIZE_HW)]


ALL = "preprocessing c1 c4 theta guidance logits mask"


def file_of(model: Segmentor, precision: Any, output: str = "mask", **options: Any) -> onnx.ModelProto:
    form = onnx_export.ExportOptions(shape=InputShape.static(SIZE_HW), **options)
    file = onnx_export.export_onnx(model, form)
    return select_outputs(to_precision(file, precision), output)


def other_head(head: str) -> Segmentor:
    """A random head on the trained encoder, which 16 bits are enough for."""
    model = small_model(head=head)
    model.backbone.load_state_dict(trained_model().backbone.state_dict())
    return model


@pytest.mark.parametrize(
    ("head", "options", "output", "precision", "stages"),
    [
        ("nrd", {"input_form": "float"}, "mask", "fp32", ALL),
        ("nrd", {"mask_encoding": "u8x4"}, "mask", "fp16", ALL),
        ("nrd", {}, "both", "fp32", ALL),
        ("nrd", {}, "logits", "fp16", ALL),
        ("nrd_no_aspp", {}, "mask", "fp32", ALL),
        ("deeplabv3plus", {}, "mask", "fp16", "preprocessing c1 c4 logits mask"),
        ("bilinear", {}, "mask", "fp32", "preprocessing c4 logits mask"),
    ],
)
def test_every_kind_of_file_shows_its_stages(
    head: str, options: dict[str, Any], output: str, precision: Any, stages: str
) -> None:
    model = trained_model() if head == "nrd" else other_head(head)
    file = file_of(model, precision, output, **options)
    found = compare_stages(model, file, samples(), mask_tolerance=0.02, threads=1)
    assert [figures.stage for figures in found.stages] == stages.split()
    assert found.first_beyond is None, found
    compared = [figures for figures in found.stages if figures.stage not in ("preprocessing", "mask")]
    assert all(figures.error > 0 for figures in compared)  # two forms of the arithmetic, not one compared with itself


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("head", "layer", "stage"),
    [("deeplabv3plus", "decode_head.conv_seg", "logits"), ("bilinear", "backbone.layer5.0.conv.1.conv", "c4")],
)
def test_a_fault_in_a_baseline_is_named(head: str, layer: str, stage: str, precision: str) -> None:
    model = other_head(head)
    file = file_of(model, precision)
    double(f"{layer}.weight")(file)
    found = compare_stages(model, file, samples(), mask_tolerance=0.02, threads=1)
    assert found.first_beyond == stage
    assert found.hints == (f"`{layer}`: weight is ×2 of the expected",)


def test_a_plan_that_differs_from_its_file_is_named() -> None:
    model = cached_small_model()
    file = file_of(model, "fp32")
    found = compare_stages(
        model, file, samples(2), mask_tolerance=0.01, plan_disagreement=0.2, has_plan=True, threads=1
    )
    assert found.first_beyond == "plan"
    assert "every stage of the file is within its tolerance, the plan's masks are not" in found.hints[0]
    assert "its masks are compared as well" in found.note
    right = compare_stages(model, file, samples(), mask_tolerance=0.01, plan_disagreement=0.0, has_plan=True, threads=1)
    assert (right.first_beyond, right.hints) == (None, ())


def test_a_checkpoint_of_another_kind_has_no_stages_in_common() -> None:
    file = file_of(cached_small_model(), "fp32")
    with pytest.raises(ConfigError, match=r"expected a checkpoint of the bundle's kind .*no stages in common"):
        compare_stages(small_model(head="deeplabv3plus"), file, samples(), mask_tolerance=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"localise": True}, "localise= needs checkpoint="),
        ({"structure": False}, "structure= needs checkpoint="),
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


def test_every_image_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that stages are compared on are kept, whether masks differ on all of them or on none."""
    read = list[str]()
    monkeypatch.setattr(data_samples, "read_image", lambda path: read.append(path.name) or read_image(path))
    data = scenes(tmp_path / "scenes", 4)
    for precision in ("fp32", "bf16"):
        read.clear()
        found = validated(bundle(precision), checkpoint=checkpoint(), data=data, localise=True)
        assert read == [f"{index:02}.png" for index in range(4)]
        assert found.soundness is not None and found.localisation is not None
        worst = tuple(one.figures.name for one in found.pictures[:2])
        assert found.localisation.images == found.soundness.images[:2] == worst
        assert found.localisation.images[: len(found.worst_images)] == tuple(one.name for one in found.worst_images[:2])


# --- rebuilds --------------------------------------------------------------------------------------------------------


def test_sessions_of_onnx_runtime_draw_the_same_masks() -> None:
    found = validated(bundle(), rebuild=3).rebuilds
    assert found is not None
    assert (found.builder, found.builds, found.plans, found.same_as_bundle) == ("onnxruntime", 3, (), None)
    assert found.agreement == 1.0
    assert found.images == len(read_bundle(bundle()).references().images)
    assert found.failure(1.0) is None


def test_builds_that_draw_different_masks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([np.zeros((8, 8), np.uint8), np.eye(8, dtype=np.uint8)])
    monkeypatch.setattr("nrd_trt.validation.rebuild._masks", lambda *_: [next(drawn)])
    found = rebuild_plans(read_bundle(bundle()), 2, samples())
    assert found.agreement == 7 / 8
    assert "agree on 0.875000 of the pixels, at least 0.9 needed" in str(found.failure(0.9))


@needs_rtx
def test_plans_are_built_again_and_compared() -> None:
    path = bundle("fp16", "tensorrt-rtx")
    opened, stages = read_bundle(path), list[str]()
    kept = {file.name: file.read_bytes() for file in path.iterdir()}
    stored = StoredSamples(opened.references())
    found = rebuild_plans(opened, 2, stored, RunOptions(threads=1), progress=False, on_stage=stages.append)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == kept
    assert stages == ["build 1 of 2 with tensorrt-rtx", "build 2 of 2 with tensorrt-rtx"]
    assert len(found.plans) == len(found.types_found) == 2
    assert found.types_found[0] == opened.record.to_dict()["precision"]["found"]
    assert 1 <= found.distinct_plans <= 2
    assert found.same_as_bundle == found.plans.count(opened.record.to_dict()["files"]["model.plan"])
    cannot_run = "this machine cannot run them" in found.note
    assert (found.agreement is None) is cannot_run
    assert (found.images == 0) is cannot_run


def test_the_recorded_settings_are_those_of_the_build() -> None:
    opened = read_bundle(bundle())
    settings = {"workspace_mib": 64, "optimization_level": 2, "version_compatible": True, "hardware_compatible": False}
    settings |= {"builder_options": {"max_aux_streams": "2"}}  # type: ignore[dict-item]
    recorded = {"name": "tensorrt-rtx", "compute_capabilities": ("8.6",), **settings}
    built = replace(opened.record.builder, **recorded)  # type: ignore[arg-type]
    for tf32, allowed in {None: True, True: True, False: False}.items():  # what is not recorded was TensorRT's default
        of_build = replace(opened.record, builder=replace(built, tf32=tf32))
        expected = {"compute_capabilities": ("8.6",), **settings, "tf32": allowed}
        assert vars(recorded_config(replace(opened, record=of_build))) == expected


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

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Validation, str]:
    """A validation of a faulty bundle with everything that can be asked for, and its report."""
    folder = tmp_path_factory.mktemp("reported")
    data = scenes(folder / "data", 3, labels=True, size_hw=(72, 100))
    for kind in ("images", "labels"):
        for path in (data / kind).iterdir():
            path.rename(path.with_name(f"<i>{path.name}"))
    faulty, report = plant(bundle(), folder / EVIL, swap_rgb), folder / "report.html"
    found = validated(faulty, checkpoint=checkpoint(), data=data, localise=True, rebuild=2, report=report)
    return found, report.read_text(encoding="utf-8")


def test_the_report_tells_everything_and_loads_nothing(reported: tuple[Validation, str]) -> None:
    found, text = reported
    page = Page(text)
    assert page.opened == []
    assert not {"script", "link", "iframe", "object"} & set(page.elements)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "<i>" not in text
    assert "<b>&" not in text
    assert "&lt;i&gt;00.png" in text
    for words in (
        f"Validation of {EVIL}",
        "NOT PASSED",
        *found.failures,
        *("Gates", "Stages: PyTorch against the file", "Classes", "Agreement per image", "Flips", "Worst images"),
        *("Build stability", "Precision: asked and found", "Environment", "red and blue are swapped"),
        f"{found.pixel_agreement:.6f}",
        *found.per_class_between,
    ):
        assert words in page.text


def test_the_worst_images_are_localised_and_shown(reported: tuple[Validation, str]) -> None:
    found, text = reported
    assert found.localisation is not None
    assert sorted(found.localisation.images) == sorted(figures.name for figures in found.worst_images[:2])
    sources = Page(text).sources
    assert len(sources) == 4 * len(found.worst_images) == 12
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2])))) for s in sources[:4]]
    assert {picture.shape for picture in pictures} == {(*SIZE_HW, 3)}
    shown = found.pictures[0]
    np.testing.assert_array_equal(pictures[0], shown.sample.image)
    palette = np.array(read_bundle(bundle()).graph.info.palette, np.uint8)
    np.testing.assert_array_equal(pictures[1], palette[shown.reference.mask])
    np.testing.assert_array_equal(pictures[2], palette[shown.engine])
    flipped = shown.reference.mask != shown.engine
    grey = (pictures[3] == pictures[3][..., :1]).all(-1)
    assert not grey[flipped].any()
    assert grey.any()


def test_a_report_without_checkpoint_labels_or_flips_replaces_another_with_force(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(mine := "<title>Validation of mine")
    with pytest.raises(ConfigError, match="already exists"):
        validated(bundle(), report=report)
    assert report.read_text() == mine
    assert validated(bundle(), report=report, force=True).passed
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = Page(report.read_text(encoding="utf-8"))
    for words in ("PASSED", "No pixel differs", "no labels", "no checkpoint"):
        assert words in page.text
    assert page.sources == []
    assert "Stages" not in page.text


def test_equal_runs_write_equal_reports(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        validated(bundle("fp16"), checkpoint=checkpoint(), localise=True, report=tmp_path / f"{name}.html")
        pages.append((tmp_path / f"{name}.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_build_of_a_file_that_is_not_what_it_claims_does_not_pass(tmp_path: Path) -> None:
    """An fp32 file whose metadata says fp16, built as it is: agreement is perfect, the promise is not kept."""
    path = plant(bundle(), tmp_path / "claims.nrd", lambda model: with_precision(model, "fp16"))
    facts = build(path, tmp_path / "again.nrd")
    assert facts["passed"] is False
    assert "precision fp16 is claimed and not delivered" in facts["validation"]["failures"][0]


@needs_rtx
def test_a_plan_that_could_have_run_and_did_not_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for who asks for ONNX Runtime, whose verdict is about ONNX Runtime."""
    path = bundle("fp16", "tensorrt-rtx")
    show_to_runners(monkeypatch, Gpu(name="H200", compute_capability="9.0"))
    options: dict[str, Any] = {"min_agreement": 0.5, "threads": 1, "progress": False}
    why = (
        "compute capability: built for 8.0, 8.6, 8.9, 12.0 or later, this is 9.0, for which TensorRT-RTX makes no plan"
    )
    with pytest.warns(UserWarning, match=f"ONNX Runtime takes its place: {why}"):
        found = validate(path, **options)
    assert (found.passed, found.runner, found.plan_ran, found.has_plan) == (False, "onnxruntime", False, True)
    said = f"the plan did not run, although this machine has a GPU: {why}"
    assert found.failures == (f"{said}; runner='onnxruntime' judges the ONNX file alone",)
    named = validate(path, runner="onnxruntime", **options)
    assert (named.passed, named.runner, named.plan_ran) == (True, "onnxruntime", False)
    assert named.to_dict()["plan_ran"] is False
    assert any("onnxruntime, simulated arithmetic; the plan was built but not run here" in row for row in _lines(named))
