"""`nrd-trt doctor` on this machine, as a process: whatever is here, it looks, reports and exits 0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.artefacts import environment, run_process
from tests.machine.recorded import MACHINES, recorded

NAMES = {
    "Python", "PyTorch", "ONNX", "ONNX Runtime", "TensorRT", "TensorRT-RTX", "TensorRT lean runtime", "Driver",
    "CUDA toolkit", "CUDA binding", "Plugin library", "JetPack / L4T", "Power mode (nvpmodel)", "Clocks and power",
    "CPU", "Memory", "Disk", "Zoo checkpoint", "CamVid", "Video files, streams", "Cameras, windows", "GStreamer",
    "Web page",
}  # fmt: skip
SUMMARY = [
    "train", "export", "build: onnxruntime", "build: tensorrt-rtx", "build: tensorrt", "run: torch",
    "run: onnxruntime", "run: tensorrt-rtx", "run: tensorrt",
]  # fmt: skip


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The one JSON object of the real thing."""
    done = run_process("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_named_thing_has_a_row(report: dict[str, Any]) -> None:
    rows = report["capabilities"]
    names = {row["name"] for row in rows}
    assert names >= NAMES
    assert all(name.startswith("GPU") for name in names - NAMES) and names - NAMES
    assert all(row.keys() == {"name", "status", "found", "remedy"} for row in rows)
    assert {row["status"] for row in rows} <= {"ok", "limited", "missing", "n/a"}
    assert [row for row in rows if row["status"] in ("limited", "missing") and not row["remedy"]] == []


def test_summary(report: dict[str, Any]) -> None:
    assert [entry["name"] for entry in report["summary"]] == SUMMARY
    possible = {entry["name"] for entry in report["summary"] if entry["possible"]}
    assert {"export", "build: onnxruntime", "run: torch", "run: onnxruntime"} <= possible


def test_what_this_interpreter_knows_is_reported(report: dict[str, Any]) -> None:
    import onnxruntime
    import torch

    found = {row["name"]: row["found"] for row in report["capabilities"]}
    assert found["PyTorch"].startswith(torch.__version__)
    assert found["ONNX Runtime"].startswith(onnxruntime.__version__)
    assert sys.executable in found["Python"]


@pytest.mark.parametrize("name", [None, *MACHINES])
def test_table_fits_100_columns(name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name is None:
        done = run_process("doctor", COLUMNS="200")
        assert (done.returncode, done.stderr) == (0, "")
        text = done.stdout
    else:
        from nrd_trt.cli.doctor import _print
        from nrd_trt.machine.doctor import examine

        _print(examine(recorded(tmp_path, MACHINES[name])))
        text = capsys.readouterr().out
    long = [line for line in text.splitlines() if len(line) > 100 and len(line.split()[-1]) < 60]
    assert long == []
    assert "What can be done here" in text
    assert sum(line.startswith(("yes", "no ")) for line in text.splitlines()) == len(SUMMARY)


def test_no_command_on_the_path(tmp_path: Path) -> None:
    done = run_process("doctor", "--json", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    found = {row["name"]: row for row in json.loads(done.stdout)["capabilities"]}
    assert found["CUDA toolkit"]["status"] in ("missing", "limited")
    assert found["PyTorch"]["status"] != "missing"  # asked of the interpreter itself, which needs no PATH


def test_looking_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from nrd_trt.cli.main import app\n"
        "try: app(['doctor', '--json'])\n"
        "except SystemExit as exc: assert not exc.code, exc.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "[]\n")
