"""From checkpoint, ONNX file and bundle to a validated bundle, with and without TensorRT, with and without PyTorch."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import nrd_trt
from nrd_trt import gates
from nrd_trt.data.samples import SampleSource
from nrd_trt.engine.builder import BuildOptions, build_engine
from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, RECORD_FILE, REFERENCE_FILE, read_bundle
from nrd_trt.errors import BundleError, ConfigError, ExportError, MissingDependencyError
from nrd_trt.exporting.onnx_export import exporter_record
from nrd_trt.figures import Parity
from nrd_trt.files import sha256_file
from nrd_trt.gates import Gates
from nrd_trt.graph.metadata import load_onnx, read_facts
from nrd_trt.specs import InputShape, Precision
from nrd_trt.validation.rebuild import recorded_config
from tests.artefacts import (
    LENIENT,
    SIZE_HW,
    build,
    bundle,
    checkpoint,
    content,
    environment,
    listing,
    needs_rtx,
    onnx_file,
    other_checkpoint,
    scenes,
    untrained_checkpoint,
    workspace,
)

BUILDERS = ["onnxruntime", pytest.param("tensorrt-rtx", marks=needs_rtx)]


@pytest.fixture(scope="module")
def fp16_file() -> Path:
    """The ONNX file of the fp16 bundle, as an export in fp16 would write it."""
    return Path(shutil.copy(bundle("fp16") / ONNX_FILE, workspace() / "fp16.onnx"))


# --- from a checkpoint -----------------------------------------------------------------------------------------------


@needs_rtx
def test_checkpoint_to_a_bundle_with_a_plan(tmp_path: Path) -> None:
    """The main job: defaults except for the size; `auto` takes the TensorRT that is there."""
    stages: list[str] = []
    target = tmp_path / "city.nrd"
    made = nrd_trt.build(
        str(checkpoint()), str(target), size=SIZE_HW, min_agreement=LENIENT, progress=False, on_stage=stages.append
    )
    record = read_bundle(target).record
    assert made.passed and made.record == record
    assert listing(tmp_path) == ["city.nrd", *(f"city.nrd/{name}" for name in sorted([RECORD_FILE, *record.files]))]
    assert record.files.keys() == {ONNX_FILE, PLAN_FILE, REFERENCE_FILE}
    assert record.checkpoint is not None and record.exporter == exporter_record()
    assert (record.checkpoint.name, record.checkpoint.sha256) == (checkpoint().name, sha256_file(checkpoint()))
    assert record.builder.name == ("tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt-rtx")
    assert record.builder.version
    assert record.precision.asked == "fp16" and record.precision.found and record.precision.found["half"] > 50
    found = {layer.type for layer in record.precision.layers if layer.kind == "convolution"}
    assert found == {"half"} | ({"float"} if record.precision.kept_fp32 else set())
    assert record.parity is not None and (record.parity.failures, record.parity.arithmetic) == ((), "simulated")
    validation = record.validation
    assert record.passed is validation.passed is True
    assert (validation.reference, validation.samples, validation.images) == ("torch", "synthetic scenes", 4)
    assert (validation.runner, validation.arithmetic) == ("onnxruntime", "simulated")
    assert (validation.plan_ran, validation.checkpoint_matches) == (False, None)
    assert (validation.gates.min_agreement, validation.gates.max_miou_drop) == (LENIENT, 0.002)
    assert LENIENT <= (validation.pixel_agreement or 0) < 1
    assert record.model.shape.opt_hw == SIZE_HW
    assert len(made.references().images) == 4
    assert [stage.split()[0] for stage in stages] == ["exporting", "building", "validating"]
    assert str(tmp_path) not in json.dumps(record.to_dict())


def test_the_recorded_call_holds_every_argument_that_changes_the_masks(tmp_path: Path) -> None:
    given: dict[str, Any] = {"mean": (1.0, 2.0, 3.5), "std": (4.0, 5.0, 6.0), "bgr": True, "num_classes": 11}
    given |= {"min_agreement": 0.9, "size": (64, np.int64(96)), "outputs": ("mask", "logits"), "max_miou_drop": 0.5}
    given |= {"data": scenes(tmp_path / "frames", 1, labels=True), "fit": "pad", "resample": "cv2", "ignore_index": 3}
    facts = build(checkpoint(), tmp_path / "a.nrd", precision="fp32", builder="auto", **given)
    call = ast.parse(facts["command"], mode="eval").body
    assert isinstance(call, ast.Call) and ast.unparse(call.func) == "nrd_trt.build"
    assert [ast.literal_eval(value) for value in call.args] == [checkpoint().name, "NAME.nrd"]
    found = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    assert found.pop("builder") == facts["builder"]["name"]
    assert found == {**given, "data": "frames", "precision": "fp32", "decode": "onnx", "force": True}
    assert (facts["model"]["info"]["channel_order"], facts["model"]["output"]) == ("bgr", "both")
    described = build(onnx_file(), tmp_path / "b.nrd", precision="fp32", describe=str.upper)
    assert described["command"].startswith("NRD_TRT.BUILD('FP32_MASK.ONNX', 'NAME.NRD', PRECISION='FP32'")


@pytest.mark.parametrize("builder", ["onnxruntime", pytest.param("tensorrt-rtx", marks=needs_rtx)])
def test_tf32_is_recorded_and_shows_in_the_masks_evidence(builder: Any, tmp_path: Path) -> None:
    target = tmp_path / "a.nrd"
    for asked, arithmetic in {False: "native", True: "tf32"}.items():
        facts = build(onnx_file(), target, precision="fp32", builder=builder, tf32=asked, force=True)
        assert facts["builder"]["tf32"] is asked
        assert ("tf32=True" in facts["command"]) is asked
        assert facts["validation"]["arithmetic"] == arithmetic
        with nrd_trt.open_bundle(target, threads=1) as engine:
            assert engine.arithmetic == arithmetic


# --- from an ONNX file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "builder"),
    [("fp32", "onnxruntime"), ("fp16", "onnxruntime")]
    + [pytest.param(precision, "tensorrt-rtx", marks=needs_rtx) for precision in ("fp32", "bf16")],
)
def test_onnx_file_with_its_checkpoint(precision: Precision, builder: str) -> None:
    record = read_bundle(bundle(precision, builder)).record
    assert record.precision.asked == record.model.precision == precision
    assert (record.validation.reference, record.validation.checkpoint_matches) == ("torch", True)
    assert record.validation.arithmetic == ("native" if precision == "fp32" else "simulated")
    assert (record.validation.pixel_agreement or 0) >= LENIENT
    assert record.checkpoint is not None
    assert (record.checkpoint.name, record.checkpoint.sha256) == (None, sha256_file(checkpoint()))
    assert record.parity is None
    assert record.exporter == record.model.exporter is not None
    if builder == "onnxruntime":
        assert (record.precision.found, record.precision.layers, record.builder.version) == (None, (), None)
        assert PLAN_FILE not in record.files
        return
    convolutions = [layer.type for layer in record.precision.layers if layer.kind == "convolution"]
    asked = convolutions.count({"fp32": "float", "bf16": "bf16"}[precision])
    assert asked == len(convolutions) if precision == "fp32" else asked > 0.7 * len(convolutions)
    assert record.precision.found and sum(record.precision.found.values()) == len(record.precision.layers)
    assert PLAN_FILE in record.files


def test_fp32_onnx_file_alone_is_its_own_reference(tmp_path: Path) -> None:
    facts = build(onnx_file(), tmp_path / "a.nrd")
    validation = facts["validation"]
    assert facts["precision"]["asked"] == "fp16"  # the default
    assert (validation["reference"], validation["checkpoint_matches"], validation["tie_share"]) == ("onnx", None, None)
    assert LENIENT <= validation["pixel_agreement"] < 1  # compared with the fp32 file, not with itself
    assert read_bundle(tmp_path / "a.nrd").references().source == "onnx"


def test_16_bit_file_with_its_checkpoint(fp16_file: Path, tmp_path: Path) -> None:
    facts = build(fp16_file, tmp_path / "a.nrd", checkpoint=checkpoint())
    assert facts["precision"]["asked"] == "fp16"  # its own
    assert facts["validation"]["reference"] == "torch"
    assert (tmp_path / "a.nrd" / ONNX_FILE).read_bytes() == fp16_file.read_bytes()


def test_other_checkpoint_does_not_pass(tmp_path: Path) -> None:
    facts = build(onnx_file(), tmp_path / "a.nrd", checkpoint=other_checkpoint(), min_agreement=0.0)
    assert (facts["validation"]["checkpoint_matches"], facts["passed"]) == (False, False)
    assert facts["validation"]["pixel_agreement"] < 0.5


NO_MODEL = onnx.helper.make_model(
    onnx.helper.make_graph([], "empty", [], []), opset_imports=[onnx.helper.make_opsetid("", 19)]
).SerializeToString()


def test_what_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    source, whole = tmp_path / "m.onnx", onnx_file().read_bytes()
    for data in (b"", b"not a protobuf", NO_MODEL, whole[: len(whole) // 2]):
        source.write_bytes(data)
        with pytest.raises(ExportError, match="export it"):
            build(source, tmp_path / "a.nrd")
        assert listing(tmp_path) == ["m.onnx"]


# --- from a bundle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
def test_bundle_is_rebuilt_from_what_it_holds(builder: str, tmp_path: Path) -> None:
    source = bundle("fp16")
    made = build(source, tmp_path / "b.nrd", builder=builder)
    old = read_bundle(source).record.to_dict()
    assert made["validation"]["reference"] == "stored"
    assert made["validation"]["images"] == len(read_bundle(source).references().images)
    for key in ("pixel_agreement", "tie_share"):
        assert made["validation"][key] == pytest.approx(old["validation"][key])
    for key in ("checkpoint", "model", "fit", "resample", "exporter"):
        assert made[key] == old[key]
    assert made["precision"]["kept_fp32"] == old["precision"]["kept_fp32"]
    assert (made["builder"]["name"], PLAN_FILE in made["files"]) == (builder, builder != "onnxruntime")
    for name in (ONNX_FILE, REFERENCE_FILE):
        assert (tmp_path / "b.nrd" / name).read_bytes() == (source / name).read_bytes()


def test_bundle_of_a_checkpoint_is_rebuilt_in_its_place_and_keeps_its_exporter(tmp_path: Path) -> None:
    target = tmp_path / "a.nrd"
    build(untrained_checkpoint(11), target, size=SIZE_HW, precision="fp32")
    made = build(target, target, force=True, checkpoint=untrained_checkpoint(11))
    assert made["exporter"]["revision"] == exporter_record().revision
    assert (made["validation"]["reference"], made["validation"]["checkpoint_matches"]) == ("torch", True)
    assert made["command"].startswith("nrd_trt.build('a.nrd', 'NAME.nrd', precision='fp32'")
    assert {name.split("/")[0] for name in listing(tmp_path)} == {"a.nrd"}


WITHOUT_TORCH = """
import sys
from pathlib import Path

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnxscript"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, NoTorch())
import numpy as np
import nrd_trt

