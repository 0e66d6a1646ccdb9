"""The comparison of overlapped with plain runs, on a double of the driver; its figures mean nothing here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nrd_trt.engine.bundle import read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.runtime.overlap import OverlappedRunner
from nrd_trt.runtime.select import make_runner
from scripts.dev import benchmark_overlap as overlap
from scripts.dev.benchmark_overlap import Figures
from tests.artefacts import bundle
from tests.runtime import fake_cuda
from tests.runtime.bench import Bench, image, runner

KEYS = ["target", "runner", "size", "frames", "rounds", "equal", "plain_fps", "overlapped_fps", "ratio"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    assert made.cuda.alive == {}


def test_equal_runs_are_timed(bench: Bench) -> None:
    with runner() as trt:
        figures = overlap.compare(trt, [{"image": image(seed=seed)} for seed in range(3)], frames=4, rounds=2)
    assert figures.equal and min(figures.plain_fps or 0, figures.overlapped_fps or 0, figures.ratio or 0) > 0
    assert bench.cuda.names().count("begin_capture") == 3  # of the plain runs and of both slots


def test_runs_that_differ_are_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, runs = OverlappedRunner.finish, []

    def wrong(self: OverlappedRunner, ticket: Any) -> dict[str, np.ndarray]:
        outputs = finish(self, ticket)
        runs.append(len(runs))
        outputs["mask"][0, 0, 0] ^= len(runs) == 2
        return outputs

    monkeypatch.setattr(OverlappedRunner, "finish", wrong)
    with runner() as trt:
        figures = overlap.compare(trt, [{"image": image()}] * 3, frames=4, rounds=2)
    assert figures == Figures(equal=False)


def test_a_runner_on_the_cpu_has_nothing_to_overlap() -> None:
    with (
        make_runner(read_bundle(bundle()), "onnxruntime") as cpu,
        pytest.raises(ConfigError, match="expected one that works on device memory"),
    ):
        overlap.compare(cpu, [], frames=1, rounds=1)


@pytest.mark.parametrize("equal", [True, False])
def test_script(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], equal: bool) -> None:
    monkeypatch.setattr(overlap, "make_runner", lambda opened, name: runner())
    monkeypatch.setattr(fake_cuda, "LARGEST", (4, 1024, 1024, 3))
    if not equal:
        monkeypatch.setattr(overlap, "_equal", lambda *args: False)
    arguments = [str(bundle()), "--runner", "tensorrt", "--frames", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark_overlap.py", *arguments, "--json"])
    assert overlap.main() == (0 if equal else 1)
    row = json.loads(capsys.readouterr().out)
    assert list(row) == KEYS and (row["runner"], row["equal"]) == ("tensorrt", equal)
    monkeypatch.setattr(sys, "argv", ["benchmark_overlap.py", *arguments])
    assert overlap.main() == (0 if equal else 1)
    assert ("frames/s run by run" if equal else "differ from plain ones") in capsys.readouterr().out
