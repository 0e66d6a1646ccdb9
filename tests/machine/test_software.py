"""The row on the plugin library, and the children that try packages and read libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.engine.plugins import BUILD_COMMAND, LIBRARY, PluginInfo
from nrd_trt.machine.doctor import examine
from nrd_trt.machine.findings import Row
from nrd_trt.machine.host import run_command
from nrd_trt.machine.software import Trial, read_library, try_flavour
from tests.artefacts import environment
from tests.machine.recorded import DESKTOP, H200, NO_GPU, ORIN, recorded, trial
from tests.plugin_library import INFO, library, make_library, needs_compiler


def row(root: Path, machine: dict[str, Any], **changes: Any) -> Row:
    report = examine(recorded(root, machine, **changes))
    (found,) = (row for row in report.rows if row.name == "Plugin library")
    return found


def told(path: Path, **changes: Any) -> dict[str, str]:
    """What the child that reads a library prints, as a recorded command."""
    return {f"trial {path}": json.dumps({"info": {**INFO, **changes}, "error": None}) + "\n"}


def place(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_search_order(tmp_path: Path) -> None:
    given, built = place(tmp_path / "given.so"), place(tmp_path / "plugins" / "build" / LIBRARY)
    path, cached = place(tmp_path / "path" / LIBRARY), place(tmp_path / "cached" / LIBRARY)
    commands = {"ldconfig -p": f"\t{LIBRARY} (libc6,x86-64) => {cached}\n"}
    for place_of in (given, built, path, cached):
        commands |= told(place_of)
    environ = {"LD_LIBRARY_PATH": f"/nowhere:{path.parent}"}
    for changes, expected in (
        ({"environ": {**environ, "NRD_TRT_PLUGIN": str(given)}, "checkout": tmp_path}, given),
        ({"environ": environ, "checkout": tmp_path}, built),
        ({"environ": environ}, path),
        ({}, cached),
    ):
        found = row(tmp_path, ORIN, commands=commands, **changes)
        assert (found.status, found.found.split(",")[0], found.remedy) == ("ok", str(expected), None)


@pytest.mark.parametrize("machine", [ORIN, H200], ids=["orin", "h200"])
def test_missing_where_tensorrt_could_use_it(machine: dict[str, Any], tmp_path: Path) -> None:
    found = row(tmp_path, machine, checkout=tmp_path, environ={"LD_LIBRARY_PATH": "/somewhere"})
    assert (found.status, found.remedy) == ("missing", BUILD_COMMAND)
    built = tmp_path / "plugins" / "build" / LIBRARY
    assert f"(NRD_TRT_PLUGIN, {built}, /somewhere/{LIBRARY}, " in found.found and "same masks" in found.found
    found = row(tmp_path, machine, environ={"NRD_TRT_PLUGIN": "/absent.so"})
    assert (found.status, found.found) == ("missing", "NRD_TRT_PLUGIN=/absent.so: no such file")
    assert found.remedy is not None and found.remedy.startswith("unset NRD_TRT_PLUGIN")


@pytest.mark.parametrize("machine", [NO_GPU, DESKTOP], ids=["no gpu", "desktop"])
def test_nothing_is_missing_without_tensorrt(machine: dict[str, Any], tmp_path: Path) -> None:
    found = row(tmp_path, machine)
    assert (found.status, found.remedy) == ("n/a", None)
    assert found.found.startswith("none; only TensorRT loads it")
    path = place(tmp_path / LIBRARY)
    found = row(tmp_path, machine, environ={"NRD_TRT_PLUGIN": str(path)}, commands=told(path))
    assert (found.status, found.remedy) == ("n/a", None)
    assert "version 0.1.0 for TensorRT 10.3.0, CUDA 12.6, sm_75" in found.found and "not installed" in found.found


@pytest.mark.parametrize(
    ("changes", "words", "remedy"),
    [
        ({"tensorrt": "11.1.0", "tensorrt_major": 11}, "built for TensorRT 10 (10.3.0 is loaded)", "the headers"),
        ({"architectures": [75, 90], "ptx": [90]}, "compute capability 8.7 (sm_87), got sm_75", "ARCHITECTURES=87"),
        ({"cuda": "13.0"}, "CUDA 12.6 or older", "update the driver"),
    ],
)
def test_library_that_does_not_fit(changes: dict[str, Any], words: str, remedy: str, tmp_path: Path) -> None:
    path = place(tmp_path / LIBRARY)
    found = row(tmp_path, ORIN, environ={"NRD_TRT_PLUGIN": str(path)}, commands=told(path, **changes))
    assert (found.status, words in found.found) == ("limited", True), found
    assert remedy in (found.remedy or "") and "cmake -S plugins" in (found.remedy or "")


@pytest.mark.parametrize("answer", [json.dumps({"info": None, "error": "it is no library"}), "Segmentation fault", ""])
def test_library_that_cannot_be_read(answer: str, tmp_path: Path) -> None:
    path = place(tmp_path / LIBRARY)
    found = row(tmp_path, ORIN, environ={"NRD_TRT_PLUGIN": str(path)}, commands={f"trial {path}": answer})
    assert (found.status, found.remedy) == ("missing", BUILD_COMMAND)
    assert found.found.startswith(f"{path}: it cannot be used: ")


def test_broken_tensorrt_does_not_stop_the_row(tmp_path: Path) -> None:
    path = place(tmp_path / LIBRARY)
    commands = {**told(path), "trial tensorrt 8.7": trial(None, error="libnvinfer.so.10 is absent")}
    found = row(tmp_path, ORIN, environ={"NRD_TRT_PLUGIN": str(path)}, commands=commands)
    assert found.status == "ok"


# --- children


@needs_compiler
def test_child_reads_a_library() -> None:
    command = [sys.executable, "-m", "nrd_trt.machine.software", str(library())]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["error"] is None
    assert PluginInfo.from_json(json.dumps(answer["info"])) == PluginInfo.from_json(json.dumps(INFO))


@needs_compiler
@pytest.mark.parametrize("kind", ["other", "text"])
def test_child_says_what_is_wrong(kind: str, tmp_path: Path) -> None:
    path = tmp_path / LIBRARY
    if kind == "other":
        make_library(path, "")
    else:
        path.write_text("no library")
    answer = read_library(str(path))
    assert answer.info is None and str(path) in (answer.error or "")


def test_trial_of_a_flavour_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = try_flavour("tensorrt")
    assert (found.version, found.builds) == (None, False)
    assert "tensorrt" in (found.error or "")


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