source, onnx_file, target, builder = sys.argv[1:]
for index, path in enumerate((source, onnx_file)):
    output = Path(target, f"{index}.nrd")
    nrd_trt.build(path, output, builder=builder, progress=False, min_agreement=0.9)
    verdict = nrd_trt.validate(output, progress=False, min_agreement=0.9)
    assert verdict.passed, verdict
    mask = nrd_trt.open_bundle(output).predict(np.zeros((50, 70, 3), np.uint8))
    assert mask.shape == (50, 70) and mask.dtype == np.uint8
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("builder", BUILDERS)
def test_bundle_and_onnx_file_need_no_pytorch(builder: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, bundle("fp16"), onnx_file(), tmp_path, builder]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "0.nrd" / PLAN_FILE).exists() == (builder != "onnxruntime")


# --- equal builds ----------------------------------------------------------------------------------------------------


def test_the_number_of_threads_shows_in_no_byte(tmp_path: Path) -> None:
    """Those of PyTorch and of ONNX Runtime; the largest difference of a logit is told by the export alone."""
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            options = {"precision": "fp32", "builder": "onnxruntime", "threads": count, "progress": False}
            nrd_trt.build(checkpoint(), tmp_path / f"{count}.nrd", size=SIZE_HW, **options)
    finally:
        torch.set_num_threads(threads)
    assert content(tmp_path / "1.nrd") == content(tmp_path / "2.nrd")
    assert read_bundle(tmp_path / "1.nrd").record.parity == Parity(
        max_abs=None, agreement=1.0, arithmetic="native", failures=()
    )


