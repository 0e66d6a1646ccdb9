"""From checkpoint, ONNX file and bundle to a validated bundle, with and without TensorRT, with and without PyTorch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from nrd_trt.building import sources
from nrd_trt.building.build import BuildRequest, FormRequest, build_bundle
from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, RECORD_FILE, REFERENCE_FILE, read_bundle
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.errors import BuildError, BundleError, ConfigError, ExportError, MissingDependencyError, PluginError
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import read_facts
from nrd_trt.model.recognise import CheckpointOptions
from nrd_trt.specs import Precision
from nrd_trt.validation.compare import Reference, ReferenceFn, Sample
from nrd_trt.validation.validate import validate
from tests.artefacts import (
    LENIENT,
    SIZE,
    SIZE_HW,
    build,
    bundle,
    checkpoint,
    content,
    environment,
    listing,
    onnx_file,
    other_checkpoint,
    untrained_checkpoint,
    workspace,
)

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="no TensorRT-RTX: pip install nrd-trt[rtx]"
)
needs_no_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="enterprise TensorRT is installed"
)
BUILDERS = ["onnxruntime", pytest.param("tensorrt-rtx", marks=needs_rtx)]


@pytest.fixture(scope="module")
def fp16_file() -> Path:
    """The ONNX file of the fp16 bundle, as `nrd-trt export --precision fp16` would write it."""
    return Path(shutil.copy(bundle("fp16") / ONNX_FILE, workspace() / "fp16.onnx"))


def scenes(folder: Path, count: int, *, labels: bool = False, size_hw: tuple[int, int] = (50, 70)) -> Path:
    for name in ("images", "labels") if labels else ("images",):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        scene = street_scene(index, size_hw)
        write_rgb(folder / "images" / f"{index:02}.png", scene.image)
        if labels:
            Image.fromarray(scene.label).save(folder / "labels" / f"{index:02}.png")
    return folder


# --- from a checkpoint -----------------------------------------------------------------------------------------------


@needs_rtx
def test_checkpoint_to_a_bundle_with_a_plan(tmp_path: Path) -> None:
    """The main job: defaults except for the size; `auto` takes the TensorRT that is there."""
    stages: list[str] = []
    messages: list[str] = []
    target = tmp_path / "city.nrd"
    made = build_bundle(
        BuildRequest(
            source=checkpoint(),
            output=target,
            form=FormRequest(size=SIZE_HW),
            min_agreement=LENIENT,
            progress=False,
            threads=1,
            on_stage=stages.append,
            on_message=lambda severity, text: messages.append(text),
        )
    )
    facts = read_bundle(target).record.to_dict()
    assert facts == json.loads(json.dumps(made.record.to_dict()))
    assert listing(tmp_path) == ["city.nrd", *(f"city.nrd/{n}" for n in sorted([RECORD_FILE, *facts["files"]]))]
    assert facts["files"].keys() == {ONNX_FILE, PLAN_FILE, REFERENCE_FILE}
    assert facts["checkpoint"] == {"name": checkpoint().name, "sha256": sha256_file(checkpoint())}
    assert facts["builder"]["name"] == ("tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt-rtx")
    assert facts["builder"]["version"]
    assert facts["precision"]["asked"] == "fp16"
    assert facts["precision"]["found"]["half"] > 50
    found = [layer["type"] for layer in facts["precision"]["layers"] if layer["kind"] == "convolution"]
    assert set(found) == {"half"} | ({"float"} if facts["precision"]["kept_fp32"] else set())
    assert facts["parity"]["failures"] == []
    assert facts["parity"]["arithmetic"] == "simulated"
    validation = facts["validation"]
    assert facts["passed"] is validation["passed"] is True
    assert (validation["reference"], validation["samples"], validation["images"]) == ("torch", "synthetic scenes", 4)
    assert (validation["runner"], validation["arithmetic"]) == ("onnxruntime", "simulated")
    assert validation["plan_run"] is False
    assert validation["gates"] == {"min_agreement": LENIENT, "max_miou_drop": 0.002}
    assert LENIENT <= validation["pixel_agreement"] < 1
    assert 0 <= validation["tie_share"] <= 1
    assert validation["checkpoint_matches"] is None
    assert facts["model"]["shape"]["height"] == {"min": 64, "opt": 64, "max": 64}
    assert len(made.references().images) == 4
    assert [stage.split()[0] for stage in stages] == ["exporting", "building", "validating"]
    assert facts["command"].startswith(f"nrd-trt build {checkpoint().name} -o NAME.nrd --precision fp16")
    assert f"--size {SIZE}" in facts["command"]
    assert str(tmp_path) not in json.dumps(facts)


def test_checkpoint_option_belongs_to_other_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--checkpoint"):
        build(checkpoint(), tmp_path / "a.nrd", checkpoint=checkpoint())
    assert listing(tmp_path) == []


# --- from an ONNX file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_onnx_file_with_its_checkpoint(precision: Precision, builder: str) -> None:
    facts = read_bundle(bundle(precision, builder)).record.to_dict()
    assert facts["precision"]["asked"] == facts["model"]["precision"] == precision
    assert facts["validation"]["reference"] == "torch"
    assert facts["validation"]["checkpoint_matches"] is True
    assert facts["validation"]["arithmetic"] == ("native" if precision == "fp32" else "simulated")
    assert facts["validation"]["pixel_agreement"] >= LENIENT
    assert facts["checkpoint"] == {"name": None, "sha256": sha256_file(checkpoint())}
    assert facts["parity"] is None
    types = {"fp32": "float", "fp16": "half", "bf16": "bf16"}
    if builder == "onnxruntime":
        assert facts["precision"]["found"] is None
        assert facts["precision"]["layers"] == []
        assert facts["builder"]["version"] is None
        assert PLAN_FILE not in facts["files"]
    else:
        convolutions = [layer["type"] for layer in facts["precision"]["layers"] if layer["kind"] == "convolution"]
        asked = convolutions.count(types[precision])
        if precision != "bf16":  # bf16 keeps its sensitive layers in fp32 on purpose
            assert asked >= len(convolutions) - len(facts["precision"]["kept_fp32"])
        assert asked > 0.7 * len(convolutions)
        assert sum(facts["precision"]["found"].values()) == len(facts["precision"]["layers"])
        assert PLAN_FILE in facts["files"]


def test_fp32_onnx_file_alone_is_its_own_reference(tmp_path: Path) -> None:
    facts = build(onnx_file(), tmp_path / "a.nrd")
    validation = facts["validation"]
    assert facts["precision"]["asked"] == "fp16"  # the default
    assert (validation["reference"], validation["checkpoint_matches"], validation["tie_share"]) == ("onnx", None, None)
    assert LENIENT <= validation["pixel_agreement"] < 1  # compared with the fp32 file, not with itself
    assert read_bundle(tmp_path / "a.nrd").references().source == "onnx"


def test_16_bit_file_cannot_prove_itself(fp16_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp16\.onnx: a fp16 file cannot prove its own masks; give --checkpoint"):
        build(fp16_file, tmp_path / "a.nrd")
    with pytest.raises(ConfigError, match=r"typed in fp16, --precision fp32 was asked for"):
        build(fp16_file, tmp_path / "a.nrd", precision="fp32", checkpoint=checkpoint())
    assert listing(tmp_path) == []


def test_16_bit_file_with_its_checkpoint(fp16_file: Path, tmp_path: Path) -> None:
    facts = build(fp16_file, tmp_path / "a.nrd", checkpoint=checkpoint())
    assert facts["precision"]["asked"] == "fp16"
    assert facts["validation"]["reference"] == "torch"
    assert (tmp_path / "a.nrd" / ONNX_FILE).read_bytes() == fp16_file.read_bytes()


def test_other_checkpoint_does_not_pass(tmp_path: Path) -> None:
    facts = build(onnx_file(), tmp_path / "a.nrd", checkpoint=other_checkpoint(), min_agreement=0.0)
    assert facts["validation"]["checkpoint_matches"] is False
    assert facts["passed"] is False
    assert facts["validation"]["pixel_agreement"] < 0.5


@pytest.mark.parametrize("kind", ["onnx", "bundle"])
def test_checkpoint_of_another_number_of_classes_is_refused(kind: str, tmp_path: Path) -> None:
    source = onnx_file() if kind == "onnx" else bundle()
    with pytest.raises(ConfigError, match=r"expected 11 classes .*got 19"):
        build(source, tmp_path / "a.nrd", checkpoint=untrained_checkpoint(19))
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"not a protobuf", b"\x08\x09" * 100, onnx.helper.make_model(
        onnx.helper.make_graph([], "empty", [], []), opset_imports=[onnx.helper.make_opsetid("", 19)]
    ).SerializeToString()],
)  # fmt: skip
def test_what_is_no_file_of_ours_is_refused(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(content)
    with pytest.raises((BuildError, ExportError), match="export it"):
        build(source, tmp_path / "a.nrd")
    assert listing(tmp_path) == ["m.onnx"]


def test_truncated_onnx_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    data = onnx_file().read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises((BuildError, ExportError), match="export it"):
        build(source, tmp_path / "a.nrd")


# --- from a bundle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
def test_bundle_is_rebuilt_from_what_it_holds(builder: str, tmp_path: Path) -> None:
    source = bundle("fp16")
    facts = build(source, tmp_path / "b.nrd", builder=builder)
    old = read_bundle(source)
    assert facts["validation"]["reference"] == "stored"
    assert facts["validation"]["images"] == len(old.references().images)
    assert facts["validation"]["pixel_agreement"] == pytest.approx(old.record.validation.pixel_agreement)
    assert facts["validation"]["tie_share"] == pytest.approx(old.record.validation.tie_share)
    for key in ("checkpoint", "model", "fit"):
        assert json.loads(json.dumps(facts[key])) == old.record.to_dict()[key]
    assert facts["precision"]["kept_fp32"] == old.record.to_dict()["precision"]["kept_fp32"]
    assert (facts["builder"]["name"], PLAN_FILE in facts["files"]) == (builder, builder != "onnxruntime")
    for name in (ONNX_FILE, REFERENCE_FILE):
        assert (tmp_path / "b.nrd" / name).read_bytes() == (source / name).read_bytes()


def test_bundle_may_be_rebuilt_in_its_place(tmp_path: Path) -> None:
    target = Path(shutil.copytree(bundle("fp16"), tmp_path / "a.nrd"))
    build(target, target, force=True)
    assert read_bundle(target).record.to_dict()["command"].startswith("nrd-trt build a.nrd")
    assert {name.split("/")[0] for name in listing(tmp_path)} == {"a.nrd"}


def test_bundle_with_its_checkpoint_is_compared_with_pytorch(tmp_path: Path) -> None:
    facts = build(bundle(), tmp_path / "b.nrd", checkpoint=checkpoint())
    assert facts["validation"]["reference"] == "torch"
    assert facts["validation"]["checkpoint_matches"] is True


def test_bundle_of_another_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds fp32, --precision bf16 was asked for"):
        build(bundle(), tmp_path / "b.nrd", precision="bf16")
    assert listing(tmp_path) == []


def test_data_for_a_bundle_needs_the_checkpoint(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 1)
    with pytest.raises(ConfigError, match="--data needs --checkpoint"):
        build(bundle(), tmp_path / "b.nrd", data=data)
    with pytest.raises(ConfigError, match="--data needs --checkpoint"):
        validate(bundle(), data=data)


def test_damaged_bundle_is_not_built_from(tmp_path: Path) -> None:
    source = Path(shutil.copytree(bundle(), tmp_path / "a.nrd"))
    (source / REFERENCE_FILE).write_bytes(b"")
    with pytest.raises(BundleError, match=REFERENCE_FILE):
        build(source, tmp_path / "b.nrd")
    assert not (tmp_path / "b.nrd").exists()


BLOCK_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnxscript"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, NoTorch())
"""
WITHOUT_TORCH = """
import json, sys
from pathlib import Path
import numpy as np
import nrd_trt
from nrd_trt.building.build import BuildRequest, build_bundle
from nrd_trt.validation.validate import validate

source, onnx_file, target, builder = sys.argv[1:]
for index, path in enumerate((source, onnx_file)):
    output = Path(target, f"{index}.nrd")
    build_bundle(BuildRequest(source=Path(path), output=output, builder=builder, progress=False, min_agreement=0.9))
    verdict = validate(output, progress=False, min_agreement=0.9)
    assert verdict.passed, verdict
    mask = nrd_trt.open_bundle(output).predict(np.zeros((50, 70, 3), np.uint8))
    assert mask.shape == (50, 70) and mask.dtype == np.uint8
assert "torch" not in sys.modules
try:
    nrd_trt.load_model("x.pth")
except ImportError as exc:
    assert "torch is blocked" in str(exc)
else:
    raise SystemExit("torch was not blocked")
"""


