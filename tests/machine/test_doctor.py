"""`doctor` on this machine and its table: whatever is here, it looks, reports and exits 0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from nrd_trt.cli.doctor import _print
from nrd_trt.machine.doctor import DoctorReport, doctor, examine
from tests.artefacts import environment
from tests.machine.recorded import MACHINES, recorded

NAMES = {
    "Python", "PyTorch", "ONNX", "ONNX Runtime", "OpenVINO", "TensorRT", "TensorRT-RTX", "TensorRT lean runtime",
    "Driver", "CUDA toolkit", "libcuda", "Plugin library", "JetPack / L4T", "Power mode (nvpmodel)", "Clocks and power",
    "CPU", "Memory", "Disk", "Zoo checkpoint", "CamVid", "Video files, streams", "Cameras, windows", "GStreamer",
    "Web page",
}  # fmt: skip
SUMMARY = [
    "train", "export", "build: onnxruntime", "build: tensorrt-rtx", "build: tensorrt", "run: torch",
    "run: onnxruntime", "run: openvino", "run: tensorrt-rtx", "run: tensorrt",
]  # fmt: skip


@pytest.fixture(scope="module")
def report() -> DoctorReport:
    return doctor()


def test_every_named_thing_has_a_row(report: DoctorReport) -> None:
    found = {row.name: row.found for row in report.rows}
    assert found.keys() >= NAMES
    others = {name for name in found.keys() - NAMES if not name.endswith(" options")}
    assert others and all(name.startswith("GPU") for name in others)
    assert {row.status for row in report.rows} <= {"ok", "limited", "missing", "n/a"}
    assert [ability.name for ability in report.abilities] == SUMMARY
    possible = {ability.name for ability in report.abilities if ability.possible}
    assert {"export", "build: onnxruntime", "run: torch", "run: onnxruntime"} <= possible
    assert found["PyTorch"].startswith(torch.__version__)
    assert found["ONNX Runtime"].startswith(onnxruntime.__version__)
    assert sys.executable in found["Python"]


@pytest.mark.parametrize("name", [None, *MACHINES])
def test_table_fits_100_columns(
    name: str | None, report: DoctorReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _print(report if name is None else examine(recorded(tmp_path, MACHINES[name])))
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 100 and len(line.split()[-1]) < 60] == []
    assert "What can be done here" in text
    assert sum(line.startswith(("yes", "no ")) for line in text.splitlines()) == len(SUMMARY)


def test_json_without_a_command_on_the_path_and_nothing_heavy_loaded(report: DoctorReport, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from nrd_trt.cli.main import app\n"
        "try: app(['doctor', '--json'])\n"
        "except SystemExit as exc: assert not exc.code, exc.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    command, variables = [sys.executable, "-c", code], environment(PATH=str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    told, expected = json.loads(done.stdout), report.to_dict()
    assert told.keys() == {"nrd_trt", "capabilities", "summary"} and told["nrd_trt"] == expected["nrd_trt"]
    assert {tuple(row) for row in told["capabilities"]} == {("name", "status", "found", "remedy")}
    assert {tuple(ability) for ability in told["summary"]} == {("name", "possible", "why", "remedy")}
    for row in expected["capabilities"]:  # asked of the interpreter itself, which needs no PATH
        assert row in told["capabilities"] or not row["name"].startswith(("Py", "ONNX", "Zoo"))
    assert {row["name"]: row["status"] for row in told["capabilities"]}["CUDA toolkit"] in ("missing", "limited")
