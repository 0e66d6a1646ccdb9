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

OUT_OF_TIME = 75
"""The exit status of a step that the limit of the whole check stopped, or kept from beginning."""

SLOW = {"memcheck", "racecheck", "initcheck", "synccheck"}
"""Steps that slow a program down so much that one which is stopped shows nothing."""

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


def counts(folder: Path, step: str) -> tuple[int, int] | None:
    """Return how many parts of a step failed and how many it left out, where it writes that down as it goes."""
    selftest, bench = folder / step / "selftest.json", folder / f"{step}.json"
    if selftest.is_file():
        found = json.loads(selftest.read_text(encoding="utf-8"))
        return found["failed"], found["not_run"]
    if step == "bench" and bench.is_file():
        found = json.loads(bench.read_text(encoding="utf-8"))
        return found["failures"], found["left_out"]
    return None


def judge(folder: Path, step: str, code: int) -> str:
    """Say what became of a step: a limit is a failure only where the step may hang, or where a part of it failed."""
    known = counts(folder, step)
    if code in (STOPPED, OUT_OF_TIME) and known is not None and not known[0]:
        return "incomplete: stopped at its limit" if code == STOPPED else "incomplete: the time was used up"
    if code == OUT_OF_TIME and known is None:
        return "not run: the time was used up"
    if code == STOPPED:
        return "not run: stopped at its limit" if step in SLOW else "FAILED: stopped at its limit"
    if code == MISSING:
        last = (folder / f"{step}.txt").read_text(errors="replace").strip().splitlines()[-1]
        return f"not run: {last}"
    if code != 0:
        return "FAILED"
    return f"passed; {known[1]} settings left out" if step == "bench" and known is not None and known[1] else "passed"


def results(folder: Path) -> tuple[str, bool]:
    """Return the page and whether no step failed."""
    steps = [line.split() for line in (folder / "steps").read_text().splitlines()]
    judged = {name: judge(folder, name, int(code)) for name, code, _ in steps}
    failed = any(result.startswith("FAILED") for result in judged.values())
    unfinished = [name for name, result in judged.items() if not result.startswith(("passed", "FAILED"))]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    verdict = "FAILED" if failed else "passed"
    verdict += f"; not run or not finished: {', '.join(unfinished)}" if unfinished else ""
    lines = ["# Results of `make gpu-check`", "", f"Commit {commit or 'unknown'}: {verdict}."]
    lines += ["", "| step | result | seconds | tests | log |", "| --- | --- | --- | --- | --- |"]
    for name, _, seconds in steps:
        log = f"{name}.txt"
        lines.append(f"| {name} | {judged[name]} | {seconds} | {totals(folder, name)} | [{log}]({log}) |")
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
