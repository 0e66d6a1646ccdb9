"""``--decode``, ``--plugin`` and ``--mask-encoding`` as they are typed: exit codes, JSON, what people read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nrd_trt.engine.bundle import read_bundle
from nrd_trt.engine.plugins import LIBRARY
from tests.artefacts import SIZE, bundle, checkpoint, listing, needs_rtx, onnx_file
from tests.building.plugin_machine import build_with_plugin, hide_libraries, host, install
from tests.cli.conftest import Invoke, one_object
from tests.plugin_library import library, needs_compiler

LENIENT = ("--min-agreement", 0.9)


@pytest.fixture(autouse=True)
def _nothing_lies_about(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    hide_libraries(monkeypatch, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_with_plugin(tmp_path_factory.mktemp("planned") / "planned.nrd")


def refused(result: Any, *expected: str) -> None:
    assert result.exit_code == 2, result.stderr
    error = one_object(result.stdout)["error"]
    assert all(part in error["message"] for part in expected), error["message"]
    assert "Traceback" not in result.stderr


# --- build


@needs_compiler
def test_build_says_which_form_it_got_and_why(nrd_trt: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    options = ("--builder", "tensorrt", *LENIENT)
    result = nrd_trt("build", onnx_file(), "-o", tmp_path / "a.nrd", "--plugin", library(), *options)
    assert result.exit_code == 0, result.stderr
    assert f"building the fp16 engine with tensorrt; decode as plugin: {library()}" in result.stderr
    assert "decode as plugin)" in result.stdout
    result = nrd_trt("build", onnx_file(), "-o", tmp_path / "b.nrd", *options)
    assert "decode as onnx: no plugin library was found" in result.stderr and "cmake -S plugins" in result.stderr
    assert "decode as onnx)" in result.stdout
    result = nrd_trt("build", onnx_file(), "-o", tmp_path / "c.nrd", "--plugin", library(), *options, "--json")
    facts = one_object(result.stdout)
    assert (facts["decode"], facts["plugin"]["file"]) == ("plugin", LIBRARY)


@needs_rtx
def test_build_with_rtx_never_takes_a_plugin(nrd_trt: Invoke, tmp_path: Path) -> None:
    target = tmp_path / "a.nrd"
    result = nrd_trt("build", onnx_file(), "-o", target, "--builder", "tensorrt-rtx", *LENIENT, "--json")
    assert one_object(result.stdout)["decode"] == "onnx"
    assert "decode as onnx: TensorRT-RTX loads no plugins" in result.stderr
    options = ("--builder", "tensorrt-rtx", "--decode", "plugin", "--force", "--json")
    before = listing(tmp_path)
    refused(nrd_trt("build", onnx_file(), "-o", target, *options), "TensorRT-RTX loads no plugins", "--decode onnx")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("builder", ["tensorrt", "onnxruntime"])
def test_plugin_that_cannot_be_had_exits_2(
    builder: str, nrd_trt: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    options = ("--builder", builder, "--decode", "plugin", "--json")
    words = ["cmake -S plugins -B plugins/build -DTENSORRT_ROOT="] if builder == "tensorrt" else ["builds no plan"]
    result = nrd_trt("build", onnx_file(), "-o", tmp_path / "a.nrd", *options)
    refused(result, *words, "--decode onnx")
    assert one_object(result.stdout)["error"]["type"] == "PluginError"
    assert listing(tmp_path) == []


# --- the verbs that open a plan


@needs_compiler
@pytest.mark.parametrize("verb", ["validate", "predict", "benchmark", "evaluate"])
def test_verbs_take_the_library(
    verb: str, nrd_trt: Invoke, data: Path, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(monkeypatch)
    rest = {"predict": [data / "images/0.png", "-o", tmp_path / "out"], "evaluate": ["--data", data]}.get(verb, [])
    before = listing(tmp_path)
    result = nrd_trt(verb, planned, *rest, "--runner", "tensorrt", "--plugin", library(2), "--json")
    refused(result, "was built with another plugin library", "kernel_revision: 1, found 2", "--decode plugin --force")
    assert one_object(result.stdout)["error"]["type"] == "PluginError"
    result = nrd_trt(verb, bundle(), *rest, "--plugin", library(), "--json")
    refused(result, "expected a bundle whose plan needs it", "leave it out")
    assert one_object(result.stdout)["error"]["type"] == "ConfigError"
    assert listing(tmp_path) == before


@needs_compiler
@pytest.mark.filterwarnings("default::UserWarning")
def test_auto_says_that_the_plan_is_not_run(
    nrd_trt: Invoke, data: Path, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(monkeypatch)
    result = nrd_trt("predict", planned, data / "images/0.png", "-o", tmp_path / "out", "--json")
    assert "warning: the plan is not run, ONNX Runtime takes its place: no plugin library was found" in result.stderr
    assert (result.exit_code, one_object(result.stdout)["runner"]) == (0, "onnxruntime")


@needs_compiler
def test_inspect_shows_the_library(nrd_trt: Invoke, planned: Path) -> None:
    recorded = read_bundle(planned).record.to_dict()["plugin"]
    assert one_object(nrd_trt("inspect", planned, "--json").stdout)["plugin"] == recorded
    text = nrd_trt("inspect", planned).stdout
    for words in (f"{LIBRARY} 0.1.0, kernel revision 1", "for TensorRT 10.3.0, CUDA 12.6, sm_75", recorded["sha256"]):
        assert words in text
    assert "decode by the plugin" in text
    assert "none needed: NrdPatchDecodeMask is a function" in nrd_trt("inspect", bundle()).stdout


# --- packed masks


def test_packed_masks_from_end_to_end(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    options = ("--size", SIZE, "--precision", "fp32", "--threads", 1)
    masks = {}
    for encoding in ("uint8", "u8x4"):
        model, target = tmp_path / f"{encoding}.onnx", tmp_path / f"{encoding}.nrd"
        done = nrd_trt("export", checkpoint(), "-o", model, *options, "--mask-encoding", encoding)
        assert done.exit_code == 0, done.stderr
        done = nrd_trt("build", model, "-o", target, "--builder", "onnxruntime", "--precision", "fp32")
        assert done.exit_code == 0, done.stderr
        done = nrd_trt("predict", target, data / "images/0.png", "-o", tmp_path / encoding)
        assert done.exit_code == 0, done.stderr
        masks[encoding] = np.asarray(Image.open(tmp_path / encoding / "0.png"))
    assert len(np.unique(masks["uint8"])) > 1
    np.testing.assert_array_equal(masks["u8x4"], masks["uint8"])
    text = nrd_trt("inspect", tmp_path / "u8x4.nrd").stdout
    assert "u8x4: four pixels in one int32" in text and "mask int32 1×64×24" in text
    assert "four pixels" not in nrd_trt("inspect", tmp_path / "uint8.nrd").stdout