@pytest.mark.parametrize("builder", BUILDERS)
def test_bundle_and_onnx_file_need_no_pytorch(builder: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BLOCK_TORCH + WITHOUT_TORCH, bundle("fp16"), onnx_file(), tmp_path, builder]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert (tmp_path / "0.nrd" / PLAN_FILE).exists() == (builder != "onnxruntime")


# --- equal builds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS)
def test_two_builds_have_the_same_bytes(builder: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build(onnx_file(), tmp_path / name / f"{name}.nrd", builder=builder, checkpoint=checkpoint())
    first, second = (content(tmp_path / name / f"{name}.nrd") for name in ("a", "b"))
    assert first.keys() == second.keys()
    differing = {name for name in first if first[name] != second[name]}
    assert differing == set()


# --- options that cannot be had --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("input_form", "float", "--input"),
        ("output", "logits", "--output"),
        ("size", (64, 64), "--size"),
        ("dynamic", ((64, 64), (64, 64), (96, 96)), "--dynamic"),
        ("batch", 2, "--batch"),
    ],
)
@pytest.mark.parametrize("kind", ["an ONNX file", "a bundle"])
def test_form_is_fixed_in_files(kind: str, field: str, value: Any, flag: str, tmp_path: Path) -> None:
    source = onnx_file() if kind == "an ONNX file" else bundle()
    with pytest.raises(ConfigError, match=f"^{flag}: fixed in {kind}"):
        build(source, tmp_path / "a.nrd", form=FormRequest(**{field: value}))
    assert listing(tmp_path) == []