@pytest.mark.parametrize("builder", BUILDERS)
def test_two_builds_have_the_same_bytes(builder: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build(onnx_file(), tmp_path / name / f"{name}.nrd", builder=builder, checkpoint=checkpoint())
    assert content(tmp_path / "a" / "a.nrd") == content(tmp_path / "b" / "b.nrd")


# --- arguments that cannot be had ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["an ONNX file", "a bundle"])
def test_form_is_fixed_in_files(kind: str, tmp_path: Path) -> None:
    source = onnx_file() if kind == "an ONNX file" else bundle()
    form: dict[str, Any] = {"input_form": "float", "outputs": ("logits",), "mask_encoding": "uint8", "batch": 2}
    form |= {"size": (64, 64), "dynamic": ((64, 64), (64, 64), (96, 96))}
    for name, value in form.items():
        with pytest.raises(ConfigError, match=f"^{name}=: fixed in {kind}"):
            build(source, tmp_path / "a.nrd", **{name: value})
    assert listing(tmp_path) == []


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ("onnx", {"builder": "tvm"}, ConfigError, "builder='tvm': expected one of 'auto', 'tensorrt', "),
    ("onnx", {"precision": 16}, ConfigError, "precision=16: expected one of 'fp32'"),
    ("onnx", {"fit": "crop"}, ConfigError, "fit='crop': expected one of 'resize'"),
    ("onnx", {"resample": "lanczos"}, ConfigError, "resample='lanczos': expected one of 'cv2', 'pillow'"),
    ("onnx", {"threads": "two"}, ConfigError, "threads='two': expected a whole number, 1 or more"),
    ("onnx", {"data": 3}, ConfigError, "data=3: expected a path"),
    ("onnx", {"presicion": "fp16"}, ConfigError, "presicion=: expected a known argument"),
    ("onnx", {"decode": "cuda"}, ConfigError, "decode='cuda': expected one of 'auto', 'plugin', 'onnx'"),
    ("onnx", {"compute_capabilities": ["8.6"]}, ConfigError, "compute_capabilities=: only builder='tensorrt-rtx'"),
    ("onnx", {"builder": "tensorrt-rtx", "hardware_compatible": True}, ConfigError, "TensorRT-RTX ignores it"),
    (
        "onnx",
        {"builder_options": {"max_aux_streams": 2}},
        ConfigError,
        "builder_options=: builder='onnxruntime' builds",
    ),
    ("onnx", {"min_agreement": 99.5}, ConfigError, "min_agreement=99.5: expected a fraction in 0-1"),
    ("onnx", {"max_miou_drop": 2.0}, ConfigError, "fraction in 0-1"),
    ("onnx", {"labels": "labels"}, ConfigError, "labels.* needs .*data"),
    ("onnx", {"output": "/nowhere/a.nrd"}, ConfigError, "the folder /nowhere does not exist"),
    ("onnx", {"checkpoint": untrained_checkpoint}, ConfigError, "expected 11 classes .*got 19"),
    ("fp16", {}, ConfigError, r"fp16\.onnx: a fp16 file cannot prove its own masks; give checkpoint="),
    ("fp16", {"precision": "fp32"}, ConfigError, "typed in fp16, precision='fp32' was asked for"),
    ("bundle", {"precision": "bf16"}, ConfigError, "holds fp32, precision='bf16' was asked for"),
    ("bundle", {"data": "data"}, ConfigError, "data= needs checkpoint="),
    ("bundle", {"labels": "labels"}, ConfigError, "labels= needs data="),
    ("bundle", {"fit": "pad"}, ConfigError, "fit= needs checkpoint="),
    ("bundle", {"resample": "cv2"}, ConfigError, "resample= needs checkpoint="),
    ("bundle", {"checkpoint": untrained_checkpoint}, ConfigError, "expected 11 classes .*got 19"),
    ("checkpoint", {"checkpoint": checkpoint}, ConfigError, "checkpoint= belongs to builds from an ONNX file"),
    ("checkpoint", {"outputs": "mask"}, ConfigError, "outputs='mask': expected different names in a tuple"),
    ("checkpoint", {"outputs": ("mask", "boxes")}, ConfigError, "outputs='boxes': expected one of 'mask', 'logits'"),
    ("checkpoint", {"mask_encoding": "u8x4", "outputs": ("logits",)}, ConfigError, "expected 'mask' among outputs="),
    ("untrained", {"precision": "int8"}, ConfigError, "precision='int8': give calibration="),
    ("absent.pth", {}, ConfigError, r"absent\.pth: expected a checkpoint, an ONNX file or a bundle"),
    ("absent.nrd", {}, BundleError, r"absent\.nrd: expected a bundle folder"),
    (7, {}, ConfigError, "source=7: expected a path"),
]


