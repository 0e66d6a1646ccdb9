"""`make gpu-check`, on a machine without a GPU: stand-ins for the driver, the compilers and the benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.dev.gpu_results import results
from tests.artefacts import REPOSITORY

DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return 0; }
"""
JUNIT = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped/></testcase>
<testcase name="c"><failure/></testcase></testsuite></testsuites>"""
PYTHON = f"""
echo "$@" >> {{log}}
case "$*" in
  *gpu_results*) LD_LIBRARY_PATH={{folder}} exec {sys.executable} "$@" ;;
  *doctor*) echo '{{{{"capabilities": [{{{{"name": "GPU", "status": "ok", "found": "Orin, 8.7"}}}}]}}}}' ;;
  *--decode*) echo "no ninja" >&2; exit 77 ;;
  *selftest*) mkdir -p {{folder}}/out/selftest
    echo '{{{{"passed": 7, "failed": 0, "not_run": 2}}}}' > {{folder}}/out/selftest/selftest.json ;;
  "-m pytest"*) echo '{JUNIT}' > {{folder}}/out/pytest.xml; exit 1 ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def gpu_check(python: Path | str, *settings: str, path: str = "") -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "gpu-check", f"GPU_PYTHON={python}", *settings]
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="needs a machine without an NVIDIA GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2(tmp_path: Path) -> None:
    result = gpu_check(sys.executable, f"GPU={tmp_path}")
    assert result.returncode == 2
    assert result.stderr.startswith("gpu-check: cannot run here: ")
    assert result.stdout == ""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_every_step_runs_and_the_page_says_what_failed(tmp_path: Path) -> None:
    compiler = ["gcc", "-shared", "-fPIC", "-xc", "-", "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(compiler, input=DRIVER, text=True, check=True)
    log = tmp_path / "log"
    python = program(tmp_path / "python", PYTHON.format(log=log, folder=tmp_path))
    for name in ("nvcc", "cmake", "ctest", "compute-sanitizer"):
        program(tmp_path / "bin" / name, f'echo "{name} $@" >> {log}')
    program(tmp_path / "bin" / "compute-sanitizer", f'echo "sanitizer $@" >> {log}; [ $2 != racecheck ]')
    for name in ("nrd_decode_bench", "nrd_decode/tests/test_kernels", "nrd_decode/tests/test_contexts"):
        program(tmp_path / "plugins" / name, "")
    settings = (f"GPU={tmp_path}/out", f"GPU_BUILD={tmp_path}/plugins")
    result = gpu_check(python, *settings, path=str(tmp_path / "bin"))
    assert result.returncode == 2
    assert result.stdout.splitlines()[-1] == f"gpu-check: FAILED: look at {tmp_path}/out/results.md"
    page = (tmp_path / "out" / "results.md").read_text()
    rows = {cells[1].strip(): cells[2:] for line in page.splitlines() if len(cells := line.split("|")) > 5}
    found = {name: cells[0].strip() for name, cells in rows.items() if name not in ("step", "---")}
    assert found == {
        **dict.fromkeys(("doctor", "build", "ctest", "bench", "selftest"), "passed"),
        **dict.fromkeys(("memcheck", "initcheck", "synccheck"), "passed"),
        **dict.fromkeys(("pytest", "racecheck"), "FAILED"),
        "decode": "not run: no ninja",
    }
    assert "1 passed, 1 failed, 1 skipped" in page
    assert "7 passed, 0 failed, 2 not run" in page
    assert "| GPU | Orin, 8.7 |" in page
    commands = log.read_text()
    assert "-DCMAKE_CUDA_ARCHITECTURES=87" in commands
    assert "pytest -m gpu" in commands
    assert "sanitizer --tool memcheck --error-exitcode 99 --leak-check full" in commands
    assert commands.count("test_kernels --small") == 4
    assert commands.count("nrd_decode/tests/test_contexts") == 3  # racecheck stops at its first failure


@pytest.mark.parametrize(
    ("step", "row", "passed"),
    [
        ("memcheck 124 300", "not run: stopped at its limit", True),
        ("memcheck 99 30", "FAILED", False),
        ("ctest 124 300", "FAILED: stopped at its limit", False),
        ("ctest 75 12", "not run: the time was used up", True),
        ("bench 0 200", "passed; 3 settings left out", True),
        ("bench 124 300", "incomplete: stopped at its limit", True),
    ],
)
def test_a_deadline_is_told_from_a_failure(step: str, row: str, passed: bool, tmp_path: Path) -> None:
    (tmp_path / "steps").write_text(f"{step}\n")
    (tmp_path / "doctor.json").touch()
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"failures": 0, "left_out": 3}))
    name, _, seconds = step.split()
    page, held = results(tmp_path)
    assert (f"| {name} | {row} | {seconds} |" in page, held) == (True, passed)
    assert page.splitlines()[2].endswith(
        "passed." if row.startswith("passed") else f": {name}." if passed else "FAILED."
    )
    bench.write_text(json.dumps({"failures": 1, "left_out": 3}))
    assert name != "bench" or results(tmp_path)[1] is (step == "bench 0 200")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_limit_of_the_whole_leaves_the_rest_out(tmp_path: Path) -> None:
    compiler = ["gcc", "-shared", "-fPIC", "-xc", "-", "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(compiler, input=DRIVER, text=True, check=True)
    python = program(tmp_path / "python", PYTHON.format(log=tmp_path / "log", folder=tmp_path))
    for name in ("nvcc", "cmake", "ctest", "compute-sanitizer"):
        program(tmp_path / "bin" / name, "")
    for name in ("test_kernels", "test_contexts"):
        program(tmp_path / "plugins" / "nrd_decode/tests" / name, "")
    program(tmp_path / "bin" / "ctest", "sleep 60")
    settings = (f"GPU={tmp_path}/out", f"GPU_BUILD={tmp_path}/plugins", "GPU_LIMIT=3")
    start = time.monotonic()
    result = gpu_check(python, *settings, path=str(tmp_path / "bin"))
    assert time.monotonic() - start < 60
    assert result.returncode == 0, result.stdout + result.stderr
    page = (tmp_path / "out" / "results.md").read_text()
    for name in ("ctest", "memcheck", "pytest", "bench", "selftest"):
        assert f"| {name} | not run: the time was used up |" in page
    assert "passed; not run or not finished: ctest, " in page


@pytest.mark.parametrize(
    ("failed", "row", "passed"),
    [(0, "incomplete: stopped at its limit", True), (1, "FAILED: stopped at its limit", False)],
)
def test_a_self_test_that_is_stopped_at_its_limit_has_failed_only_where_a_part_did(
    failed: int, row: str, passed: bool, tmp_path: Path
) -> None:
    (tmp_path / "steps").write_text("selftest 124 7200\n")
    (tmp_path / "doctor.json").touch()
    (tmp_path / "selftest").mkdir()
    (tmp_path / "selftest/selftest.json").write_text(json.dumps({"passed": 7, "failed": failed, "not_run": 2}))
    page, held = results(tmp_path)
    assert (f"| selftest | {row} | 7200 |" in page, held) == (True, passed)
    shutil.rmtree(tmp_path / "selftest")
    assert results(tmp_path)[1] is False
