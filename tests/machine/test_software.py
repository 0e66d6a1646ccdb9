"""The row on the plugin library, and the children that try packages and read libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from nrd_trt.engine.compat import load_tensorrt
from nrd_trt.engine.plugins import BUILD_COMMAND, LIBRARY, PluginInfo
from nrd_trt.files import sha256_file
from nrd_trt.machine import host
from nrd_trt.machine.doctor import examine
from nrd_trt.machine.gpu import Gpu, Graphics
from nrd_trt.machine.host import run_command
from nrd_trt.machine.software import Trial, find_flavour, read_library, try_flavour
from nrd_trt.proving.child import part_command, run_part
from tests.artefacts import REPOSITORY, environment
from tests.engine.surface.enterprise import enterprise
from tests.machine.recorded import DESKTOP, NO_GPU, ORIN, recorded, trial
from tests.machine.test_rows import row_of
from tests.plugin_library import INFO, library, make_library, needs_compiler
from tests.runtime.fake_cuda import library_folder


def told(**changes: Any) -> str:
    """What the child that reads a library prints."""
    return json.dumps({**INFO, **changes}) + "\n"


NO_TENSORRT = {**ORIN["commands"], "trial tensorrt 8.7": "libnvinfer.so.10 is absent\n"}
OTHER_MAJOR, OTHER_SM = told(tensorrt="11.1.0", tensorrt_major=11), told(architectures=[75, 90], ptx=[90])
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
        (ORIN, "Segmentation fault", "missing", "it cannot be used: Segmentation fault", BUILD_COMMAND),
        (ORIN, "", "missing", "it cannot be used: it did not answer", BUILD_COMMAND),
    ],
)
def test_library_that_is_found(
    machine: dict[str, Any], answer: str, status: str, words: str, remedy: str | None, tmp_path: Path
) -> None:
    """By the variable as by the loader's cache."""
    path = tmp_path / LIBRARY
    path.touch()
    commands = {f"trial {path}": answer, "ldconfig -p": f"\t{LIBRARY} (libc6,x86-64) => {path}\n"}
    by_variable = {"environ": {"NRD_TRT_PLUGIN": str(path)}, "commands": {f"trial {path}": answer}}
    for changes in (by_variable, {"commands": commands}):
        found = row_of(examine(recorded(tmp_path, machine, **changes), load_plugin=True), "Plugin library")
        assert (found.status, words in found.found, remedy is None) == (status, True, found.remedy is None), found
        assert (remedy or "") in (found.remedy or "")


