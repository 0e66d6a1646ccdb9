"""Plugin or function: what `build --decode` gives, records and refuses.

Enterprise TensorRT, its GPU and the code in the library are doubles; files and ONNX Runtime are real.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from nrd_trt.building import construct
from nrd_trt.decode.function import MASK_OP
from nrd_trt.engine import plugins
from nrd_trt.engine.bundle import ONNX_FILE, REFERENCE_FILE, read_bundle
from nrd_trt.engine.plugins import LIBRARY, VARIABLE, read_plugin
from nrd_trt.errors import ConfigError, PluginError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.files import sha256_file
from nrd_trt.graph.decode_nodes import decode_nodes
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import InputShape
from tests.artefacts import build, bundle, content, listing, needs_rtx, onnx_file, write_model
from tests.building.plugin_machine import host, install
from tests.helpers import small_model
from tests.plugin_library import library, make_library, needs_compiler

pytestmark = [needs_compiler, pytest.mark.usefixtures("no_library")]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    return install(monkeypatch)


def stages_of(target: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    """Build; return the facts and the line that says which form the engine got."""
    lines: list[str] = []
    facts = build(onnx_file(), target, on_stage=lines.append, **changes)
    (line,) = (line for line in lines if line.startswith("building"))
    return facts, line


# --- what a build gets and records


def test_wheel_is_taken_without_being_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its libraries that for the TensorRT that is loaded."""
    module = install(monkeypatch, "10.16.1")
    package = tmp_path / "nrd_trt_plugin"
    for major, made in ((10, library()), (11, library(tensorrt="11.1.0"))):
        (package / f"trt{major}").mkdir(parents=True)
        (package / f"trt{major}" / LIBRARY).symlink_to(made)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    _, line = stages_of(tmp_path / "a.nrd", builder="tensorrt", decode="auto")
    assert module.registry.loaded == [str(library())]
    assert "decode as plugin" in line


