"""`make gpu-check` on a machine without a GPU: its parts, its limits and its report, with stand-ins for the tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_check
from scripts.gpu_check import (
    Failed,
    NotRun,
    Runner,
    absent_module,
    find_gpu,
    markdown,
    read_junit,
)
from tests.artefacts import REPOSITORY
from tests.gpu_stand_ins import BENCH, GPU, MACHINE, ROW, Machine, say

SCRIPT = REPOSITORY / "scripts" / "gpu_check.py"
STEPS = sys.modules["gpu_steps"]
REPORT = sys.modules["gpu_report"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
NO_GPU = """
class MissingDependencyError(Exception): ...
def load_extension():
    raise MissingDependencyError("it needs a CUDA build of PyTorch.")
"""


def results(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {part["name"]: (part["status"], part["note"]) for part in report["parts"]}


def test_all_parts(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = machine.run()
    assert list(results(report).items()) == [
        ("build", ("passed", "sm_87, with the plugin for TensorRT 10")),
        ("PyTorch operator", ("passed", "")),
        ("C++ tests", ("passed", "1 passed, 1 skipped: no libnvinfer_lean.so.11")),
        ("tests/gpu/test_one.py", ("passed", "1 passed")),
        ("kernel benchmark", ("passed", "2 launches checked")),
        ("decode benchmark", ("passed", "see below")),
        *((f"compute-sanitizer {tool}", ("passed", "test_kernels")) for tool in TOOLS),
        ("bundle with TensorRT", ("not run", "no TensorRT")),
        ("overlapped copies", ("not run", "the bundle was not timed")),
    ]
    assert (code, report["passed"]) == (0, True)
    assert report["bench"] == BENCH
    assert report["machine"]["clocks_during_bench"]["clocks_sm_median"] == 1295
    assert capsys.readouterr().out.splitlines()[-1].startswith("passed in ")


def test_the_page_names_no_path_of_this_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", "/opt/tensorrt 10")
    _, report = machine.run()
    page = (machine.output / "report.md").read_text()
    assert "# GPU check: Test GPU" in page
    assert "**tables of the decode**" in page
    assert "| kernel benchmark | passed |" in page
    assert "python -m pytest -m gpu" in page
    assert '"-DTENSORRT_ROOT=$TENSORRT_ROOT"' in page
    assert "compute-sanitizer --tool racecheck" in page
    for word in (str(REPOSITORY), sys.executable, str(machine.root), str(machine.tools), "/opt/tensorrt"):
        assert word not in page
        assert word not in json.dumps(report["parts"])
    assert {path.name for path in machine.output.iterdir() if path.suffix in (".json", ".md", ".txt")} == {
        *("report.json", "report.md", "log.txt", "bench.json", "decode.md")
    }


def test_one_failure_hides_no_other_part(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.programs["nrd_decode_bench"] = say("simt WRONG: 3 pixels", 1)
    machine.tool("compute-sanitizer", say("ERROR SUMMARY: 4 errors", 99))
    machine.file("tests/gpu/test_one.py", "import pytest\n@pytest.mark.gpu\ndef test_a():\n    assert 1 + 1 == 3\n")
    code, report = machine.run()
    found = results(report)
    assert (code, report["passed"], report["bench"]) == (1, False, None)
    assert found["compute-sanitizer memcheck"] == ("failed", "test_kernels: ERROR SUMMARY: 4 errors")
    assert found["kernel benchmark"] == ("failed", "simt WRONG: 3 pixels")
    assert found["tests/gpu/test_one.py"] == ("failed", "1 of 1 failed: test_a")
    assert found["decode benchmark"][0] == "passed"
    assert found["bundle with TensorRT"][0] == "not run"
    assert "FAILED" in (machine.output / "report.md").read_text()
    assert "assert (1 + 1) == 3" in (machine.output / "log.txt").read_text()
    assert "FAILED in " in capsys.readouterr().out


def test_what_is_absent_is_not_run(machine: Machine) -> None:
    (machine.tools / "nvcc").unlink()
    (machine.tools / "compute-sanitizer").unlink()
    (machine.tools / "nvidia-smi").unlink()
    machine.file("nrd_trt/decode/extension.py", NO_GPU)
    machine.file("tests/gpu/test_one.py", "import package_that_is_absent.part\n")
    machine.file(
        "tests/gpu/test_two.py", "import pytest\n@pytest.mark.gpu\n@pytest.mark.skip('no x')\ndef test(): ...\n"
    )
    code, report = machine.run()
    assert results(report) == {
        "build": ("not run", "no nvcc to compile with"),
        "PyTorch operator": ("not run", "it needs a CUDA build of PyTorch."),
        "C++ tests": ("not run", "plugins/ was not built"),
        "tests/gpu/test_one.py": ("not run", "package_that_is_absent is not installed"),
        "tests/gpu/test_two.py": ("not run", "no x"),
        "kernel benchmark": ("not run", "plugins/ was not built"),
        "decode benchmark": ("not run", "the PyTorch operator was not compiled"),
        **{
            f"compute-sanitizer {tool}": ("not run", "no compute-sanitizer, which comes with the CUDA toolkit")
            for tool in TOOLS
        },
        "bundle with TensorRT": ("not run", "no TensorRT"),
        "overlapped copies": ("not run", "the bundle was not timed"),
    }
    assert code == 0
    assert "clocks unknown" in (machine.output / "report.md").read_text()


def test_a_module_of_ours_that_is_absent_is_a_failure(machine: Machine) -> None:
    machine.file("tests/gpu/test_one.py", "import nrd_trt.absent\n")
    code, report = machine.run()
    assert (code, results(report)["tests/gpu/test_one.py"][0]) == (1, "failed")


def test_a_gpu_out_of_reach_is_a_failure(machine: Machine) -> None:
    """The tests skip themselves where the CUDA runtime is too new for the driver."""
    path = machine.tools / "ctest"
    machine.tool("ctest", path.read_text().replace("no libnvinfer_lean.so.11", "no CUDA device"))
    code, report = machine.run()
    expected = "the driver (CUDA 12.6) shows a GPU that this CUDA toolkit does not reach"
    assert (code, results(report)["C++ tests"]) == (1, ("failed", expected))


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: "no NVIDIA driver")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(tmp_path / "out")])
    assert gpu_check.main() == 2
    assert capsys.readouterr().err == "gpu-check: cannot run here: no NVIDIA driver\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not isinstance(find_gpu(), str), reason="needs a machine without a GPU")
def test_script_without_a_gpu_needs_no_package() -> None:
    """`-S` and `-I` leave out everything that is installed."""
    result = subprocess.run([sys.executable, "-I", "-S", str(SCRIPT)], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1


DRIVER = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned f) { return CODE; }
int cuDeviceGet(int* d, int i) { *d = i; return 0; }
int cuDeviceGetName(char* n, int l, int d) { strcpy(n, "Orin"); return 0; }
int cuDeviceGetPCIBusId(char* n, int l, int d) { strcpy(n, "0000:00:00.0"); return 0; }
int cuDeviceTotalMem_v2(size_t* b, int d) { *b = (size_t)1 << 33; return 0; }
int cuDriverGetVersion(int* v) { *v = 12060; return 0; }
int cuDeviceGetAttribute(int* v, int a, int d)
{ *v = a == 16 ? 8 : a == 13 ? 1020000 : a == 75 ? 8 : a == 76 ? 7 : -1; return 0; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, "Orin 8.7 87 8 1020.0 8589934592 12.6 0000:00:00.0"),
        (100, "the driver finds no NVIDIA GPU"),
        (3, "the driver does not start: CUDA error 3"),
    ],
)
def test_the_driver_is_asked(tmp_path: Path, code: int, expected: str) -> None:
    target = tmp_path / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", f"-DCODE={code}", "-xc", "-", "-o", str(target)]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    names = "name compute_capability architecture multiprocessors clock_mhz memory_bytes cuda_driver bus_id"
    ask = (
        "import gpu_machine; g = gpu_machine.find_gpu(); "
        f"print(g if isinstance(g, str) else ' '.join(str(getattr(g, n)) for n in '{names}'.split()))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(SCRIPT.parent)}
    result = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == expected, result.stderr


def test_a_program_is_stopped_with_its_children(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    child = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with Runner(tmp_path, tmp_path / "log", deadline=time.monotonic() + 60) as runner:
        start = time.monotonic()
        part = runner.part("slow", calling(runner, [sys.executable, "-c", script], limit_s=2))
    assert part.status == "failed"
    assert part.note.startswith("stopped after 2 s: python -c")
    assert time.monotonic() - start < 20
    deadline = time.monotonic() + 10
    while alive(int(started.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def calling(runner: Runner, command: list[str], limit_s: float) -> Callable[[], str]:
    return lambda: str(runner.call(command, limit_s=limit_s).out)


def test_nothing_starts_after_the_deadline(tmp_path: Path) -> None:
    with Runner(tmp_path, tmp_path / "log", deadline=time.monotonic()) as runner:
        part = runner.part("late", calling(runner, [sys.executable, "-c", "1"], limit_s=60))
    assert (part.status, part.note) == ("not run", "the time of the whole check was used up")
    assert part.commands == ()


def test_an_error_in_a_part_stays_in_it(tmp_path: Path) -> None:
    with Runner(tmp_path, tmp_path / "log", deadline=time.monotonic() + 60) as runner:
        assert runner.part("odd", lambda: str(1 // 0)).note == "ZeroDivisionError: integer division or modulo by zero"
        assert not runner.passed("odd")
        assert runner.part("good", lambda: "a\n b").note == "a b"
        assert runner.passed("good")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ModuleNotFoundError: No module named 'typer'", "typer"),
        ("E   ModuleNotFoundError: No module named 'onnx.helper'; 'onnx' is not a package", "onnx"),
        ("/usr/bin/python3: No module named pytest", "pytest"),
        ("ModuleNotFoundError: No module named 'nrd_trt.absent'", None),
        ("all is well", None),
    ],
)
def test_absent_module(text: str, expected: str | None) -> None:
    assert absent_module(text) == expected


def outcome(code: int) -> Any:
    return STEPS.Outcome(code=code, out="last words\n", err="")


def test_tally(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    with pytest.raises(Failed, match="last words"):
        read_junit(path).judge(outcome(3))
    with pytest.raises(NotRun, match="there are no tests"):
        read_junit(path).judge(outcome(0))
    good, skip = '<testcase name="a"/>', '<testcase name="b"><skipped message="needs x"/></testcase>'
    bad = '<testcase name="c"><failure message="m"/></testcase><testcase name="d"><error/></testcase>'
    path.write_text(f"<testsuites><testsuite>{skip}{skip}</testsuite></testsuites>")
    with pytest.raises(NotRun, match=r"^needs x$"):
        read_junit(path).judge(outcome(0))
    path.write_text(f"<testsuite>{good}{skip}</testsuite>")
    assert read_junit(path).judge(outcome(0)) == "1 passed, 1 skipped: needs x"
    with pytest.raises(Failed, match="last words"):
        read_junit(path).judge(outcome(1))
    path.write_text(f"<testsuite>{good}{skip}{bad}</testsuite>")
    with pytest.raises(Failed, match="2 of 3 failed: c, d"):
        read_junit(path).judge(outcome(1))


def test_clocks() -> None:
    found = MACHINE.summarise_clocks("1980, 3201, 310.5, 40\n1900, 3201, [N/A], 42\n1970, 3201, 300.5, 41\n")
    assert found == {
        "clocks_sm_median": 1970,
        "clocks_sm_max": 1980,
        "clocks_mem_median": 3201,
        "clocks_mem_max": 3201,
        "power_draw_median": 305.5,
        "power_draw_max": 310.5,
        "temperature_gpu_median": 41,
        "temperature_gpu_max": 42,
    }
    assert MACHINE.summarise_clocks("No devices were found\n") is None


def test_targets() -> None:
    """The fastest variant counts; what was not measured is said so."""
    found = list(REPORT.targets(BENCH))
    assert found[0] == (
        *("1024x2048 K=19, random theta: 1.6 · max(T_byte, T_instr) + t_empty", "9.00 µs (tensor_core)", "20.24 µs"),
        "met",
    )
    assert {row[3] for row in found[1:6]} == {"not measured"}
    assert found[6] == ("t = a + b·pixels, simt: largest residual", "20.0 %", "15 %", "MISSED")
    natural = {**BENCH, "rows": [{**ROW, "values": "natural"}]}
    assert ("20.00 µs (simt)", "6.60 µs", "MISSED") in [row[1:] for row in REPORT.targets(natural)]


def test_page_shows_what_is_wrong() -> None:
    wrong = {key: value for key, value in ROW.items() if not key.endswith("_us")}
    wrong |= {"passed": False, "fault": "3 pixels | differ"}
    report = {
        "passed": False,
        "date": "today",
        "seconds": 1.0,
        "parts": [],
        "engine": None,
        "overlap": None,
        "machine": {**MACHINE.describe_machine(GPU, REPOSITORY), "clocks_during_bench": None},
        "bench": {**BENCH, "rows": [wrong, ROW]},
    }
    page = markdown(report, None)
    assert "**FAILED**" in page
    assert "| 1024x2048 K=19 batch 1 fp16 random mask | simt | 3 pixels \\| differ |" in page
    assert page.count("| 20.00 |") == 1


OVERLAP = {"equal": True, "plain_fps": 400.0, "overlapped_fps": 520.0, "ratio": 1.3, "frames": 200, "rounds": 5}
ENGINE = {"runner": "tensorrt", "precision": "fp16", "size": "352x480", "batch": 1, "target": "demo.nrd", "runs": 200}


@pytest.mark.parametrize(
    ("row", "code", "expected"),
    [
        (OVERLAP, 0, ("passed", "1.30 times the frames per second")),
        (
            {**OVERLAP, "equal": False, "plain_fps": None, "overlapped_fps": None, "ratio": None},
            1,
            ("failed", "overlapped runs differ from plain ones"),
        ),
        (None, 1, ("failed", "a run failed")),
    ],
    ids=["equal", "different", "no result"],
)
def test_overlapped_copies_of_the_bundle_that_was_timed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any] | None, code: int, expected: tuple[str, str]
) -> None:
    def engine(check: gpu_check.Check) -> str:
        latency = {"p50": 2.5, "p90": 2.6, "p99": 3.0}
        check.results["engine"] = {**ENGINE, "latency_ms": latency, "throughput_fps": 400.0}
        return ""

    monkeypatch.setattr(gpu_check.Check, "engine", engine)
    printed = "a run failed" if row is None else json.dumps(row)
    machine.file("scripts/benchmark_overlap.py", f"import sys\nprint({printed!r})\nsys.exit({code})\n")
    got, report = machine.run()
    assert (got, results(report)["overlapped copies"], report["overlap"]) == (code, expected, row)
    page = (machine.output / "report.md").read_text()
    assert ("## Overlapped copies" in page) == (row is not None)
    assert ("| 400.00 | 520.00 | 1.30 |" in page) == (row == OVERLAP)
    assert "benchmark_overlap.py build/gpu-check/demo.nrd --runner tensorrt --json" in page
