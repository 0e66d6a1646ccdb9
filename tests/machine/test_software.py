"""The row on the plugin library, and the children that try packages and read libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from nrd_trt.engine.plugins import BUILD_COMMAND, LIBRARY, PluginInfo
from nrd_trt.errors import BuildError
from nrd_trt.machine import software
from nrd_trt.machine.doctor import examine
from nrd_trt.machine.findings import Row
from nrd_trt.machine.host import run_command
from nrd_trt.machine.software import Trial, read_library, try_flavour
from tests.artefacts import environment
from tests.machine.recorded import NO_GPU, ORIN, recorded, trial
from tests.plugin_library import INFO, library, make_library, needs_compiler


def told(**changes: Any) -> str:
    """What the child that reads a library prints."""
    return json.dumps({"info": {**INFO, **changes}, "error": None}) + "\n"


def place(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def row(root: Path, machine: dict[str, Any], **changes: Any) -> Row:
    report = examine(recorded(root, machine, **changes))
    (found,) = (row for row in report.rows if row.name == "Plugin library")
    return found


def test_search_order(tmp_path: Path) -> None:
    given, built = place(tmp_path / "given.so"), place(tmp_path / "plugins" / "build" / LIBRARY)
    path, cached = place(tmp_path / "path" / LIBRARY), place(tmp_path / "cached" / LIBRARY)
    commands = {"ldconfig -p": f"\t{LIBRARY} (libc6,x86-64) => {cached}\n"}
    commands |= {f"trial {place_of}": told() for place_of in (given, built, path, cached)}
    environ = {"LD_LIBRARY_PATH": f"/nowhere:{path.parent}"}
    for changes, expected in (
        ({"environ": {**environ, "NRD_TRT_PLUGIN": str(given)}, "checkout": tmp_path}, given),
        ({"environ": environ, "checkout": tmp_path}, built),
        ({"environ": environ}, path),
        ({}, cached),
    ):
        found = row(tmp_path, ORIN, commands=commands, **changes)
        assert (found.status, found.found.split(",")[0], found.remedy) == ("ok", str(expected), None)


NO_TENSORRT = {**ORIN["commands"], "trial tensorrt 8.7": trial(None, error="libnvinfer.so.10 is absent")}
OTHER_MAJOR, OTHER_SM = told(tensorrt="11.1.0", tensorrt_major=11), told(architectures=[75, 90], ptx=[90])
UNREADABLE = json.dumps({"info": None, "error": "it is no library"})
DESCRIBED = "version 0.1.0 for TensorRT 10.3.0, CUDA 12.6, sm_75"


@pytest.mark.parametrize(
    ("machine", "answer", "status", "words", "remedy"),
    [
        (ORIN, told(), "ok", DESCRIBED, None),
        ({**ORIN, "commands": NO_TENSORRT}, told(), "ok", DESCRIBED, None),
        (NO_GPU, told(), "n/a", "; TensorRT, which would load it, is not installed", None),
        (ORIN, OTHER_MAJOR, "limited", "built for TensorRT 10 (10.3.0 is loaded)", "build it with the headers"),
        (ORIN, OTHER_SM, "limited", "compute capability 8.7 (sm_87), got sm_75", "ARCHITECTURES=87"),
        (ORIN, told(cuda="13.0"), "limited", "CUDA 12.6 or older", "update the driver"),
        (ORIN, UNREADABLE, "missing", "it cannot be used: it is no library", BUILD_COMMAND),
        (ORIN, "Segmentation fault", "missing", "it cannot be used: Segmentation fault", BUILD_COMMAND),
        (ORIN, "", "missing", "it cannot be used: it did not answer", BUILD_COMMAND),
    ],
)
def test_library_that_is_found(
    machine: dict[str, Any], answer: str, status: str, words: str, remedy: str | None, tmp_path: Path
) -> None:
    path = place(tmp_path / LIBRARY)
    found = row(tmp_path, machine, environ={"NRD_TRT_PLUGIN": str(path)}, commands={f"trial {path}": answer})
    assert (found.status, words in found.found, remedy is None) == (status, True, found.remedy is None), found
    assert (remedy or "") in (found.remedy or "")


@needs_compiler
def test_child_reads_a_library() -> None:
    command = [sys.executable, "-m", "nrd_trt.machine.software", str(library())]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["error"] is None
    assert PluginInfo.from_json(json.dumps(answer["info"])) == PluginInfo.from_json(json.dumps(INFO))


@needs_compiler
def test_child_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / LIBRARY
    path.write_text("no library")
    for _ in range(2):
        answer = read_library(str(path))
        assert answer.info is None and str(path) in (answer.error or "")
        make_library(path, "")


def test_trial_of_a_flavour_that_is_absent_or_makes_no_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)
        found = try_flavour("tensorrt")
    assert (found.version, found.builds, "tensorrt" in (found.error or "")) == (None, False, True)
    builder = Mock(side_effect=BuildError("no GPU"))
    fake = SimpleNamespace(version="10.3.0", log=lambda on_message: None, builder=builder)
    monkeypatch.setattr(software, "load_tensorrt", lambda flavour: fake)
    assert try_flavour("tensorrt", "8.7") == Trial(version="10.3.0", error="no GPU")


def test_trial_of_the_rtx_builder() -> None:
    module = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install nrd-trt[rtx]")
    made = Trial(version=module.__version__, builds=True)
    assert try_flavour("tensorrt-rtx") == made
    assert try_flavour("tensorrt-rtx", "8.9") == replace(made, knows_gpu=True)
    assert try_flavour("tensorrt-rtx", "9.0") == replace(made, knows_gpu=False)


def test_commands_that_are_missing_fail_or_hang() -> None:
    assert run_command(["nrd-trt-no-such-command"]) is None
    assert run_command(["sh", "-c", "sleep 30"], timeout_s=0.2) is None
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 9"]) == "out\n"
    assert run_command(["sh", "-c", "echo err >&2; exit 9"]) == "err\n"
    assert run_command([sys.executable, "-c", "import nrd_trt; print(nrd_trt.__name__)"]) == "nrd_trt\n"