@pytest.mark.parametrize(("decode", "version"), [("auto", "10.16.1"), ("plugin", "10.3.0")])
def test_plugin_where_it_fits(decode: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install(monkeypatch, version)
    monkeypatch.setenv(VARIABLE, str(library()))
    facts, line = stages_of(tmp_path / "a.nrd", builder="tensorrt", decode=decode)
    assert module.registry.loaded == [str(library())]
    assert line == (
        f"building the fp16 engine with tensorrt; decode as plugin: {library()}, version 0.1.0 for TensorRT 10.3.0"
    )
    assert facts == read_bundle(tmp_path / "a.nrd").record.to_dict()
    assert facts["decode"] == "plugin"
    assert read_bundle(tmp_path / "a.nrd").record.plugin == read_plugin(library()).record("uint8")
    assert facts["plugin"]["sha256"] == sha256_file(library())
    assert [layer["kind"] for layer in facts["precision"]["layers"]].count("plugin_v3") == 1
    assert "builder='tensorrt', decode='plugin'" in facts["command"]
    assert str(library().parent) not in json.dumps(facts)  # nothing that depends on a place
    model = onnx.load(tmp_path / "a.nrd" / ONNX_FILE)
    assert [function.name for function in model.functions] == [MASK_OP]  # ONNX Runtime runs it still
    assert facts["validation"]["runner"] == "onnxruntime" and facts["passed"]


def test_library_that_does_not_fit_hides_none_that_does(
    trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "places_here", lambda *_: [library(tensorrt="11.1.0"), library()])
    _, line = stages_of(tmp_path / "a.nrd", builder="tensorrt", decode="auto")
    assert f"decode as plugin: {library()}" in line


def test_function_where_there_is_no_library(trt: Any, tmp_path: Path) -> None:
    facts, line = stages_of(tmp_path / "a.nrd", builder="tensorrt", workspace_mib=64)
    assert f"decode as onnx: no plugin library was found: expected {LIBRARY}" in line
    assert (facts["decode"], facts["plugin"]) == ("onnx", None)
    assert "decode='onnx'" in facts["command"]
    assert trt.registry.loaded == []


@pytest.mark.parametrize("registered", [False, True])
def test_onnx_never_loads_and_never_gets_a_plugin(
    registered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch, "10.16.1")
    monkeypatch.setenv(VARIABLE, str(library()))
    if registered:
        build(onnx_file(), tmp_path / "p.nrd", builder="tensorrt", decode="plugin")
    facts, line = stages_of(tmp_path / "a.nrd", builder="tensorrt", decode="onnx")
    assert "decode as onnx: asked for" in line
    assert (facts["decode"], facts["plugin"]) == ("onnx", None)
    assert "plugin_v3" not in {layer["kind"] for layer in facts["precision"]["layers"]}
    assert len(module.registry.loaded) == registered


@pytest.mark.parametrize(
    ("asked", "changes", "words"),
    [
        ("auto", {"tensorrt": "11.1.0", "tensorrt_major": 11}, "expected a library built for TensorRT 10"),
        ("plugin", {"architectures": [90], "ptx": [90]}, r"compute capability 8\.7 \(sm_87\), got sm_90, compute_90"),
        ("auto", {"cuda": "13.0"}, "CUDA 12.6 or older"),
        ("plugin=", {"ops": ["NrdPatchDecode"]}, "without NrdPatchDecodeMask"),
    ],
)
def test_library_that_does_not_fit(
    asked: str, changes: dict[str, Any], words: str, trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` says why it does without; who asks for the plugin, or for this library, gets an error."""
    path = make_library(tmp_path / "lib" / LIBRARY, **changes)
    target = tmp_path / "a.nrd"
    if asked == "auto":
        monkeypatch.setenv(VARIABLE, str(path))
        facts, line = stages_of(target, builder="tensorrt")
        assert facts["decode"] == "onnx"
        assert re.search(words, line)
    else:
        options = {"decode": "plugin"} if asked == "plugin" else {}
        with pytest.raises(PluginError, match=rf"^(plugin|decode)=.*{path}: .*{words}.*cmake .*decode='onnx'"):
            build(onnx_file(), target, builder="tensorrt", plugin=path, **options)
        assert not target.exists()
    assert trt.registry.loaded == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"builder": "tensorrt"},
            rf"no plugin library was found: expected {LIBRARY} at .*cmake -S plugins -B plugins/build",
        ),
        ({"builder": "onnxruntime"}, "decode='plugin': ONNX Runtime builds no plan"),
        pytest.param({"builder": "tensorrt-rtx"}, "decode='plugin': TensorRT-RTX loads no plugins", marks=needs_rtx),
        ({"builder": "tensorrt", "version_compatible": True}, "a version-compatible plan may be run"),
        ({"builder": "tensorrt", "plugin": Path("/absent.so")}, r"at /absent\.so \(.*plugin=?\), got no such file"),
    ],
)
def test_plugin_that_cannot_be_had_is_found_before_the_work(
    changes: dict[str, Any], words: str, trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(construct, "read_input", lambda request: pytest.fail("it is found too late"))
    with pytest.raises(PluginError, match=words):
        build(onnx_file(), tmp_path / "a.nrd", decode="plugin", **changes)
    assert listing(tmp_path) == []


def test_library_is_not_ignored_in_silence(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"^plugin=: .*decode='onnx'"):
        build(onnx_file(), tmp_path / "a.nrd", builder="onnxruntime", plugin=library())
    with pytest.raises(ConfigError, match="plugin=: expected decode='auto' or 'plugin' with it, got 'onnx'"):
        build(onnx_file(), tmp_path / "a.nrd", decode="onnx", plugin=library())


def test_constants_that_the_kernels_are_not_written_for(
    trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lines = onnx.load(onnx_file()), list[str]()
    (node,) = decode_nodes(model)
    next(entry for entry in node.attribute if entry.name == "hidden").i = 12
    source = write_model(model, "hidden.onnx")
    monkeypatch.setenv(VARIABLE, str(library()))
    words = r"the kernels are not written for hidden 12 \(expected 8, 16 or 32\)"
    with pytest.raises(PluginError, match=rf"decode='plugin': {words}; use decode='onnx'"):
        build(source, tmp_path / "a.nrd", builder="tensorrt", decode="plugin")
    assert build(source, tmp_path / "a.nrd", builder="tensorrt", on_stage=lines.append)["decode"] == "onnx"
    assert any("hidden 12" in line for line in lines)


@needs_rtx
def test_confidence_takes_the_function(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(library()))
    source, lines = onnx_file("mask,confidence"), list[str]()
    with pytest.raises(PluginError, match=r"decode='plugin': the kernels give no confidence; use decode='onnx'"):
        build(source, tmp_path / "a.nrd", builder="tensorrt", decode="plugin")
    for builder in ("tensorrt", "tensorrt-rtx"):
        target = tmp_path / f"{builder}.nrd"
        facts = build(source, target, builder=builder, on_stage=lines.append)
        assert (facts["decode"], facts["model"]["output"]) == ("onnx", "mask,confidence")
        assert any(f"{builder}; decode as onnx: the kernels give no confidence" in line for line in lines)
    assert facts["precision"]["found"]["uint8"] == 2  # both outputs


def test_network_without_the_decode(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = export_onnx(small_model(head="bilinear"), ExportOptions(shape=InputShape.static((64, 96))))
    baseline = write_model(select_outputs(exported, "mask"), "baseline.onnx")
    monkeypatch.setenv(VARIABLE, str(library()))
    with pytest.raises(PluginError, match="the head bilinear has no per-patch decode"):
        build(baseline, tmp_path / "a.nrd", builder="tensorrt", decode="plugin")
    for decode in ("auto", "onnx"):
        facts = build(baseline, tmp_path / f"{decode}.nrd", builder="tensorrt", decode=decode)
        assert (facts["decode"], facts["plugin"]) == ("none", None)
        assert "decode=" not in facts["command"]


def test_two_builds_have_the_same_bytes_wherever_the_library_lies(trt: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        copied = tmp_path / name / LIBRARY
        copied.write_bytes(library().read_bytes())
        build(onnx_file(), tmp_path / name / "m.nrd", builder="tensorrt", decode="plugin", plugin=copied)
    first, second = (content(tmp_path / name / "m.nrd") for name in ("a", "b"))
    assert first == second


def test_plan_that_can_run_here_is_validated_with_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch)
    seen: list[Any] = []

    def stand_in(plan: bytes, built: Any, rebuild: str, run: Any, **options: Any) -> OrtRunner:
        seen.append((built.name, rebuild, options["plugin"].path, options["graph"].mask_encoding))
        return OrtRunner(onnx_file(), threads=1)

    monkeypatch.setattr(construct, "plan_runner", stand_in)
    target = tmp_path / "a.nrd"
    build(onnx_file(), target, builder="tensorrt", decode="plugin", plugin=library(), precision="fp32")
    call = f"nrd_trt.build({str(target)!r}, {str(target)!r}, builder='tensorrt', decode='plugin', force=True)"
    assert seen == [("tensorrt", call, library(), "uint8")]


# --- rebuilding from a bundle


@pytest.mark.parametrize(
    ("source", "decode", "expected"),
    [("plugin", "auto", "plugin"), ("onnx", "plugin", "plugin"), ("plugin", "onnx", "onnx")],
)
def test_rebuilding_honours_the_option(
    source: str, decode: str, expected: str, planned: Path, trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(library()))
    start = planned if source == "plugin" else bundle("fp16")
    facts = build(start, tmp_path / "b.nrd", builder="tensorrt", decode=decode)
    assert (facts["decode"], facts["plugin"] is not None) == (expected, expected == "plugin")
    assert f"decode={expected!r}" in facts["command"]
    for name in (ONNX_FILE, REFERENCE_FILE):
        assert (tmp_path / "b.nrd" / name).read_bytes() == (start / name).read_bytes()
