"""The engine gets the decode that was asked for: enterprise TensorRT's parser is a double, as is the library's code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest

from nrd_trt.engine import builder
from nrd_trt.engine.builder import BuildOptions, BuiltEngine, build_engine, check_decode
from nrd_trt.engine.compat import TensorRT
from nrd_trt.engine.plugins import load_plugin, read_plugin
from nrd_trt.errors import BuildError, ExportError, PluginError
from nrd_trt.graph.decode_nodes import strip_functions
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from tests.engine.surface.enterprise import enterprise
from tests.helpers import small_export
from tests.plugin_library import library, needs_compiler

pytestmark = needs_compiler
VERSIONS = ("10.3.0", "10.6.0", "10.7.0", "10.16.1", "11.4.0")
NODES = {"mask": ["NrdPatchDecodeMask"], "logits": ["NrdPatchDecode"], "both": ["NrdPatchDecode", "NrdPatchDecodeMask"]}

Install = Callable[[str], TensorRT]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put enterprise TensorRT of a version in place."""

    def put(version: str) -> TensorRT:
        tensorrt = TensorRT("tensorrt", enterprise(version))
        monkeypatch.setattr(builder, "load_tensorrt", lambda flavour: tensorrt)
        return tensorrt

    return put


@cache
def model(output: str = "mask") -> onnx.ModelProto:
    return to_precision(select_outputs(small_export("uint8", "static"), output), "fp16")


def built_for(version: str) -> Path:
    return library(tensorrt="11.1.0" if version.startswith("11") else "10.3.0")


def build(version: str, *, plugin: bool, output: str = "mask") -> BuiltEngine:
    chosen = read_plugin(built_for(version)) if plugin else None
    return build_engine(model(output), BuildOptions(flavour="tensorrt", plugin=chosen, progress=False))


def plugin_layers(engine: BuiltEngine) -> list[str]:
    return [layer["name"] for layer in engine.layers if layer["kind"] == "plugin_v3"]


@pytest.mark.parametrize("output", NODES)
@pytest.mark.parametrize("version", VERSIONS)
def test_plugin_form_gets_a_plugin_for_every_node(version: str, output: str, install: Install) -> None:
    tensorrt = install(version)
    before = model(output).SerializeToString(deterministic=True)
    engine = build(version, plugin=True, output=output)
    assert plugin_layers(engine) == [f"decode_head/{op}" for op in NODES[output]]
    assert not any(layer["name"].startswith("decode_head/NrdPatchDecode") for layer in engine.layers
                   if layer["kind"] != "plugin_v3")  # fmt: skip
    assert tensorrt.trt.registry.loaded == [str(built_for(version))]
    assert model(output).SerializeToString(deterministic=True) == before  # with its functions, for ONNX Runtime


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("output", NODES)
@pytest.mark.parametrize("version", VERSIONS)
def test_onnx_form_gets_none_whatever_is_registered(
    version: str, output: str, registered: bool, install: Install
) -> None:
    tensorrt = install(version)
    if registered:
        load_plugin(read_plugin(built_for(version)), tensorrt)
    engine = build(version, plugin=False, output=output)
    assert plugin_layers(engine) == []
    assert sum(layer["name"].startswith("decode_head/NrdPatchDecode") for layer in engine.layers) > 10
    assert len(tensorrt.trt.registry.loaded) == registered


@pytest.mark.parametrize("version", VERSIONS)
def test_forms_take_turns_in_one_process(version: str, install: Install) -> None:
    install(version)
    assert [len(plugin_layers(build(version, plugin=plugin))) for plugin in (True, False, True)] == [1, 0, 1]


@pytest.mark.parametrize(("version", "hidden"), [("10.6.0", True), ("10.7.0", False)])
def test_double_follows_the_version_that_changed_the_preference(version: str, hidden: bool, install: Install) -> None:
    """Without our passes a function hides the plugin before 10.7, and the plugin the function from there on."""
    tensorrt = install(version)
    load_plugin(read_plugin(built_for(version)), tensorrt)
    log = tensorrt.log(lambda severity, text: None)
    network = tensorrt.network(tensorrt.builder(log))
    tensorrt.parse(network, model().SerializeToString(), log)
    assert (tensorrt.plugin_layers(network) == []) is hidden


def test_plugin_that_the_parser_ignores_is_an_error(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("10.7.0")
    monkeypatch.setattr(builder, "strip_functions", lambda model, ops: model)
    monkeypatch.setattr(TensorRT, "parser_prefers_plugin", False)
    build("10.7.0", plugin=True)  # the function is still there, and hides nothing from 10.7 on
    install("10.3.0")
    words = r"--decode plugin was asked for .*expected decode_head/NrdPatchDecodeMask .*got none"
    with pytest.raises(BuildError, match=words):
        build("10.3.0", plugin=True)


def test_plugin_that_nobody_asked_for_is_an_error(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = install("10.7.0")
    load_plugin(read_plugin(library()), tensorrt)
    monkeypatch.setattr(builder, "only_functions", lambda model: model)
    with pytest.raises(
        BuildError, match=r"--decode onnx was asked for .*expected no decode node .*got decode_head/Nrd"
    ):
        build("10.7.0", plugin=False)


@pytest.mark.parametrize(
    ("layers", "good"),
    [
        (["decode_head/NrdPatchDecode", "decode_head/NrdPatchDecodeMask"], True),
        (["decode_head/NrdPatchDecode_1", "(x) decode_head/NrdPatchDecodeMask_2"], True),
        (["decode_head/NrdPatchDecodeMask"], False),  # does not stand for the other
        (["decode_head/NrdPatchDecode"], False),
        (["other/InstanceNormalization"], False),
    ],
)
def test_each_node_needs_its_own_layer(layers: list[str], good: bool) -> None:
    if good:
        check_decode(model("both"), layers, plugin=True)
    else:
        with pytest.raises(BuildError, match="--decode plugin was asked for"):
            check_decode(model("both"), layers, plugin=True)


def test_plugins_of_other_nodes_are_not_the_decodes() -> None:
    check_decode(model(), ["other/InstanceNormalization"], plugin=False)


def test_refused_library_stops_the_build(install: Install) -> None:
    install("10.3.0").trt.registry.takes = False
    with pytest.raises(PluginError, match="got a refusal"):
        build("10.3.0", plugin=True)


def test_file_without_functions_is_built_with_the_plugin(install: Install) -> None:
    """As `trtexec` of 10.3 needs it; the function form of it cannot be had."""
    install("10.3.0")
    stripped = strip_functions(model(), {"NrdPatchDecodeMask"})
    options: Any = {"flavour": "tensorrt", "progress": False}
    engine = build_engine(stripped, BuildOptions(plugin=read_plugin(library()), **options))
    assert plugin_layers(engine) == ["decode_head/NrdPatchDecodeMask"]
    with pytest.raises(ExportError, match="expected a function of that name in the file, got none"):
        build_engine(stripped, BuildOptions(**options))
