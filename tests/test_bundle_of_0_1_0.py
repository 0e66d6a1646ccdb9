"""A bundle that version 0.1.0 built: it opens, validates, rebuilds and can be inspected."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, RECORD_FILE, read_bundle
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import load_onnx
from nrd_trt.graph.outputs import PREFIX, with_taps
from nrd_trt.inspection.inspect import inspect
from nrd_trt.runtime.engine import open_bundle
from nrd_trt.validation.validate import validate
from tests.artefacts import build, needs_rtx

ARCHIVE = Path(__file__).parent / "data_0_1_0" / "city.nrd.tar.xz"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle; do not change it."""
    folder = tmp_path_factory.mktemp("data_0_1_0")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "city.nrd"


def test_its_record_is_read_as_todays(path: Path) -> None:
    written = json.loads((path / RECORD_FILE).read_bytes())
    record = read_bundle(path).record
    builder = record.builder
    assert (builder.name, builder.version, builder.compute_capabilities) == ("tensorrt-rtx", "1.7.1.116", ("8.9",))
    assert (builder.driver, builder.cuda) == (None, None)
    assert (builder.workspace_mib, builder.optimization_level) == (256, 2)  # found in the command
    assert (builder.tf32, builder.builder_options) == (None, {})
    assert (record.nrd_trt, record.format, record.exporter) == ("0.1.0", 1, None)
    assert record.resample == "pillow"
    assert record.validation.plan_ran is False  # which it calls plan_run
    written["validation"]["plan_ran"] = written["validation"].pop("plan_run")
    assert record.passed and not read_bundle(path).failures
    today, settings = record.to_dict(), {"workspace_mib", "optimization_level", "tf32", "builder_options"}
    new = {"cuda", "multiprocessors", *settings}
    assert {name: value for name, value in today["builder"].items() if name not in new} == written["builder"]
    for name in written.keys() - {"builder", "sha256"}:
        assert today[name] == written[name], name


def test_it_predicts_and_validates_as_it_did(path: Path) -> None:
    stored = read_bundle(path).references()
    with open_bundle(path, threads=1) as engine:
        masks = [engine.predict(image) for image in stored.images]
    record = read_bundle(path).record
    # On a CPU its fp16 parts run in fp32 now; validation rounds them as it did.
    assert np.mean(masks == stored.masks) == pytest.approx(record.validation.pixel_agreement, abs=0.002)
    validation = validate(path, min_agreement=0.98, threads=1, progress=False)
    assert validation.passed
    assert (validation.reference, validation.plan_ran) == ("stored", False)
    assert validation.pixel_agreement == pytest.approx(record.validation.pixel_agreement)


@pytest.mark.parametrize("builder", ["onnxruntime", pytest.param("tensorrt-rtx", marks=needs_rtx)])
def test_it_is_rebuilt(builder: str, path: Path, tmp_path: Path) -> None:
    facts = build(path, tmp_path / "again.nrd", builder=builder)
    old, new = read_bundle(path), read_bundle(tmp_path / "again.nrd")
    assert facts["passed"] and facts["builder"]["name"] == builder
    assert sha256_file(old.onnx_path) == old.record.files[ONNX_FILE]
    rebuilt, held = onnx.load(new.onnx_path), onnx.load(old.onnx_path)
    assert {entry.key for entry in rebuilt.metadata_props} - {entry.key for entry in held.metadata_props} == {
        "nrd_trt.choices"  # what the old record says of its types
    }
    for model in (rebuilt, held):
        del model.metadata_props[:]
    assert rebuilt == held
    assert (PLAN_FILE in new.record.files) == (builder == "tensorrt-rtx")
    assert new.record.checkpoint == old.record.checkpoint
    np.testing.assert_array_equal(new.references().masks, old.references().masks)


def test_its_stages_are_found(path: Path) -> None:
    """The names in its function are others than today's."""
    tapped = with_taps(load_onnx(path / ONNX_FILE))
    onnx.checker.check_model(tapped, full_check=True)
    assert f"{PREFIX}logits" in {output.name for output in tapped.graph.output}


def test_it_is_inspected(path: Path) -> None:
    text = json.dumps(inspect(path).to_dict())
    assert "tensorrt-rtx" in text and "city.safetensors" in text