@pytest.mark.parametrize(("source", "changes", "error", "match"), BAD)
def test_bad_arguments(
    source: Any, changes: dict[str, Any], error: type[Exception], match: str, fp16_file: Path, tmp_path: Path
) -> None:
    sources = {"onnx": onnx_file(), "fp16": fp16_file, "bundle": bundle(), "checkpoint": checkpoint()}
    sources["untrained"] = untrained_checkpoint()  # those of the zoo come with ranges
    given = {name: value() if callable(value) else value for name, value in changes.items()}
    target = given.pop("output", tmp_path / "a.nrd")
    with pytest.raises(error, match=match):
        build(sources.get(source, source), target, **given)
    assert listing(tmp_path) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="enterprise TensorRT is installed")
def test_absent_builder_asked_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'nrd-trt\[trt\]'.*JetPack"):
        build(onnx_file(), tmp_path / "a.nrd", builder="tensorrt")


@needs_rtx
def test_compute_capabilities_are_recorded(tmp_path: Path) -> None:
    given: dict[str, Any] = {"compute_capabilities": ["8.6", "8.9"], "optimization_level": 2}
    facts = build(bundle("fp16"), tmp_path / "a.nrd", builder="tensorrt-rtx", **given)
    assert [*facts["builder"]["compute_capabilities"], facts["builder"]["optimization_level"]] == ["8.6", "8.9", 2]
    assert "optimization_level=2, compute_capabilities=('8.6', '8.9')" in facts["command"]