@needs_no_tensorrt
def test_absent_builder_asked_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install nrd-trt\[trt\].*JetPack"):
        build(onnx_file(), tmp_path / "a.nrd", builder="tensorrt")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"builder": "tvm"}, ConfigError, "--builder 'tvm': expected one of auto, tensorrt, "),
        ({"decode": "cuda"}, ConfigError, "--decode 'cuda': expected one of auto, plugin, onnx"),
        ({"decode": "plugin"}, PluginError, "--decode plugin: ONNX Runtime builds no plan.*Use --decode onnx"),
        (
            {"config": ConfigOptions(compute_capabilities=("8.6",))},
            ConfigError,
            "--compute-capability: only --builder tensorrt-rtx",
        ),
        ({"min_agreement": 99.5}, ConfigError, "fraction in 0-1"),
        ({"max_miou_drop": 2.0}, ConfigError, "fraction in 0-1"),
        ({"labels": Path("labels")}, ConfigError, "--labels needs --data"),
        ({"source": Path("absent.pth")}, ConfigError, r"absent\.pth: expected a checkpoint, an ONNX file or a bundle"),
        ({"source": Path("absent.nrd")}, BundleError, r"absent\.nrd: expected a bundle folder"),
        ({"output": Path("/nowhere/a.nrd")}, ConfigError, "the folder /nowhere does not exist"),
    ],
)
def test_bad_requests(changes: dict[str, Any], error: type[Exception], match: str, tmp_path: Path) -> None:
    source, target = changes.pop("source", onnx_file()), changes.pop("output", tmp_path / "a.nrd")
    with pytest.raises(error, match=match):
        build(source, target, **changes)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("kind", ["bundle", "validate"])
