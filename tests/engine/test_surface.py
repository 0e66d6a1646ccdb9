"""The TensorRT names that we use are in the bindings of six versions and of TensorRT-RTX."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.engine.compat import installed_flavours, load_tensorrt, version_numbers
from nrd_trt.engine.options import OPTIONS
from scripts.dev import check_tensorrt_surface as script
from scripts.dev.check_tensorrt_surface import (
    ENGINE,
    OF_OPTIONS,
    OWNERS,
    REPLACEMENTS,
    check_surface,
    read_surface,
    surface,
    used_names,
)
from tests.artefacts import environment

RTX, RECORDED_RTX = "tensorrt_rtx", "1.7.1.116"
VERSIONS = (*script.VERSIONS, RTX)
HERE = Path(__file__).parent / "surface"
# Written by `python tests/engine/test_surface.py`; read here so that the checks of the check need no network.
RECORDED: dict[str, dict[str, Any]] = json.loads((HERE / "names.json").read_text())
USES = {name: (kind, arguments) for name, kind, arguments in surface()}
PLAIN = {"profiling_verbosity": "DETAILED", "flags": [], "cleared": ["TF32"], "pools": {}}
_AFTER_10_7 = {
    *("BuilderFlag.EDITABLE_TIMING_CACHE", "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"),
    *("IBuilderConfig.l2_limit_for_tiling", "IBuilderConfig.tiling_optimization_level", "TilingOptimizationLevel"),
}
_AFTER_10_3 = {"BuilderFlag.MONITOR_MEMORY", "BuilderFlag.STRICT_NANS", "IBuilderConfig.max_num_tactics"}
_BEFORE_11 = {"IBuilderConfig.get_quantization_flag", "IBuilderConfig.set_quantization_flag", "QuantizationFlag"}
_LACKING: dict[str, set[str]] = {
    "10.3.0": {"BuilderFlag.DISTRIBUTIVE_INDEPENDENCE"} | _AFTER_10_7 | _AFTER_10_3,
    "10.7.0": {"BuilderFlag.DISTRIBUTIVE_INDEPENDENCE"} | _AFTER_10_7,
    "10.9.0.34": {"BuilderFlag.DISTRIBUTIVE_INDEPENDENCE"},
    "10.16.1.11": set(),
    "11.0.0.114": _BEFORE_11,
    "11.4.0.106": _BEFORE_11,
    RTX: _BEFORE_11,
}
_SINCE_10_12 = {"ICudaEngine.create_runtime_config", "IRuntimeConfig.set_execution_context_allocation_strategy"}
needs_rtx = pytest.mark.skipif(
    "tensorrt-rtx" not in installed_flavours(), reason="needs the package: `pip install nrd-trt[rtx]` (no GPU needed)"
)


def flavour_of(version: str) -> str:
    return "tensorrt-rtx" if version == RTX else "tensorrt"


def lacking(version: str) -> set[str]:
    """The names that the bindings of a version do not have, all of them replaced."""
    if version == RTX:
        return _LACKING[version]
    return _LACKING[version] | (REPLACEMENTS.keys() - (_SINCE_10_12 if version_numbers(version) >= (10, 12) else set()))


@cache
def live(version: str) -> dict[str, Any]:
    """The names that the bindings really have."""
    if version == RTX:
        if "tensorrt-rtx" not in installed_flavours():
            pytest.skip("needs the package: `pip install nrd-trt[rtx]` (no GPU needed)")
        found: dict[str, Any] = json.loads(json.dumps(read_surface(load_tensorrt("tensorrt-rtx").trt)))
        return found
    try:
        return script.read_version(version)
    except script.NoBindingsError as exc:
        pytest.skip(f"`scripts/dev/check_tensorrt_surface.py --bindings {version}` cannot fetch them: {exc}")


def test_nothing_else_reaches_for_the_module() -> None:
    others = [path for path in ENGINE.parent.rglob("*.py") if path not in OWNERS]
    found = [
        f"{path.name}:{getattr(node, 'lineno', 0)}"
        for path in others
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if "trt" in (getattr(node, "id", None), getattr(node, "attr", None))
    ]
    assert len(others) > 100
    assert found == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16 read"),
        ("config.set_flag(self.trt.BuilderFlag.INT8)", "BuilderFlag.INT8 read"),
        ("config.set_flag(self._member('BuilderFlag', 'FP16'))", "BuilderFlag.FP16 read"),
        ("getattr(self.trt.NetworkDefinitionCreationFlag, 'EXPLICIT_BATCH', 0)", "EXPLICIT_BATCH read"),
        ("hasattr(trt, 'nptype')", "nptype read"),
        ("config.int8_calibrator = object()", "IBuilderConfig.int8_calibrator set"),
        ("self._engine.device_memory_size", "ICudaEngine.device_memory_size read"),
        ("context.all_shape_inputs_specified", "IExecutionContext.all_shape_inputs_specified read"),
        ("context.execute_v2([1, 2])", "IExecutionContext.execute_v2 call 1"),
        ("context.set_input_shape('image')", "IExecutionContext.set_input_shape call 1"),
        ("network.num_layers = 3", "INetworkDefinition.num_layers set"),
        ("network.get_layer(0).precision", "ILayer.precision read"),
        ("made = trt.Builder(log)\nmade.platform_has_fast_fp16", "Builder.platform_has_fast_fp16 read"),
        ("trt.OnnxParser(network, log, 3)", "OnnxParser.__init__ call 3"),
        ("trt.Refitter(engine, log)", "Refitter.__init__ call 2"),
        (
            "class A(trt.IAlgorithmSelector):\n    def select_algorithms(self, a, b): ...",
            "select_algorithms override 2",
        ),
        ("class A(trt.ILogger):\n    def log(self, severity): ...", "ILogger.log override 1"),
    ],
)
def test_a_use_is_found(source: str, name: str) -> None:
    found = [f"{path} {kind} {arguments}" for path, kind, arguments in used_names(source)]
    assert [use for use in found if name in use], found


# --- the bindings


@pytest.mark.parametrize("version", VERSIONS)
def test_bindings_have_every_name_or_its_replacement(version: str) -> None:
    findings = check_surface(live(version), flavour_of(version))
    assert [finding for finding in findings if finding.state == "missing"] == []
    assert {finding.name for finding in findings if finding.state == "replaced"} == lacking(version)
    if version != RTX or load_tensorrt("tensorrt-rtx").version == RECORDED_RTX:
        assert RECORDED[version] == live(version)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_changes_in_the_bindings_is_missed(version: str) -> None:
    """A name that is lost, a call that takes other arguments, a property that became constant."""
    recorded = RECORDED[version]
    assert recorded.keys() == USES.keys() - lacking(version)  # `python -m tests.engine.test_surface` records anew
    called = [name for name, facts in recorded.items() if facts["arguments"] and USES[name][1]]
    settings = [name for name in recorded if USES[name][0] == "set"]
    assert len(called) > 30 and len(settings) >= 10
    for names, facts, words in (
        (recorded, None, "not in these bindings"),
        (called, {"settable": False, "arguments": [[0, 0], [9, 9]]}, "arguments, not"),
        (settings, {"settable": False, "arguments": None}, "cannot be set"),
    ):
        for name in names:
            found = {**recorded, name: facts} if facts else {key: recorded[key] for key in recorded.keys() - {name}}
            (finding,) = (
                one
                for one in check_surface(found, flavour_of(version))
                if one.state != "present" and one.name not in lacking(version)
            )
            assert finding.name == name
            if facts is None and name in OF_OPTIONS:
                assert (finding.state, OF_OPTIONS[name] in finding.detail) == ("replaced", True)
            elif facts is None and name in REPLACEMENTS and version != RTX:
                assert finding.state == "replaced"
            else:
                assert (finding.state, words in finding.detail) == ("missing", True)


# --- our adapter on the bindings


@pytest.mark.parametrize("version", VERSIONS)
def test_our_adapter_on_the_bindings(version: str) -> None:
    """What tests/engine/surface/logic.py tells of a version."""
    live(version)  # skips where it cannot be had
    if version == RTX:
        command = [sys.executable, str(HERE / "logic.py"), RTX]
        text = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
    else:
        text = script.run_with_bindings(version, [str(HERE / "logic.py"), "tensorrt"])
    result = json.loads(text)
    # STRONGLY_TYPED is bit 1 in 10.x and bit 0 in 11.x, where bit 1 means something else.
    assert result["network_flags"] == [2 if version.startswith("10.") else 1]
    always = ["REQUIRE_USER_ALLOCATION"] if version == RTX else []
    more = {"flags": always, "builder_optimization_level": 5, "pools": {"WORKSPACE": 2 << 20}}
    assert result["plain"] == {**PLAIN, **more}
    assert result["compatible"] == {
        **PLAIN,
        "flags": [*always, "VERSION_COMPATIBLE"],
        "cleared": ["TF32", "EXCLUDE_LEAN_RUNTIME"],
        "hardware_compatibility_level": "AMPERE_PLUS",
    }
    assert result["options"] == {
        **PLAIN,
        "avg_timing_iterations": 4,
        "flags": [*always, "SPARSE_WEIGHTS"],
        "pools": {"TACTIC_SHARED_MEMORY": 65536},
        "preview": {"ALIASED_PLUGIN_IO_10_03": True},
        "sources": 0b11000 if version.startswith("10.") else 0b11,  # 11.x has no libraries beside them
    }
    refused = {OF_OPTIONS[name] for name in _LACKING[version]}
    refused |= {name for name, option in OPTIONS.items() if version == RTX and not option.for_rtx}
    assert result["known_options"].keys() == OPTIONS.keys() - refused
    assert result["messages"] == {
        "tail": " (WARNING: careful; INVALID_STATE: broken)",
        "seen": [["WARNING", "careful"], ["VERBOSE", "chatter"], ["ERROR", "broken"]],
        "fatal": True,
        "counts": [1, 1, False],
        "first": ["INVALID_STATE", "broken"],
        "forgotten": ["", 0],
    }
    assert result["phases"] == [["outer", 3], True, None]
    assert result["profiled"] == [["conv", 0.5]]
    assert (result["types"]["HALF"], result["types"]["UINT8"], len(result["types"])) == ("float16", "uint8", 8)
    assert result["kinds"] == ["plugin_v2", "plugin_v3", "convolution"]
    assert result["convolutions_are_layers"]  # which are handed out as what they inherit from
    assert result["prefers_plugin"] == (version not in ("10.3.0", RTX))
    assert result["takes_plugins"] == (version != RTX)
    assert (result["has_creator"], result["loads_library"]) == (False, False)  # the bindings alone have no registry
    if version != RTX:
        assert "compute_capabilities=: tensorrt builds for the GPU of this machine only" in result["targets_refused"]
        assert result["builder_refused"].startswith(f"tensorrt {version} cannot create a builder on this machine")
        assert result["runtime_refused"].startswith(f"tensorrt {version} cannot start on this machine")
        assert "NVIDIA GPU and its driver" in result["runtime_refused"]


# --- the script


@needs_rtx
def test_script_says_what_is_there_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.main(["--rtx"]) == 0
    line, *replaced = capsys.readouterr().out.splitlines()
    assert len(replaced) == len(lacking(RTX)) and all("is refused" in one for one in replaced)
    there = len(USES) - len(lacking(RTX))
    assert line.startswith("rtx ") and line.endswith(f"{there} of {len(USES)} uses are there")
    monkeypatch.setattr(script, "surface", lambda: [("BuilderFlag.FP16", "read", None)])
    assert script.main(["--rtx"]) == 1
    assert "BuilderFlag.FP16 is missing: not in these bindings" in capsys.readouterr().out


def test_script_says_that_bindings_cannot_be_had(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NRD_TRT_BINDINGS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert script.main(["--bindings", "10.3.0"]) == 2
    assert "bindings 10.3.0: no wheel for this Python and machine; see `pip download" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_script_asks_for_something_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main([])
    assert "give --bindings VERSION" in capsys.readouterr().err


if __name__ == "__main__":
    lines = [f" {json.dumps(name)}: {json.dumps(live(name), sort_keys=True)}" for name in VERSIONS]
    (HERE / "names.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