@needs_rtx
def test_builder_options_reach_the_plan_and_are_recorded(tmp_path: Path) -> None:
    """TensorRT-RTX writes the number of streams that it may use into the plan."""
    options = {"tactic_shared_memory": 65536, "max_aux_streams": 0}
    made = build(bundle("fp16"), tmp_path / "a.nrd", builder="tensorrt-rtx", builder_options=options)
    assert made["builder"]["builder_options"] == {"max_aux_streams": "0", "tactic_shared_memory": "65536"}
    assert "builder_options={'max_aux_streams': '0', 'tactic_shared_memory': '65536'}" in made["command"]
    opened = read_bundle(tmp_path / "a.nrd")
    config, model = recorded_config(opened), load_onnx(opened.onnx_path)
    assert config.builder_options == made["builder"]["builder_options"]
    without = BuildOptions(flavour="tensorrt-rtx", config=replace(config, builder_options={}), progress=False)
    assert (opened.path / PLAN_FILE).stat().st_size != len(build_engine(model, without).plan)
    with pytest.raises(ConfigError, match=r"builder_options=: .* has no 'fp16'; it has avg_timing"):
        build(tmp_path, tmp_path / "b.nrd", builder="tensorrt-rtx", builder_options={"fp16": True})  # before all work


def test_what_can_be_known_is_found_before_the_work(tmp_path: Path) -> None:
    """The source is no file of ours, which only the work would find."""
    (source := tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "a.nrd").mkdir()
    with pytest.raises(ConfigError, match="min_agreement="):
        build(source, tmp_path / "b.nrd", min_agreement=1.5)
    with pytest.raises(BundleError, match="force=True replaces bundles only"):
        build(source, tmp_path / "a.nrd", force=True)


# --- gates that do not hold ------------------------------------------------------------------------------------------


def test_bundle_that_fails_a_gate_is_kept_and_marked(tmp_path: Path) -> None:
    made = nrd_trt.build(
        onnx_file(), tmp_path / "a.nrd", precision="bf16", builder="onnxruntime", min_agreement=1.0, progress=False
    )
    for found in (made, read_bundle(tmp_path / "a.nrd")):
        assert found.passed is found.record.validation.passed is False
        (failure,) = found.failures
        assert failure.startswith("pixel agreement 0.")


def test_parity_that_fails_marks_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gates._DEFAULTS, "bf16", replace(Gates.of("bf16"), min_agreement=1.0))
    facts = build(checkpoint(), tmp_path / "a.nrd", size=SIZE_HW, precision="bf16")
    assert (facts["validation"]["passed"], facts["passed"]) == (True, False)
    assert facts["parity"]["failures"][0].startswith("pixel agreement 0.")


# --- data ------------------------------------------------------------------------------------------------------------


def test_labelled_data_gives_miou_of_both_sides(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 3, labels=True)
    facts = build(
        onnx_file(), tmp_path / "a.nrd", precision="fp32", checkpoint=checkpoint(), data=data, max_miou_drop=0.0
    )
    validation = facts["validation"]
    assert (validation["images"], validation["samples"]) == (3, "given images")
    assert 0 < validation["miou_engine"] <= 1
    assert validation["miou_reference"] == pytest.approx(validation["miou_engine"], abs=0.01)
    assert facts["passed"] is (validation["miou_reference"] - validation["miou_engine"] <= 0)
    assert tuple(validation["per_class_iou"]) == read_facts(onnx.load(onnx_file())).info.class_names
    assert all(value is None or 0 <= value <= 1 for value in validation["per_class_iou"].values())
    assert "data='data'" in facts["command"]


