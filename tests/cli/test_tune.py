"""`nrd-trt tune` as its user calls it: what it says and records, and its exit codes. The ladder: tests/optimization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nrd_trt as package
from nrd_trt.engine.bundle import Bundle, read_bundle
from nrd_trt.figures import Parity
from nrd_trt.gates import Gates
from nrd_trt.optimization.rungs import Rung
from nrd_trt.optimization.tune_record import Tuned
from tests.artefacts import SIZE, bundle, checkpoint
from tests.cli.conftest import Invoke, one_object, printed

SAME_IMAGES = "the images that the masks are judged on"
pytestmark = [
    pytest.mark.filterwarnings("ignore:classes never:UserWarning"),
    pytest.mark.filterwarnings("ignore:calibration set. . images, fewer:UserWarning"),
    pytest.mark.filterwarnings("always:the ranges are measured on:UserWarning"),
]


def tuned_to(monkeypatch: pytest.MonkeyPatch, built: Bundle | None, *rejected: str) -> None:
    """Let a ladder end in a bundle, or in none."""
    figures: dict[str, Any] = {"pixel_agreement": 0.999, "miou_engine": None, "miou_drop": None, "latency_ms": None}
    tuned = Tuned(
        rungs=(Rung(name="int8", precision="int8", int8_layers=0, **figures, rejected=rejected),),
        sensitivity={} if built else {"layer": 0.01},
        winner="int8" if built else None,
        gates=Gates.of("int8", 0.9, None),
        calibrated_on_data=False,
        bundle=built,
    )
    monkeypatch.setattr(package, "tune", lambda *arguments, **options: tuned, raising=False)


def test_a_short_run(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.nrd"
    options = ("--size", SIZE, "--builder", "onnxruntime", "--threads", 1, "--include", r"^decode_head\.bottleneck")
    gates = ("--min-agreement", 0.8, "--max-miou-drop", 0.5)
    result = nrd_trt("tune", checkpoint(), "--data", data, "-o", target, *options, *gates, "--json")
    found = printed(result)
    assert (found["path"], found["winner"], found["passed"], found["failures"]) == (str(target), "int8", True, [])
    assert found["calibrated_on_data"] is True
    assert result.stderr.count(f"{SAME_IMAGES}, so the figures flatter int8; give others as --calibration.") == 1
    assert "  int8: agreement " in result.stderr
    assert found["files"][0] == str(tmp_path / "a.tune.json")
    command = read_bundle(target).record.command
    assert command.startswith("nrd-trt build ") and f"--calibration {data.name} --images 100" in command


def test_a_bundle_that_fails_says_at_what(
    nrd_trt: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("tune", checkpoint(), "--data", data, "-o", tmp_path / "a.nrd")
    built = read_bundle(bundle())  # its masks hold; let its parity not
    failures = ("pixel agreement 0.958740, at least 0.97 needed",)
    parity = Parity(max_abs=1.0, agreement=0.95, arithmetic="native", failures=failures)
    tuned_to(monkeypatch, replace(built, record=replace(built.record, parity=parity, passed=False)))
    result = nrd_trt(*arguments)
    assert result.exit_code == 1
    assert "winner: int8, " in result.stdout and "NOT PASSED" in result.stdout
    assert "sensitivity of the layers: not measured, as int8 everywhere holds; --sensitivity measures" in result.stdout
    assert "int8 holds the gates of the ladder, its bundle does not: parity of the export: pixel" in result.stderr
    assert "no rung" not in result.stderr and "kept and marked as not passed" in result.stderr
    tuned_to(monkeypatch, None, "pixel agreement 0.5")
    assert "in int8):\n  0.010000  layer\nno winner" in nrd_trt(*arguments).stdout
    result = nrd_trt(*arguments, "--json")
    assert result.exit_code == 1
    assert "gate failed: no rung of the ladder holds the gates" in result.stderr
    found = one_object(result.stdout)
    assert (found["path"], found["winner"], found["passed"], len(found["failures"])) == (None, None, False, 1)
