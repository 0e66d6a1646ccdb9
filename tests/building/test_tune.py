"""The ladder: rungs and reasons, the winner's bundle, and a run that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from nrd_trt.building.request import BuildRequest, FormRequest
from nrd_trt.building.tune import TuneRequest, list_rungs, tune
from nrd_trt.building.tune_record import describe, write_record
from nrd_trt.calibration.ranges import calibrate
from nrd_trt.calibration.recipes import RECIPES
from nrd_trt.calibration.stream import CalibrationStream
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.exporting import precision
from nrd_trt.exporting.precision import Calibration, Feeds, Quantization, measure_extremes
from nrd_trt.graph.extremes import Extremes
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.validation.validate import validate
from tests.artefacts import REPOSITORY, SIZE_HW, checkpoint

FEW = (r"^backbone\.layer7", r"^decode_head\.bottleneck")
"""Four layers: enough for a ladder, quick enough for a test."""


def measured(model: onnx.ModelProto, tensors: Any) -> dict[str, float]:
    plain = select_outputs(model, "mask")
    stream = CalibrationStream("synthetic", read_facts(plain), images=3)
    with pytest.warns(UserWarning, match="never predicted"):  # three scenes do not show every class
        return dict(calibrate(plain, stream, tensors, RECIPES["minmax"], threads=1, progress=False).tensors)


def request_for(output: Path, **changes: Any) -> TuneRequest:
    build = BuildRequest(
        source=checkpoint(),
        output=output,
        form=FormRequest(size=SIZE_HW),
        builder="onnxruntime",
        quantization=Quantization(measure=measured, include=FEW),
        min_agreement=0.9,
        threads=1,
        progress=False,
    )
    latency = changes.pop("latency", lambda model: None)
    resume = changes.pop("resume", False)
    return TuneRequest(build=replace(build, **changes), latency=latency, resume=resume)


def test_the_winner_holds_the_gates_and_its_bundle_passes_validation(tmp_path: Path) -> None:
    ranges = Calibration(feeds=None, words=("--calibration", "ranges.json"))
    tuned = tune(request_for(tmp_path / "tuned.nrd", calibration=ranges))
    assert tuned.winner == tuned.rungs[-1]["name"] == "int8"
    assert tuned.rungs[-1]["rejected"] == []
    assert len(tuned.sensitivity) == 4 and all(0 <= share < 0.1 for share in tuned.sensitivity.values())
    bundle = read_bundle(tmp_path / "tuned.nrd")
    assert bundle.record.to_dict()["precision"]["int8_layers"] == list(tuned.sensitivity)
    assert "--calibration ranges.json" in bundle.record.to_dict()["command"]
    assert validate(bundle.path, threads=1, progress=False).passed
    record, picture = write_record(tuned, tmp_path / "tuned.nrd")
    assert json.loads(Path(record).read_text())["winner"] == "int8"
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*state*")), "the state is removed when the run is done"


def test_a_gate_that_int8_misses_drops_the_most_sensitive_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(request_for(tmp_path / "first.nrd"))
    gate = first.rungs[0]["pixel_agreement"] + 1e-9
    fed: list[list[Any]] = []

    def count_passes(*arguments: Any, **options: Any) -> dict[str, Extremes]:
        fed.append(arguments[3])
        return measure_extremes(*arguments, **options)

    monkeypatch.setattr(precision, "measure_extremes", count_passes)
    feed = {"image": street_scene(0, SIZE_HW).image[None]}
    calibration = Calibration(feeds=lambda model: [feed])
    tuned = tune(request_for(tmp_path / "second.nrd", min_agreement=min(gate, 1.0), calibration=calibration))
    assert len(tuned.rungs) > 1 and fed == [[feed]] * 2, "one pass for all rungs, one for the winner's bundle"
    assert tuned.rungs[0]["name"] == "int8"
    assert "pixel agreement" in tuned.rungs[0]["rejected"][0]
    assert [rung["name"] for rung in tuned.rungs[:3]] == ["int8", "int8 without 1 layer", "int8 without 2 layers"][
        : len(tuned.rungs)
    ]
    assert tuned.winner not in (None, "int8")
    if tuned.winner and tuned.winner.startswith("int8 without"):
        assert read_bundle(tmp_path / "second.nrd").record.command.count("--exclude") == int(tuned.winner.split()[2])


@pytest.mark.parametrize("feeds", [None, lambda full: []], ids=["ranges", "images"])
def test_a_rung_that_is_not_faster_than_the_next_is_rejected(feeds: Feeds | None, tmp_path: Path) -> None:
    def latency(model: onnx.ModelProto) -> float:
        pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
        return 5.0 + pairs if pairs else {"fp16": 4.0, "fp32": 9.0}[read_facts(model).precision]

    calibration = Calibration(feeds=feeds, words=("--calibration", "some"))
    tuned = tune(request_for(tmp_path / "tuned.nrd", latency=latency, calibration=calibration))
    assert tuned.winner == "fp16"
    assert all("not faster than" in rung["rejected"][0] for rung in tuned.rungs[:-1])
    bundle = read_bundle(tmp_path / "tuned.nrd")
    assert bundle.graph.precision == "fp16"
    assert ("--calibration some" in bundle.record.to_dict()["command"]) == (feeds is not None), "ranges serve int8 only"


def test_ladder_leaves_twice_as_many_of_the_worst_out_each_time() -> None:
    layers = tuple("abcdefghij")
    sensitivity = {name: index / 100 for index, name in enumerate(layers)}
    rungs = list_rungs(layers, sensitivity)
    assert [len(rung.layers) for rung in rungs] == [10, 9, 8, 6, 2, 0, 0]
    assert [rung.precision for rung in rungs] == ["int8"] * 5 + ["fp16", "fp32"]
    assert rungs[2].layers == tuple("abcdefgh")
    assert len({rung.name for rung in rungs}) == len(rungs)


def test_a_rung_is_described_in_one_line() -> None:
    record = {"name": "int8", "pixel_agreement": 0.98, "miou_engine": 0.71, "miou_drop": 0.006, "latency_ms": 1.5}
    assert (
        describe({**record, "rejected": []}) == "int8: agreement 0.980000, mIoU 0.7100 (drop +0.0060), 1.500 ms: holds"
    )
    assert describe({**record, "rejected": ["a", "b"]}).endswith("rejected: a; b")


def test_options_that_the_ladder_chooses_are_refused(tmp_path: Path) -> None:
    for changes in ({"precision": "int8"}, {"quantization": None}):
        with pytest.raises(ConfigError, match="the ladder chooses"):
            tune(request_for(tmp_path / "tuned.nrd", **changes))


@pytest.mark.parametrize("kind", ["json", "png"])
def test_an_earlier_record_is_replaced_only_with_force_or_by_the_run_that_wrote_it(kind: str, tmp_path: Path) -> None:
    output, earlier = tmp_path / "tuned.nrd", tmp_path / f"tuned.tune.{kind}"
    earlier.write_text("mine")
    for resume in (False, True):  # there is no state to resume
        with pytest.raises(ConfigError, match=rf"tuned\.tune\.{kind}: already exists; give force=True"):
            tune(request_for(output, resume=resume))
    (tmp_path / "tuned.nrd.tune-state.json").write_text(json.dumps({"key": "other", "sensitivity": {}, "rungs": {}}))
    with pytest.raises(ConfigError, match="got that of others"):  # beyond the check
        tune(request_for(output, resume=True))
    with pytest.raises(ConfigError, match="the ladder chooses"):  # likewise
        tune(request_for(output, force=True, quantization=None))
    assert earlier.read_text() == "mine"


# --- a run that was stopped

KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.building.test_tune import request_for
from nrd_trt.building.tune import tune
import warnings
tune(request_for(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    output, state = tmp_path / "tuned.nrd", tmp_path / "tuned.nrd.tune-state.json"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(output), str(REPOSITORY)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and len(_sensitivity(state)) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = _sensitivity(state)
    assert len(before) >= 2 and not output.exists()
    record = json.loads(state.read_text())
    marked = {name: share + 1e-3 for name, share in before.items()}  # shows what was taken over, not measured again
    state.write_text(json.dumps({**record, "sensitivity": marked, "rungs": {}}))
    tuned = tune(request_for(output, resume=True))
    assert {name: tuned.sensitivity[name] for name in marked} == marked
    assert tuned.winner and output.exists() and not state.exists()


def _sensitivity(state: Path) -> dict[str, float]:
    try:
        return dict(json.loads(state.read_text())["sensitivity"])
    except (OSError, ValueError):
        return {}


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    output, state = tmp_path / "tuned.nrd", tmp_path / "tuned.nrd.tune-state.json"
    state.write_text(json.dumps({"key": "other", "sensitivity": {}, "rungs": {}}))
    with pytest.raises(ConfigError, match="got that of others"):
        tune(request_for(output, resume=True))
    state.write_text("{")
    with pytest.raises(ConfigError, match="not a state"):
        tune(request_for(output, resume=True))
    assert not output.exists()