def test_library_that_fits_is_found_behind_another_one(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    other, right = tmp_path / "build" / LIBRARY, tmp_path / LIBRARY
    other.touch()
    right.touch()
    commands = {f"trial {other}": OTHER_MAJOR, f"trial {right}": told()}
    changes = {"environ": {"LD_LIBRARY_PATH": f"{other.parent}:{tmp_path}"}, "commands": commands}
    found = row_of(examine(recorded(tmp_path, ORIN, **changes), load_plugin=True), "Plugin library")
    assert (found.status, found.found.split(",")[0]) == ("ok", str(right))


@needs_compiler
def test_a_library_is_loaded_only_where_that_is_asked(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    code = f'#include <stdio.h>\n__attribute__((constructor)) static void run(void) {{ fopen("{mark}", "w"); }}\n'
    hostile = make_library(tmp_path / LIBRARY, source=code)
    command, environ = (
        [sys.executable, "-c", "import nrd_trt.cli.main as m; m.main()"],
        {"NRD_TRT_PLUGIN": str(hostile)},
    )
    for flags, executed in (((), False), (("--load-plugin",), True)):
        done = subprocess.run([*command, "doctor", *flags], env=environment(**environ), capture_output=True, text=True)
        assert (done.returncode, str(hostile) in done.stdout, mark.exists()) == (0, True, executed), done
    found = row_of(examine(recorded(tmp_path, ORIN, environ=environ)), "Plugin library")
    assert found.status == "limited" and f"SHA-256 {sha256_file(hostile)[:12]}…; not loaded" in found.found
    assert found.remedy is not None and "nrd_trt.doctor(load_plugin=True)" in found.remedy
    found = row_of(examine(recorded(tmp_path, NO_GPU, environ=environ)), "Plugin library")
    assert found.status == "n/a" and "TensorRT, which would load it, is not installed" in found.found


def test_child_says_what_the_driver_opens() -> None:
    command = [sys.executable, "-m", "nrd_trt.machine.software", "cuda"]
    done = subprocess.run(
        command, env={**environment(), "LD_LIBRARY_PATH": str(library_folder())}, capture_output=True, text=True
    )
    told = json.loads(done.stdout)
    assert (told["name"], told["cuda"], told["compute_capability"]) == ("Fake GPU 0", "12.6", "8.7")


@needs_compiler
def test_children_say_what_a_library_is_or_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nrd_trt.machine.software", str(library())]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert PluginInfo.from_json(done.stdout) == PluginInfo.from_json(json.dumps(INFO)) == read_library(str(library()))
    path = tmp_path / LIBRARY
    path.write_text("no library")
    for _ in range(2):
        assert str(path) in str(read_library(str(path)))
        make_library(path, "")


@pytest.mark.parametrize("asked", ["tensorrt", "library\nof two lines.so"])
def test_children_that_fail_print_one_line(asked: str, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10\\n cannot be opened')\n")
    variables = environment(PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    command = [sys.executable, "-m", "nrd_trt.machine.software", asked]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    if asked == "tensorrt":
        assert done.stdout == "libnvinfer.so.10  cannot be opened\n"
    else:
        (line,) = done.stdout.splitlines()
        assert line.startswith(f"{tmp_path}/library of two lines.so: expected {LIBRARY}, got a file that cannot be")


def test_children_import_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "msgspec", "nrd_trt", "runpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the current folder')\n")
    monkeypatch.chdir(tmp_path)
    for options in (["-c", "import json, msgspec, nrd_trt; print('fine')"], ["-m", "nrd_trt.machine.software", "a.so"]):
        said = run_command([sys.executable, *options])
        assert said is not None and ("fine" in said or "a.so: expected " in said)
    answer = tmp_path / "answer"
    told = run_part(part_command("tensorrt-rtx", tmp_path, answer), answer, 60)
    assert answer.is_file(), told


def test_trial_of_a_flavour_that_is_absent_or_makes_no_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)
        assert "import of tensorrt halted" in str(try_flavour("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt", module := enterprise())
    module.Builder = Mock(side_effect=TypeError("no GPU"))
    assert try_flavour("tensorrt", "8.7") == Trial(version="10.3.0", builds=False)


def test_trial_of_the_rtx_builder() -> None:
    module = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install nrd-trt[rtx]")
    made = Trial(version=module.__version__, builds=True, options=load_tensorrt("tensorrt-rtx").known_options())
    assert made.options["max_aux_streams"] == "a whole number from 0"
    assert try_flavour("tensorrt-rtx") == made
    assert try_flavour("tensorrt-rtx", "8.9") == replace(made, knows_gpu=True)
    assert try_flavour("tensorrt-rtx", "9.0") == replace(made, knows_gpu=False)


@pytest.mark.parametrize(
    ("capability", "knows", "runs", "why"),
    [
        ("7.5", True, False, "is one that it compiles no fp32 products for"),
        ("7.0", False, False, "is not among its targets"),
        ("9.0", False, None, "is not among its targets"),
        ("8.9", True, True, "on T4"),
    ],
)
def test_plans_of_rtx_run_on_no_gpu_before_8(
    capability: str, knows: bool, runs: bool | None, why: str, tmp_path: Path
) -> None:
    """7.5 is among its targets; see `test_rtx_compiles_no_decode_for_turing`."""
    answer = trial("1.7", knows_gpu=knows)
    machine = replace(recorded(tmp_path, DESKTOP), run=lambda command: answer, version_of={"tensorrt-rtx": "1.7"}.get)
    gpu = Gpu(name="T4", compute_capability=capability, cuda="13.0")
    found = find_flavour(machine, "tensorrt-rtx", Graphics(gpus=(gpu,), cuda="13.0"))
    assert (found.runs, why in found.why) == (runs, True)


def test_commands_that_are_missing_fail_or_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(["nrd-trt-no-such-command"]) is None
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 9"]) == "out\n"
    assert run_command(["sh", "-c", "echo err >&2; exit 9"]) == "err\n"
    assert run_command([sys.executable, "-c", "import nrd_trt; print(nrd_trt.__name__)"]) == "nrd_trt\n"
    assert run_command([sys.executable, "-c", "import sys; print(sys.argv[1:])", "a"]) == "['a']\n"
    monkeypatch.setattr(host, "_TIMEOUT_S", 0.2)
    assert run_command(["sh", "-c", "sleep 30"]) is None