def test_labels_without_data_are_not_ignored_in_silence(kind: str, tmp_path: Path) -> None:
    labels = scenes(tmp_path / "data", 1, labels=True) / "labels"
    with pytest.raises(ConfigError, match="--labels needs --data"):
        if kind == "bundle":
            build(bundle(), tmp_path / "a.nrd", labels=labels)
        else:
            validate(bundle(), labels=labels)


@needs_rtx
def test_compute_capabilities_are_recorded(tmp_path: Path) -> None:
    config = ConfigOptions(compute_capabilities=("8.6", "8.9"))
    facts = build(bundle("fp16"), tmp_path / "a.nrd", builder="tensorrt-rtx", config=config)
    assert facts["builder"]["compute_capabilities"] == ["8.6", "8.9"]
    assert "--compute-capability 8.6,8.9" in facts["command"]


def test_gate_outside_the_fractions_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_load_onnx", lambda path: pytest.fail("the gate is checked too late"))
    with pytest.raises(ConfigError, match="--min-agreement"):
        build(onnx_file(), tmp_path / "a.nrd", min_agreement=1.5)


def test_force_on_a_folder_that_is_no_bundle_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_load_onnx", lambda path: pytest.fail("the target is checked too late"))
    (tmp_path / "a.nrd").mkdir()
    with pytest.raises(BundleError, match="--force replaces bundles only"):
        build(onnx_file(), tmp_path / "a.nrd", force=True)


