"""The search: what is ruled out and why, a run that is killed, budgets, latencies of a device, recipes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nrd_trt
from nrd_trt.engine.bundle import ONNX_FILE, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.optimization import latencies as clock_module
from nrd_trt.optimization.candidates import Budget, Candidate, front
from nrd_trt.optimization.optimize_record import Optimized
from nrd_trt.optimization.sieve import Sketch, rule_out
from nrd_trt.training.recipes import RECIPES
from tests.artefacts import SIZE, SIZE_HW, checkpoint, listing, scenes, untrained_checkpoint
from tests.training.conftest import tiny
from tests.warm.programs import command_line

pytestmark = [
    pytest.mark.filterwarnings("ignore:classes never:UserWarning"),
    pytest.mark.filterwarnings("ignore:calibration set. . images, fewer:UserWarning"),
]
NAME = f"trained-{SIZE}"
GATES = {"min_agreement": 0.8, "max_miou_drop": 0.5}
"""On pictures this small the default ones are a matter of chance."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "scenes", 3, labels=True)


def optimize(output: Path, data: Path | None, *sources: Path | str, **changes: Any) -> Optimized:
    given: dict[str, Any] = {"sizes": [SIZE_HW], "precisions": ["fp32"], "calibration": "synthetic", "images": 3}
    quick = {"recipe": "minmax", "threads": 1, "progress": False}
    return nrd_trt.optimize(sources or [checkpoint()], output, data=data, **{**given, **GATES, **quick, **changes})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, Optimized]:
    """A search that chose; do not change its folder."""
    output = tmp_path_factory.mktemp("first") / "search"
    return output, optimize(output, data, precisions=["fp32", "fp16", "int8", "mixed"], max_latency_ms=1e6)


def test_the_winner_is_a_bundle_and_every_candidate_has_figures_or_a_reason(first: tuple[Path, Optimized]) -> None:
    output, found = first
    by_name = {one.name: one for one in found.candidates}
    assert list(by_name) == [f"{NAME}-{precision}" for precision in ("fp32", "fp16", "int8", "mixed")]
    built = [by_name[f"{NAME}-fp32"], by_name[f"{NAME}-int8"]]
    for one in built:
        assert (one.rejected, one.passed, one.images) == ((), True, 3) and one.ranked
        assert read_bundle(output / "candidates" / f"{one.name}.nrd").record.files[ONNX_FILE] == one.onnx_sha256
    assert by_name[f"{NAME}-int8"].int8_layers and by_name[f"{NAME}-fp32"].int8_layers == 0
    assert all(one.quick_ms and one.latency_ms for one in built)
    sixteen = by_name[f"{NAME}-fp16"]
    assert sixteen.latency_ms is None and sixteen.miou is not None and sixteen.passed is None, "a CPU only imitates it"
    assert "no native runs" in sixteen.rejected[0] and "export_candidates=" in sixteen.rejected[0]
    assert "leaves nothing to mix" in by_name[f"{NAME}-mixed"].rejected[0]
    best = max(built, key=lambda one: (one.miou or 0, -(one.latency_ms or 0)))
    assert found.chosen == best.name and found.front[-1] == best.name and found.failures == []
    assert found.bundle is not None and read_bundle(output / "best.nrd").record == found.bundle.record
    told = json.loads((output / "optimize.json").read_text())
    assert told == {key: value for key, value in found.to_dict().items() if key not in ("path", "files", "exported")}
    assert {"name", "size", "precision", "latency_ms", "miou"} <= told["candidates"][0].keys()
    assert told["candidates"][0]["size"] == SIZE and (told["timed"], told["target"]) == ("cpu", "cpu")
    assert (output / "optimize.png").read_bytes().startswith(b"\x89PNG")


