"""The ladder: rungs and reasons, the winner's bundle, and a run that was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from PIL import Image

import nrd_trt
from nrd_trt.building.request import BuildRequest
from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.cli.tune import _lines
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.gates import Gates
from nrd_trt.graph.metadata import read_facts
from nrd_trt.optimization import tune as ladder
from nrd_trt.optimization import tune_record, variants
from nrd_trt.optimization.ladder import list_steps
from nrd_trt.optimization.ladder_plot import write_ladder
from nrd_trt.optimization.rungs import Rung, RungState, open_state
from nrd_trt.optimization.tune import rung_gates
from nrd_trt.optimization.tune_record import Tuned, state_path
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.validation.structure import prove_structure
from tests.artefacts import SIZE_HW, checkpoint, onnx_file, other_checkpoint, scenes, trained_model

FEW = [r"^backbone\.layer7", r"^decode_head\.bottleneck"]
"""Four layers: enough for a ladder, quick enough for a test."""
ONE = FEW[1:]

pytestmark = [
    pytest.mark.filterwarnings("ignore:classes never:UserWarning"),  # three scenes do not show every class
    pytest.mark.filterwarnings("ignore:calibration set. . images, fewer:UserWarning"),
    pytest.mark.filterwarnings("error:the ranges are measured on:UserWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "scenes", 3, labels=True)


def tune(output: Path, data: Path, **changes: Any) -> Tuned:
    given = {
        "calibration": "synthetic",
        "images": 3,
        "recipe": "minmax",
        "include": FEW,
        "size": SIZE_HW,
        "resample": "cv2",
    }
    gates = {"min_agreement": 0.9, "max_miou_drop": 1.0}
    quick = {"builder": "onnxruntime", "threads": 1, "progress": False, "time_file": lambda file: None}
    return nrd_trt.tune(checkpoint(), output, data, **{**given, **gates, **quick, **changes})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Tuned:
    """A run whose lowest rung holds; do not change its files."""
    seen: list[str] = []
    tuned = tune(tmp_path_factory.mktemp("first") / "tuned.nrd", data, on_rung=lambda rung: seen.append(str(rung)))
    assert seen == [str(rung) for rung in tuned.rungs]
    return tuned


def test_a_rung_is_timed_by_the_runs_of_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime stands in for the plan's runner."""
    runs: list[OrtRunner] = []

    class Counted(OrtRunner):
        def _run(self, feed: Any) -> Any:
            runs.append(self)
            return super()._run(feed)

    model = onnx.load(onnx_file())
    monkeypatch.setattr(ladder, "plan_runner_here", lambda _, typed: Counted(typed, threads=1))
    latency_ms = ladder._plan_latency(Mock(), model)
    assert latency_ms is not None and latency_ms > 0
    assert len(runs) == ladder._WARMUP + ladder._RUNS
    monkeypatch.setattr(ladder, "plan_runner_here", lambda _, typed: None)
    assert ladder._plan_latency(Mock(), model) is None


def test_the_winner_holds_the_gates_and_its_bundle_is_built(first: Tuned) -> None:
    (rung,) = first.rungs
    assert (first.winner, rung.name, rung.rejected, first.failures) == ("int8", "int8", (), [])
    assert (rung.int8_layers, len(rung.layers), first.calibrated_on_data) == (4, 4, False)
    assert rung.miou_engine is not None and rung.miou_drop is not None
    assert first.sensitivity == {}, "nothing depends on it"
    assert first.bundle is not None and first.bundle.passed
    record = read_bundle(first.bundle.path).record
    assert record.precision.int8_layers == rung.layers
    proven = prove_structure(read_bundle(first.bundle.path), onnx.load(first.bundle.onnx_path), trained_model())
    assert (proven.compared, proven.differences, proven.not_provable) == ("whole", (), ())
    assert "calibration='synthetic', images=3, seed=0, recipe='minmax', include=" in record.command
    assert record.resample == "cv2"
    table, picture = first.files
    found = first.to_dict()
    assert (found.pop("path"), found.pop("files")) == (str(first.bundle.path), [str(table), str(picture)])
    assert json.loads(table.read_text()) == json.loads(json.dumps(found))
    assert found.keys() == set("warnings rungs sensitivity winner gates calibrated_on_data passed failures".split())
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list(first.bundle.path.parent.glob("*state*")), "the state is removed when the run is done"


def test_a_rung_holds_the_gates_of_its_precision_and_of_the_ladder() -> None:
    """The ladder's 0.99 is less than fp16's and fp32's: it is not what they are judged by, and loosens nothing."""
    request = BuildRequest(source=Path("a.pth"), output=Path("a.nrd"))
    assert rung_gates(request, "fp32") == Gates.of("fp32")
    assert rung_gates(request, "fp16") == Gates.of("fp16")
    assert rung_gates(request, "int8") == replace(Gates.of("int8"), min_agreement=0.99, max_miou_drop=0.005)
    asked = replace(request, min_agreement=0.9, max_miou_drop=0.5, min_class_iou=0.1)
    assert rung_gates(asked, "fp16") == Gates.of("fp16", 0.9, 0.5, min_class_iou=0.1)


