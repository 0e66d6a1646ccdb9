"""The engine gets the decode that was asked for: enterprise TensorRT's parser is a double, as is the library's code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx
import pytest

from nrd_trt.engine.builder import BuildOptions, BuiltEngine, build_engine, check_decode
from nrd_trt.engine.compat import TensorRT, load_tensorrt
from nrd_trt.engine.plugins import load_plugin, read_plugin
from nrd_trt.errors import BuildError, ExportError
from nrd_trt.graph.decode_nodes import strip_functions
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from tests.engine.surface.enterprise import Parser, enterprise
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
        monkeypatch.setitem(sys.modules, "tensorrt", enterprise(version))
        return load_tensorrt("tensorrt")

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
    return [layer.name for layer in engine.layers if layer.kind == "plugin_v3"]


@pytest.mark.parametrize(
    ("version", "output"),
    [*((version, "both") for version in VERSIONS), ("10.3.0", "mask"), ("10.7.0", "mask"), ("11.4.0", "logits")],
)
def test_the_form_that_is_asked_for_is_built(version: str, output: str, install: Install) -> None:
    """Without, with and again without the plugin in one process, and with a library that nobody asked for."""
    tensorrt = install(version)
    before = model(output).SerializeToString(deterministic=True)
    for plugin in (False, True, False):
        engine = build(version, plugin=plugin, output=output)
        assert plugin_layers(engine) == [f"decode_head/{op}" for op in NODES[output]] * plugin
        others = [layer for layer in engine.layers if layer.kind != "plugin_v3"]
        of_functions = sum(layer.name.startswith("decode_head/NrdPatchDecode") for layer in others)
        assert of_functions == 0 if plugin else of_functions > 10
    assert tensorrt.trt.registry.loaded == [str(built_for(version))]
    assert model(output).SerializeToString(deterministic=True) == before  # with its functions, for ONNX Runtime


@pytest.mark.parametrize(("version", "hidden"), [("10.6.0", True), ("10.7.0", False)])
def test_double_follows_the_version_that_changed_the_preference(version: str, hidden: bool, install: Install) -> None:
    """Without our passes a function hides the plugin before 10.7, and the plugin the function from there on."""
    tensorrt = install(version)
    load_plugin(read_plugin(built_for(version)), tensorrt)
    log = tensorrt.log(lambda severity, text: None)
    network = tensorrt.network(tensorrt.builder(log))
    tensorrt.parse(network, model().SerializeToString(), log)
    assert all(record.kind != "plugin_v3" for record in tensorrt.layers(network)) is hidden


@pytest.mark.parametrize("plugin", [True, False])
def test_another_form_than_that_asked_for_is_an_error(
    plugin: bool, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What our passes are for: here the parser does as if they had not been run."""
    tensorrt = install("10.3.0" if plugin else "10.7.0")
    load_plugin(read_plugin(library()), tensorrt)
    plain, whole = Parser.parse, model().SerializeToString()
    monkeypatch.setattr(Parser, "parse", lambda self, data: plain(self, whole))
    node = "decode_head/NrdPatchDecodeMask"
    words = f"'plugin'.* expected {node} .*got none" if plugin else f"'onnx'.* expected no decode node .*got {node}"
    with pytest.raises(BuildError, match=f"decode={words}"):
        build(tensorrt.version, plugin=plugin)


def test_each_node_needs_its_own_layer() -> None:
    for layers in (
        ["decode_head/NrdPatchDecode", "decode_head/NrdPatchDecodeMask"],
        ["decode_head/NrdPatchDecode_1", "(x) decode_head/NrdPatchDecodeMask_2"],
    ):
        check_decode(model("both"), layers, plugin=True)
    for layers in (["decode_head/NrdPatchDecodeMask"], ["decode_head/NrdPatchDecode"], ["other/InstanceNormalization"]):
        with pytest.raises(BuildError, match="decode='plugin' was asked for"):  # one does not stand for the other
            check_decode(model("both"), layers, plugin=True)
    check_decode(model(), ["other/InstanceNormalization"], plugin=False)


def test_file_without_functions_is_built_with_the_plugin(install: Install) -> None:
    """As `trtexec` of 10.3 needs it; the function form of it cannot be had."""
    install("10.3.0")
    stripped = strip_functions(model(), {"NrdPatchDecodeMask"})
    options = BuildOptions(flavour="tensorrt", progress=False)
    engine = build_engine(stripped, replace(options, plugin=read_plugin(library())))
    assert plugin_layers(engine) == ["decode_head/NrdPatchDecodeMask"]
    with pytest.raises(ExportError, match="expected a function of that name in the file, got none"):
        build_engine(stripped, options)
