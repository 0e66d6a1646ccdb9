"""``--decode``, ``--plugin`` and ``--mask-encoding`` as they are typed: exit codes, JSON, what people read."""

from __future__ import annotations

from pathlib import Path

import pytest

from nrd_trt.engine.bundle import read_bundle
from nrd_trt.engine.plugins import LIBRARY
from tests.artefacts import SIZE, bundle, checkpoint, listing, onnx_file
from tests.building.plugin_machine import install
from tests.cli.conftest import Invoke, check_refused, one_object
from tests.plugin_library import library, needs_compiler

pytestmark = pytest.mark.usefixtures("no_library")
LENIENT = ("--min-agreement", 0.9)


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

    result = nrd_trt("build", onnx_file(), "-o", tmp_path / "d.nrd", "--decode", "plugin", *options[:2], "--json")
    check_refused(result, tmp_path / "a.nrd", listing(tmp_path / "a.nrd"), "cmake -S plugins -B plugins/build -D")
    assert one_object(result.stdout)["error"]["type"] == "PluginError"
    assert "--decode onnx" in result.stderr and not (tmp_path / "d.nrd").exists()


@needs_compiler
def test_inspect_shows_the_library(nrd_trt: Invoke, planned: Path) -> None:
    recorded = read_bundle(planned).record.to_dict()["plugin"]
    assert one_object(nrd_trt("inspect", planned, "--json").stdout)["plugin"] == recorded
    text = nrd_trt("inspect", planned).stdout
    for words in (f"{LIBRARY} 0.1.0, kernel revision 1", "for TensorRT 10.3.0, CUDA 12.6, sm_75", recorded["sha256"]):
        assert words in text
    assert "decode by the plugin" in text
    assert "none needed: NrdPatchDecodeMask is a function" in nrd_trt("inspect", bundle()).stdout


def test_packed_masks_are_told(nrd_trt: Invoke, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    done = nrd_trt("export", checkpoint(), "-o", model, "--size", SIZE, "--mask-encoding", "u8x4", "--threads", 1)
    assert done.exit_code == 0, done.stderr
    text = nrd_trt("inspect", model).stdout
    assert "u8x4: four pixels in one int32" in text and "mask int32 1×64×24" in text
    assert "four pixels" not in nrd_trt("inspect", onnx_file()).stdout
