"""`nrd-trt tune` as its user calls it: what it says and records, and its exit codes. The ladder: tests/building."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.building import tune as tune_module
from nrd_trt.building.tune import TuneRequest
from nrd_trt.building.tune_record import Tuned
from nrd_trt.engine.bundle import Bundle, read_bundle
from nrd_trt.figures import Gates
from tests.artefacts import SIZE, bundle, checkpoint
from tests.cli.conftest import Invoke, one_object

RUNG = {"name": "int8", "pixel_agreement": 0.999, "miou_engine": None, "miou_drop": None, "latency_ms": None}
SAME_IMAGES = "the images that the rungs are judged on"
pytestmark = pytest.mark.filterwarnings("ignore:classes never predicted:UserWarning")


def tuned_to(monkeypatch: pytest.MonkeyPatch, built: Bundle | None, rejected: list[str]) -> None:
    """Let a ladder end in a bundle, or in none."""

    def end(request: TuneRequest) -> Tuned:
        return Tuned(
            rungs=[{**RUNG, "rejected": rejected}],
            sensitivity={"layer": 0.01},
            winner="int8" if built else None,
            gates=Gates.of("int8", 0.9, None),
            calibrated_on_data=request.calibrated_on_data,
            bundle=built,
        )

    monkeypatch.setattr(tune_module, "tune", end)


def failed_bundle() -> Bundle:
    """One whose masks hold and whose parity does not."""
    built = read_bundle(bundle())
    parity: dict[str, Any] = {"max_abs": 1.0, "failures": ["pixel agreement 0.958740, at least 0.97 needed"]}
    return replace(built, facts={**built.record.to_dict(), "parity": parity, "passed": False})


def test_a_short_run(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.nrd"
    options = ("--size", SIZE, "--builder", "onnxruntime", "--threads", 1, "--include", r"^decode_head\.bottleneck")
    gates = ("--min-agreement", 0.8, "--max-miou-drop", 0.5)
    result = nrd_trt("tune", checkpoint(), "--data", data, "-o", target, *options, *gates, "--json")
    assert result.exit_code == 0, result.stderr
    found = one_object(result.stdout)
    assert (found["path"], found["winner"], found["passed"], found["failures"]) == (str(target), "int8", True, [])
    assert found["calibrated_on_data"] is True
    assert result.stderr.count(SAME_IMAGES) == 1
    assert found["files"][0] == str(tmp_path / "a.tune.json")
    record = json.loads((tmp_path / "a.tune.json").read_text())
    assert record == {key: value for key, value in found.items() if key not in ("path", "files")}
    assert f"--calibration {data.name} --images 100" in read_bundle(target).record.to_dict()["command"]


@pytest.mark.parametrize(("other", "same"), [("data", True), ("images", False), ("synthetic", False)])
def test_calibrating_on_the_images_to_judge_on_is_said(
    other: str, same: bool, nrd_trt: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned_to(monkeypatch, read_bundle(bundle()), [])
    monkeypatch.chdir(data.parent)
    arguments = ("tune", checkpoint(), "--data", data, "-o", tmp_path / "a.nrd", "--calibration", other)
    result = nrd_trt(*arguments, "-q", "--json")
    assert result.exit_code == 0, result.stderr
    assert (SAME_IMAGES in result.stderr) == one_object(result.stdout)["calibrated_on_data"] == same


def test_a_bundle_that_fails_says_at_what(
    nrd_trt: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("tune", checkpoint(), "--data", data, "-o", tmp_path / "a.nrd")
    tuned_to(monkeypatch, failed_bundle(), [])
    result = nrd_trt(*arguments)
    assert result.exit_code == 1
    assert "winner: int8, " in result.stdout and "NOT PASSED" in result.stdout
    assert "int8 holds the gates of the ladder, its bundle does not: parity of the export: pixel" in result.stderr
    assert "no rung" not in result.stderr
    tuned_to(monkeypatch, None, ["pixel agreement 0.5"])
    result = nrd_trt(*arguments, "--json")
    assert result.exit_code == 1
    assert "gate failed: no rung of the ladder holds the gates" in result.stderr
    found = one_object(result.stdout)
    assert (found["path"], found["winner"], found["passed"], len(found["failures"])) == (None, None, False, 1)