def test_the_winners_bundle_is_held_to_the_gates_of_its_rung(data: Path, tmp_path: Path) -> None:
    """fp16 is the first rung that is faster than the next one up."""
    latency_ms = {"int8": 9.0, "fp16": 1.0, "fp32": 9.0}
    tuned = tune(
        tmp_path / "tuned.nrd",
        data,
        include=ONE,
        min_agreement=None,
        max_miou_drop=None,
        min_boundary_f=0.5,
        input_form="rgb_float",
        time_file=lambda file: latency_ms[read_facts(file).precision],
    )
    assert tuned.winner == "fp16" and tuned.bundle is not None and tuned.bundle.record.validation is not None
    assert tuned.bundle.record.validation.gates == Gates.of("fp16", min_boundary_f=0.5)
    assert tuned.bundle.graph.input_form == "rgb_float"


def test_a_network_that_draws_one_class_is_told_in_rung_text_record_and_picture(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, ...]] = []
    monkeypatch.setattr(tune_record, "write_ladder", lambda *_, warnings, **__: drawn.append(warnings))
    given: dict[str, Any] = {"recipe": "minmax", "include": ONE, "size": SIZE_HW, "threads": 1, "progress": False}
    output, quick = tmp_path / "tuned.nrd", {"builder": "onnxruntime", "time_file": lambda file: None}
    tuned = nrd_trt.tune(other_checkpoint(), output, data, calibration="synthetic", images=3, **given, **quick)
    (rung,) = tuned.rungs
    assert "the network draws " in rung.warnings[0] and tuned.warnings == rung.warnings
    assert f"holds; WARNING: {rung.warnings[0]}" in str(rung)
    record = json.loads(tuned.files[0].read_text())
    assert tuple(record["warnings"]) == tuple(record["rungs"][0]["warnings"]) == tuned.warnings
    assert drawn == [tuned.warnings]
    assert _lines(tuned, output)[0] == f"WARNING: {rung.warnings[0]}"


def test_the_picture_of_a_ladder_has_room_for_warnings(tmp_path: Path) -> None:
    pictures = []
    for warnings in ((), ("the network draws Road on 100.0% of the pixels",)):
        path = tmp_path / f"{len(warnings)}.png"
        write_ladder(path, [("int8", 0.01, None)], {}, winner="int8", allowed=0.01, warnings=warnings)
        pictures.append(np.asarray(Image.open(path).convert("RGB")).astype(int))
    red = [int(((picture[..., 0] - picture[..., 1]) > 100)[:40].sum()) for picture in pictures]
    assert red[1] > red[0] + 100


def test_a_gate_that_int8_misses_drops_the_most_sensitive_layers(first: Tuned, data: Path, tmp_path: Path) -> None:
    gate = min((first.rungs[0].pixel_agreement or 0) + 1e-9, 1.0)
    tuned = tune(tmp_path / "tuned.nrd", data, min_agreement=gate)
    names = [rung.name for rung in tuned.rungs]
    assert len(names) > 1 and names[:3] == ["int8", "int8 without 1 layer", "int8 without 2 layers"][: len(names)]
    assert "pixel agreement" in tuned.rungs[0].rejected[0]
    assert tuple(tuned.sensitivity) == tuned.rungs[0].layers, "every layer was measured"
    assert all(0 <= share < 0.1 for share in tuned.sensitivity.values())
    worst = max(tuned.sensitivity, key=lambda layer: tuned.sensitivity[layer])
    assert set(tuned.rungs[0].layers) - set(tuned.rungs[1].layers) == {worst}
    assert tuned.winner not in (None, "int8") and tuned.bundle is not None
    record = tuned.bundle.record
    assert record.precision.int8_layers == tuned.rungs[-1].layers
    assert record.command.count("^decode_head") + record.command.count("^backbone") == 2 + 4 - len(
        tuned.rungs[-1].layers
    )


def test_a_rung_that_is_not_faster_than_the_next_is_rejected(data: Path, tmp_path: Path) -> None:
    """The ranges were measured before: they serve int8 only, so fp16 is not calibrated."""

    def time_file(model: onnx.ModelProto) -> float:
        pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
        return 5.0 + pairs if pairs else {"fp16": 4.0, "fp32": 9.0}[read_facts(model).precision]

    ranges = tmp_path / "ranges.json"
    given: dict[str, Any] = {"recipe": "minmax", "include": ONE, "size": SIZE_HW, "images": 3, "progress": False}
    nrd_trt.calibrate(checkpoint(), "synthetic", output=ranges, **given)
    given = {"calibration": ranges, "images": None, "recipe": None, "include": ONE}
    tuned = tune(tmp_path / "tuned.nrd", data, time_file=time_file, **given)
    assert tuned.winner == "fp16" and tuned.bundle is not None
    assert all("not faster than" in rung.rejected[0] for rung in tuned.rungs[:-1])
    assert tuned.bundle.graph.precision == "fp16"
    assert "calibration=" not in tuned.bundle.record.command