def test_another_budget_is_answered_without_building_again(
    first: tuple[Path, Optimized], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Impossible ones, too: how close one can get, and what would have to give."""
    source, _ = first
    output = tmp_path / "search"
    subprocess.run(["cp", "-r", source, output], check=True)
    monkeypatch.setattr("nrd_trt.optimization.variants.build_bundle", lambda _: pytest.fail("it was built before"))
    monkeypatch.setattr("nrd_trt.optimization.variants.export_full", lambda *_: pytest.fail("it was exported before"))
    precisions = ["fp32", "int8"]
    found = optimize(output, data, precisions=precisions, max_latency_ms=1e-3, min_miou=0.999, resume=True)
    assert (found.chosen, found.bundle, (output / "best.nrd").exists()) == (None, None, False)
    assert len(found.failures) == 2 and found.front
    assert found.failures[0].startswith("max_latency_ms=0.001: the nearest with no other bound is trained-64x96-")
    assert "search smaller sizes=" in found.failures[0] and "a better network" in found.failures[1]
    assert all(len(one.rejected) == 2 for one in found.candidates if one.ranked)
    monkeypatch.setattr("nrd_trt.optimization.latencies.memory_alone", lambda bundle, run: 100.0)
    found = optimize(output, data, precisions=precisions, min_fps=1e-3, max_memory_mb=200, resume=True)
    assert found.chosen in found.front and {one.memory_mb for one in found.candidates} == {100.0 * 2**20 / 1e6}
    with pytest.raises(ConfigError, match=r"states/trained-64x96\.json: .*got that of others"):
        optimize(output, data, precisions=precisions, seed=1, resume=True)


def test_a_search_goes_on_with_what_was_built(first: tuple[Path, Optimized], data: Path, tmp_path: Path) -> None:
    """What a kill leaves that came while the second candidate was built; `make kills` ends searches anywhere."""
    output, lost = tmp_path / "search", f"{NAME}-int8.nrd"
    shutil.copytree(first[0], output)
    for path in (output / "best.nrd", output / "candidates" / lost):
        shutil.rmtree(path)
    (output / "optimize.json").unlink()
    kept = output / "candidates" / f"{NAME}-fp32.nrd/bundle.json"
    before, said = kept.stat().st_mtime_ns, list[str]()
    found = optimize(output, data, precisions=["fp32", "int8"], resume=True, on_stage=said.append)
    assert found.chosen and kept.stat().st_mtime_ns == before and (output / "candidates" / lost).is_dir()
    assert [stage for stage in said if stage.startswith("building")] == [f"building {NAME}-int8"]
    assert [path for path in listing(output) if "/." in f"/{path}"] == [], "nothing is left"


@pytest.mark.all_combinations
def test_a_killed_search_goes_on_with_what_was_built(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "search"
    options = ("--sizes", SIZE, "--precisions", "fp32,int8", "--calibration", "synthetic", "--images", 3)
    options += ("--recipe", "minmax", "--threads", 1, "--min-agreement", 0.8, "--max-miou-drop", 0.5, "--resume")
    command = command_line("optimize", checkpoint(), "-o", output, "--data", data, *options, "--json")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        deadline = time.monotonic() + 120
        while not (built := list((output / "candidates").glob("*.nrd/bundle.json"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL and not (output / "best.nrd").exists()
    assert len(built) == 1
    before = built[0].stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["chosen"] and built[0].stat().st_mtime_ns == before
    assert f"building {built[0].parent.stem}" not in done.stderr, "it was built"
    assert [path for path in listing(output) if "/." in f"/{path}"] == [], "nothing of the killed run is left"


def test_candidates_are_timed_on_a_device_and_read_back(data: Path, tmp_path: Path) -> None:
    output, away = tmp_path / "search", tmp_path / "away"
    exported = optimize(output, data, export_candidates=away, target="cpu")
    assert (exported.exported, exported.chosen, exported.failures, exported.timed) == (away, None, [], "none")
    bundle = away / f"{NAME}-fp32.nrd"
    rebuilt = nrd_trt.build(bundle, tmp_path / bundle.name, builder="onnxruntime", threads=1, progress=False)
    row = nrd_trt.benchmark(rebuilt.path, runs=2, warmup=0, threads=1, progress=False).to_dict()
    row["latency_ms"]["p50"] = 12.5
    file = tmp_path / "latencies.json"

    def read(**changes: Any) -> Optimized:
        file.write_text(json.dumps({**row, **changes}))
        return optimize(output, data, latencies=file, target="cpu", max_latency_ms=20, resume=True)

    found = read()
    (one,) = found.candidates
    assert (found.chosen, one.latency_ms, found.timed) == (one.name, 12.5, "device")
    (one,) = read(arithmetic="fp32").candidates
    assert one.latency_ms is None and "no native runs" in one.rejected[0]
    for changes, text in (
        ({"checkpoint_sha256": "0" * 64}, "got that of another network in 'trained-64x96-fp32.nrd'"),
        ({"onnx_sha256": "0" * 64}, "expected the ONNX file .* got 000000000000…"),
        ({"onnx_sha256": None}, "got no hash of a bundle's file"),
        ({"batch": 8}, "got batch=8"),
        ({"latency_ms": 3}, "expected what `nrd_trt.benchmark` tells"),
    ):
        with pytest.raises(ConfigError, match=f"latencies=.*{text}"):
            read(**changes)
    with pytest.raises(ConfigError, match="exclude each other"):
        optimize(output, data, latencies=file, export_candidates=away)


def test_a_recipe_is_timed_and_never_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "camvid_r18", replace(tiny(), name="camvid_r18"))
    found = optimize(tmp_path / "search", None, "camvid_r18")
    (one,) = found.candidates
    assert one.latency_ms is not None and (one.miou, one.images, found.chosen, found.front) == (None, 0, None, ())
    assert one.gmac > 0 and "train it first: nrd_trt.train('camvid_r18'" in one.rejected[0]
    assert "no candidate can be chosen" in found.failures[0]


def test_bad_input_loses_nothing(data: Path, tmp_path: Path, first: tuple[Path, Optimized]) -> None:
    plain = scenes(tmp_path / "plain", 1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").touch()
    before = listing(tmp_path)
    output = tmp_path / "search"
    for arguments, text in (
        ({"data": plain}, "expected images with labels"),
        ({"data": None}, "expected images with labels"),
        ({"sizes": [(64, 100)]}, r"sizes=64x100: expected height and width to be multiples of 32"),
        ({"precisions": ["int4"]}, "precisions='int4': expected one of"),
        ({"max_latency_ms": 5, "min_fps": 5}, "exclude each other"),
        ({"min_miou": 1.5}, "min_miou=1.5: expected a fraction"),
        ({"max_memory_mb": 0}, "max_memory_mb=0: expected a number above 0"),
        ({"trials": 0}, "trials=0"),
        ({"output": foreign, "force": True}, "expected the folder of a search or none, got mine.txt"),
        ({"output": first[0]}, "already exists; give resume=True to go on"),
        ({"latencies": tmp_path / "absent.json"}, "expected what `nrd_trt.benchmark` tells"),
    ):
        with pytest.raises(nrd_trt.NrdTrtError, match=text):
            optimize(**{"output": output, "data": data, **arguments})
    for sources, text in (
        (["no_such_recipe"], "expected a checkpoint file or the name of a recipe"),
        ([checkpoint(), checkpoint()], "got trained again"),
        ([checkpoint(), untrained_checkpoint()], "expected the 11 classes of .*, got 19 others"),
    ):
        with pytest.raises(ConfigError, match=text):
            optimize(output, data, *sources)
    assert listing(tmp_path) == before


# --- rules, without a run


def sketch(name: str, latency_ms: float | None, miou: float | None, **changes: Any) -> Sketch:
    facts: dict[str, Any] = {"source": "a", "precision": "int8", "macs": 10, "weight_bytes": 10**6}
    facts |= {"activation_bytes": 10**6, "exact": False, "holds": True}
    return Sketch(name=name, latency_ms=latency_ms, miou=miou, **{**facts, **changes})


def test_what_cheap_figures_rule_out() -> None:
    fast, slow, close = sketch("fast", 10, 0.60), sketch("slow", 20, 0.55), sketch("close", 12, 0.55)
    assert rule_out([fast, slow, close], Budget()) == {
        "slow": "dominated by fast: 10.0 and 20.0 ms, mIoU 0.6000 and 0.5500 on a few images"
    }, "a factor of 1.2 is within the noise of a few calls"
    assert set(rule_out([replace(one, exact=True) for one in (fast, slow, close)], Budget())) == {"slow", "close"}
    assert rule_out([replace(fast, holds=False), slow], Budget()) == {}, "it may not be built"
    assert "more than 1.5 times the budget" in rule_out([fast, slow], Budget(max_latency_ms=12))["slow"]
    assert "min_miou=0.62" in rule_out([fast, slow], Budget(min_miou=0.62))["slow"]
    assert (
        "weights alone take 2.0 MB"
        in rule_out([fast, sketch("big", 1, 0.9, weight_bytes=2 * 10**6)], Budget(max_memory_mb=1.5))["big"]
    )
    assert set(rule_out([fast, slow], Budget(max_latency_ms=1))) == {"slow"}, "the nearest stays, to say how near"
    unknown = [
        sketch("small", None, 0.60),
        sketch("large", None, 0.55, macs=11),
        sketch("other", None, 0.5, macs=19, source="b"),
    ]
    assert set(rule_out(unknown, Budget())) == {"large"}, "of another network half the multiply-adds are needed"
    assert rule_out([sketch("random", 99, None), fast], Budget(max_latency_ms=20)).keys() == {"random"}


def candidate(name: str, latency_ms: float, miou: float, memory_mb: float | None = None) -> Candidate:
    figures: dict[str, Any] = {"latency_ms": latency_ms, "miou": miou, "memory_mb": memory_mb, "passed": True}
    return Candidate(name=name, source="a", size=SIZE_HW, precision="fp32", gmac=1.0, **figures)


def test_the_budget_chooses() -> None:
    found = [candidate("c", 30, 0.7), candidate("a", 10, 0.5), candidate("d", 40, 0.6), candidate("b", 20, 0.6)]
    assert [one.name for one in front(found)] == ["a", "b", "c"]
    for budget, name in ((Budget(), "c"), (Budget(max_latency_ms=25), "b"), (Budget(min_miou=0.55), "b")):
        chosen = budget.choose(found)
        assert chosen is not None and chosen.name == name
    tight = Budget(max_latency_ms=15, min_miou=0.65)
    assert tight.choose(found) is None
    assert [line.split(";")[0] for line in tight.shortfall(found)] == [
        "max_latency_ms=15: the nearest is c (30.00 ms, mIoU 0.7000)",
        "min_miou=0.65: the nearest is a (10.00 ms, mIoU 0.5000)",
    ]
    assert Budget(max_memory_mb=5).choose(found) is None, "what was not measured keeps to nothing"


def test_memory_is_that_of_a_process_of_its_own(first: tuple[Path, Optimized]) -> None:
    bundle = first[1].bundle
    assert bundle is not None
    memory_mib = clock_module.memory_alone(bundle, clock_module.RunOptions(threads=1))
    assert memory_mib is not None and 20 < memory_mib < 2000