# --- gates that do not hold ------------------------------------------------------------------------------------------


def test_bundle_that_fails_a_gate_is_kept_and_marked(tmp_path: Path) -> None:
    facts = build(onnx_file(), tmp_path / "a.nrd", precision="bf16", min_agreement=1.0)
    opened = read_bundle(tmp_path / "a.nrd").record.to_dict()
    for found in (facts, opened):
        assert found["passed"] is False
        assert found["validation"]["passed"] is False
        (failure,) = found["validation"]["failures"]
        assert failure.startswith("pixel agreement 0.")


@pytest.mark.parametrize(("flipped", "passed"), [(0.004, True), (0.006, False)])
def test_default_gate_of_fp16(flipped: float, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the file's own mask with a planted share of other pixels."""

    @contextmanager
    def planted(model: onnx.ModelProto, threads: int | None = None) -> Iterator[ReferenceFn]:
        with plain(typed, threads) as draw:

            def changed(sample: Sample) -> Reference:
                mask = draw(sample).mask.copy()
                count = round(flipped * mask.size)
                mask.reshape(-1)[:count] = (mask.reshape(-1)[:count] + 1) % 11
                return Reference(mask=mask, near_tie=None)

            yield changed

    plain = sources.onnx_reference
    typed = onnx.load(bundle("fp16") / ONNX_FILE)
    monkeypatch.setattr(sources, "onnx_reference", planted)
    facts = build(onnx_file(), tmp_path / "a.nrd", precision="fp16", min_agreement=None)
    assert facts["validation"]["pixel_agreement"] == pytest.approx(1 - flipped, abs=2e-4)
    assert facts["passed"] is passed


def test_parity_that_fails_marks_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nrd_trt.exporting import export

    parity = export.Parity(max_abs=9.0, agreement=0.5, arithmetic="native", failures=("pixel agreement 0.5",))
    monkeypatch.setattr(export, "_parity", lambda *args: parity)
    facts = build(untrained_checkpoint(11), tmp_path / "a.nrd", form=FormRequest(size=SIZE_HW), precision="fp32")
    assert facts["validation"]["passed"] is True
    assert facts["passed"] is False
    assert facts["parity"]["failures"] == ["pixel agreement 0.5"]


# --- data ------------------------------------------------------------------------------------------------------------


def test_labelled_data_gives_miou_of_both_sides(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 3, labels=True)
    facts = build(onnx_file(), tmp_path / "a.nrd", precision="fp32", checkpoint=checkpoint(), data=data)
    validation = facts["validation"]
    assert (validation["images"], validation["samples"]) == (3, "given images")
    assert 0 < validation["miou_engine"] <= 1
    assert validation["miou_reference"] == pytest.approx(validation["miou_engine"], abs=0.01)
    names = read_facts(onnx.load(onnx_file())).info.class_names
    assert tuple(validation["per_class_iou"]) == names
    assert all(value is None or 0 <= value <= 1 for value in validation["per_class_iou"].values())
    assert "--data data" in facts["command"]


def test_miou_drop_is_a_gate(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 1, labels=True)
    changes = {"checkpoint": checkpoint(), "data": data, "precision": "fp32"}
    facts = build(onnx_file(), tmp_path / "a.nrd", **changes, max_miou_drop=0.0)
    drop = facts["validation"]["miou_reference"] - facts["validation"]["miou_engine"]
    assert facts["passed"] is (drop <= 0)


def test_references_are_at_most_eight_of_one_size(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 11)
    facts = build(onnx_file(), tmp_path / "a.nrd", precision="fp32", data=data)
    stored = read_bundle(tmp_path / "a.nrd").references()
    assert facts["validation"]["images"] == 11
    assert stored.images.shape == (8, *SIZE_HW, 3)
    assert stored.masks.shape == stored.near_ties.shape == (8, *SIZE_HW)
    assert len({image.tobytes() for image in stored.images}) == 8


@pytest.mark.parametrize("fit", ["pad", "letterbox"])
def test_fit_is_recorded_and_used(fit: Any, tmp_path: Path) -> None:
    facts = build(onnx_file(), tmp_path / "a.nrd", data=scenes(tmp_path / "data", 1), fit=fit)
    assert facts["fit"] == fit
    assert f"--fit {fit}" in facts["command"]
    image = read_bundle(tmp_path / "a.nrd").references().images[0]
    mean = np.rint(read_facts(onnx.load(onnx_file())).info.mean)
    np.testing.assert_array_equal(image[-1, -1], mean)


# --- validating ------------------------------------------------------------------------------------------------------


def verdict(path: Path, **changes: Any) -> dict[str, Any]:
    return validate(path, **{"min_agreement": LENIENT, "threads": 1, "progress": False, **changes}).to_dict()


def test_validation_of_the_stored_masks_repeats_the_builds() -> None:
    path = bundle("fp16")
    got, built = verdict(path), read_bundle(path).record.to_dict()["validation"]
    assert (got["reference"], got["samples"], got["checkpoint_matches"]) == ("stored", "stored inputs", None)
    for key in ("pixel_agreement", "miou_between", "tie_share", "images", "arithmetic", "runner", "passed"):
        assert got[key] == built[key]


def test_validation_against_the_checkpoint(tmp_path: Path) -> None:
    got = verdict(bundle("fp16"), checkpoint=checkpoint(), data=scenes(tmp_path / "data", 2, labels=True))
    assert (got["reference"], got["images"], got["checkpoint_matches"]) == ("torch", 2, True)
    assert got["passed"] is True
    assert got["miou_engine"] > 0


def test_validation_against_another_checkpoint_compares_and_does_not_pass() -> None:
    got = verdict(bundle(), checkpoint=other_checkpoint(), min_agreement=0.0)
    assert got["checkpoint_matches"] is False
    assert got["passed"] is False
    assert 0 <= got["pixel_agreement"] < 0.5
    assert got["failures"] == ["the checkpoint is not the one that the bundle was built from"]


def test_equal_weights_in_another_file_are_another_checkpoint(tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    data = checkpoint().read_bytes()
    assert b'"Sky"' in data or b"Sky" in data
    copy.write_bytes(data.replace(b"Sky", b"Air", 1))
    got = verdict(bundle(), checkpoint=copy)
    assert (got["checkpoint_matches"], got["passed"]) == (False, False)
    assert got["pixel_agreement"] > 0.999


def test_validation_against_another_kind_of_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 11 classes as in the engine, got 19"):
        verdict(bundle(), checkpoint=untrained_checkpoint(19))


def test_gate_of_the_bundles_own_precision() -> None:
    assert verdict(bundle("bf16"), min_agreement=None)["gates"] == {"min_agreement": 0.98, "max_miou_drop": 0.005}


def test_recorded_command_holds_every_option_that_changes_the_masks(tmp_path: Path) -> None:
    options = CheckpointOptions(mean=(1.0, 2.0, 3.5), std=(4.0, 5.0, 6.0), bgr=True, num_classes=11)
    facts = build(
        checkpoint(),
        tmp_path / "a.nrd",
        precision="fp32",
        builder="auto",
        checkpoint_options=options,
        min_agreement=0.9,
        form=FormRequest(size=(64, 96)),
    )
    words = facts["command"]
    for part in ("--mean 1.0,2.0,3.5", "--std 4.0,5.0,6.0", "--bgr", "--num-classes 11", "--min-agreement 0.9"):
        assert part in words
    assert f"--builder {facts['builder']['name']} " in words
    assert facts["model"]["info"]["channel_order"] == "bgr"