def test_ladder_leaves_twice_as_many_of_the_worst_out_each_time() -> None:
    layers = tuple("abcdefghij")
    steps = list_steps(layers, {name: index / 100 for index, name in enumerate(layers)})
    assert [len(step.layers) for step in steps] == [10, 9, 8, 6, 2, 0, 0]
    assert [step.precision for step in steps] == ["int8"] * 5 + ["fp16", "fp32"]
    assert steps[2].layers == tuple("abcdefgh")
    on_cpu = list_steps(layers, dict.fromkeys(layers, 0.0), "cpu")
    assert [step.precision for step in on_cpu] == ["int8"] * 5 + ["fp32"]
    assert len({step.name for step in steps}) == len(steps)


RUNG = Rung(
    name="int8",
    precision="int8",
    layers=("a", "b"),
    int8_layers=2,
    pixel_agreement=0.98,
    miou_engine=0.71,
    miou_drop=0.006,
    latency_ms=1.5,
)


def test_a_rung_is_described_in_one_line() -> None:
    assert str(RUNG) == "int8: agreement 0.980000, mIoU 0.7100 (drop +0.0060), 1.500 ms: holds"
    assert str(replace(RUNG, rejected=("a", "b"))).endswith("rejected: a; b")
    unknown = replace(RUNG, pixel_agreement=None, miou_drop=None, latency_ms=None)
    assert str(unknown) == "int8: agreement not measured: holds"


def test_an_earlier_record_is_replaced_only_with_force_or_by_the_run_that_wrote_it(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.nrd"
    for kind in ("json", "png"):
        earlier = tmp_path / f"tuned.tune.{kind}"
        earlier.write_text('{"rungs": [], "sensitivity": {}}' if kind == "json" else "")
        for resume in (False, True):  # there is no state to resume
            with pytest.raises(ConfigError, match=rf"tuned\.tune\.{kind}: already exists; give force=True"):
                tune(output, data, resume=resume)
        with pytest.raises(CheckpointError, match="K = 5"):  # beyond the check
            tune(output, data, force=True, num_classes=5)
        earlier.unlink()
    with pytest.raises(ConfigError, match="expected a known argument"):
        tune(output, data, precision="int8")
    with pytest.raises(ConfigError, match="builder_options=: builder='onnxruntime' builds no plan"):
        tune(output, data, builder_options={"max_aux_streams": 1}, num_classes=5)  # found before the checkpoint's


# --- a run that was stopped


def test_a_run_that_is_stopped_again_and_again_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    """Every rung is timed once over all runs; layers that were measured are taken over."""
    output, state = tmp_path / "tuned.nrd", tmp_path / "tuned.nrd.tune-state.json"
    assert state == state_path(output)
    latencies, marked = [None, 9.0, 4.0, None, 1.0, 2.0], {}

    def time_file(file: onnx.ModelProto) -> float:
        if (latency_ms := latencies.pop(0)) is None:
            raise KeyboardInterrupt
        return latency_ms

    def stop_at_the_winner(stage: str) -> None:
        if stage.startswith("building the winner"):
            raise KeyboardInterrupt

    job: Any = {"time_file": time_file, "sensitivity": True}
    # At the lowest rung, after the layers; at the next, as int8 is slower; while the winner is built.
    for stop, left in enumerate((5, 2, 0)):
        with pytest.raises(KeyboardInterrupt):
            tune(output, data, resume=stop > 0, on_stage=stop_at_the_winner, **job)
        record = json.loads(state.read_text())
        assert (len(record["sensitivity"]), len(latencies), output.exists()) == (4, left, False)
        assert not marked or record["sensitivity"] == marked
        marked = {name: share + 1e-3 for name, share in record["sensitivity"].items()}
        state.write_text(json.dumps({**record, "sensitivity": marked}))
    with pytest.raises(ConfigError, match="got that of others"):
        tune(output, data, resume=True, include=ONE)
    tuned = tune(output, data, resume=True, **job)
    assert (tuned.sensitivity, tuned.winner) == (marked, "int8 without 1 layer")
    assert output.exists() and not state.exists()


def test_a_state_is_of_the_builders_options_too() -> None:
    request, calibrator = BuildRequest(source=checkpoint(), output=Path("a.nrd")), Calibrator("synthetic")
    keys = [
        variants._key(replace(request, config=ConfigOptions(builder_options=options)), calibrator, None)
        for options in ({}, {"max_aux_streams": "1"}, {"max_aux_streams": "2"}, {})
    ]
    assert len(set(keys)) == 3 and keys[0] == keys[-1]


def test_a_state_is_read_back_and_a_damaged_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = RungState(key="mine", sensitivity={"a": 0.5}, rungs={"int8": RUNG})
    state.save(path)
    assert open_state(path, "mine", resume=True) == state
    assert open_state(path, "mine", resume=False) == RungState(key="mine")
    for damaged in ("{", "[]", json.dumps({"key": "mine", "sensitivity": [], "rungs": {}})):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match=r"not a state of a search .*start again without resume=True"):
            open_state(path, "mine", resume=True)
