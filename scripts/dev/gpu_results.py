"""Find the GPU for `make gpu-check`, and write its results page. Standard library only.

``gpu_results.py`` prints the compute capability as CMake takes it (``87``), or says why there is none and exits 2.
``gpu_results.py FOLDER`` writes FOLDER/results.md from what the steps left there, and exits 1 if one failed.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

MISSING = 77
"""The exit status of a step for which this machine lacks something, as in Automake and CTest."""

STOPPED = 124
"""The exit status of `timeout` for a step that it stopped."""

VERSIONS = {"GPU", "Driver", "CUDA toolkit", "CUDA binding", "TensorRT", "TensorRT-RTX", "PyTorch", "ONNX Runtime"}
VERSIONS |= {"CPU", "JetPack / L4T", "Power mode (nvpmodel)", "Clocks and power"}


def compute_capability() -> str:
    """Return ``"87"`` for the first GPU, asked of the driver itself, or raise RuntimeError with the reason."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise RuntimeError("there is no NVIDIA driver: libcuda.so.1 was not found") from None
    if (code := driver.cuInit(0)) != 0:
        raise RuntimeError(f"the NVIDIA driver finds no usable GPU: CUDA error {code}")
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    return f"{major.value}{minor.value}"


def totals(folder: Path, step: str) -> str:
    """Count the tests in a step's JUnit file, or the parts of the self-test."""
    report, test = folder / f"{step}.xml", folder / step / "selftest.json"  # whole even where its step was stopped
    if test.is_file():
        counts = json.loads(test.read_text(encoding="utf-8"))
        return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in ("passed", "failed", "not_run"))
    if not report.is_file():
        return "–"
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    return f"{len(cases) - skipped - failed} passed, {failed} failed, {skipped} skipped"


def incomplete(folder: Path, step: str, code: int) -> bool:
    """Whether a self-test was stopped at its limit, which is no failure, before any of its parts failed."""
    report = folder / step / "selftest.json"
    return code == STOPPED and report.is_file() and not json.loads(report.read_text(encoding="utf-8"))["failed"]


def results(folder: Path) -> tuple[str, bool]:
    """Return the page and whether no step failed."""
    steps = [line.split() for line in (folder / "steps").read_text().splitlines()]
    failed = [
        name for name, code, _ in steps if int(code) not in (0, MISSING) and not incomplete(folder, name, int(code))
    ]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = ["# Results of `make gpu-check`", "", f"Commit {commit or 'unknown'}: {'FAILED' if failed else 'passed'}."]
    lines += ["", "| step | result | seconds | tests | log |", "| --- | --- | --- | --- | --- |"]
    for name, code, seconds in steps:
        result = {0: "passed", MISSING: "not run", STOPPED: "FAILED: stopped at its limit"}.get(int(code), "FAILED")
        if incomplete(folder, name, int(code)):
            result = "incomplete: stopped at its limit"
        log = f"{name}.txt"
        if int(code) == MISSING:
            result += ": " + (folder / log).read_text(errors="replace").strip().splitlines()[-1]
        lines.append(f"| {name} | {result} | {seconds} | {totals(folder, name)} | [{log}]({log}) |")
    lines += ["", "| machine | |", "| --- | --- |"]
    doctor = json.loads((folder / "doctor.json").read_text() or "{}")
    rows = [row for row in doctor.get("capabilities", []) if row["name"] in VERSIONS and row["status"] != "n/a"]
    return "\n".join([*lines, *(f"| {row['name']} | {row['found']} |" for row in rows), ""]), not failed


def main() -> int:
    if len(sys.argv) == 1:
        try:
            print(compute_capability())
        except RuntimeError as exc:
            print(f"gpu-check: cannot run here: {exc}", file=sys.stderr)
            return 2
        return 0
    folder = Path(sys.argv[1])
    page, passed = results(folder)
    (folder / "results.md").write_text(page, encoding="utf-8")
    print(f"gpu-check: {'passed' if passed else 'FAILED'}: look at {folder}/results.md")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