def test_references_are_at_most_eight_of_one_size_evenly_spaced_fitted_as_asked(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 11)
    facts = build(onnx_file(), tmp_path / "a.nrd", precision="fp32", data=data, fit="letterbox")
    stored = read_bundle(tmp_path / "a.nrd").references()
    assert (facts["validation"]["images"], facts["fit"]) == (11, "letterbox")
    assert stored.images.shape == (8, *SIZE_HW, 3)
    assert stored.masks.shape == stored.near_ties.shape == (8, *SIZE_HW)
    source = SampleSource(
        data=data,
        labels=None,
        shape=InputShape.static(SIZE_HW),
        info=read_facts(onnx.load(onnx_file())).info,
        fit="letterbox",
    )
    assert [image.tobytes() for image in stored.images] == [sample.image.tobytes() for sample in source.spread(8)]
    mean = np.rint(read_facts(onnx.load(onnx_file())).info.mean)
    np.testing.assert_array_equal(stored.images[0][-1, -1], mean)


# --- validating ------------------------------------------------------------------------------------------------------


def verdict(path: Path, **changes: Any) -> dict[str, Any]:
    return nrd_trt.validate(path, **{"min_agreement": LENIENT, "threads": 1, "progress": False, **changes}).to_dict()


def test_validation_of_the_stored_masks_repeats_the_builds() -> None:
    path = bundle("fp16")
    got, built = verdict(path), read_bundle(path).record.to_dict()["validation"]
    assert (got["reference"], got["samples"], got["checkpoint_matches"]) == ("stored", "stored inputs", None)
    for key in ("pixel_agreement", "miou_between", "tie_share", "images", "arithmetic", "runner", "passed"):
        assert got[key] == built[key]
    assert verdict(bundle("bf16"), min_agreement=None)["gates"] == vars(Gates.of("bf16"))
    with pytest.raises(ConfigError, match="expected 11 classes as in the engine, got 19"):
        verdict(bundle(), checkpoint=untrained_checkpoint(19))


# --- files for a CPU -------------------------------------------------------------------------------------------------


FEW = "ignore:classes never predicted on the calibration images"


def for_cpu(folder: Path, **options: Any) -> dict[str, Any]:
    """Build an int8 bundle for a CPU."""
    how: dict[str, Any] = {"precision": "int8", "calibration": "synthetic", "images": 8, "target": "cpu"}
    return build(onnx_file(), folder / "cpu.nrd", checkpoint=checkpoint(), **how, **options)


@pytest.mark.filterwarnings(FEW)
def test_a_bundle_for_a_cpu_has_no_plan_and_is_proved_built_and_validated_again(tmp_path: Path) -> None:
    facts = for_cpu(tmp_path)
    assert (facts["builder"]["name"], facts["precision"]["target"]) == ("onnxruntime", "cpu")
    assert "target='cpu'" in facts["command"]
    assert facts["validation"]["arithmetic"] == "native", "nothing in it is in 16 bits"
    how: dict[str, Any] = {"threads": 1, "progress": False, "min_agreement": LENIENT}
    verdict = nrd_trt.validate(tmp_path / "cpu.nrd", checkpoint=checkpoint(), **how)
    assert verdict.passed, verdict.failures
    assert verdict.structure is not None and verdict.structure.compared == "whole"
    assert verdict.soundness is not None and all(one.error == 0 for one in verdict.soundness.twin)
    again = build(tmp_path / "cpu.nrd", tmp_path / "again.nrd")
    assert (again["builder"]["name"], again["precision"]) == ("onnxruntime", facts["precision"])


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt-rtx"])
def test_no_plan_is_built_of_a_file_for_a_cpu(builder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"builder='{builder}': target='cpu', and no TensorRT takes its uint8"):
        for_cpu(tmp_path, builder=builder)
    assert listing(tmp_path) == []


@needs_rtx
@pytest.mark.filterwarnings(FEW)
def test_no_plan_is_built_of_a_bundle_for_a_cpu(tmp_path: Path) -> None:
    for_cpu(tmp_path)
    with pytest.raises(ConfigError, match=r"builder='tensorrt-rtx': cpu\.nrd was made with target='cpu', and no"):
        build(tmp_path / "cpu.nrd", tmp_path / "again.nrd", builder="tensorrt-rtx")
