"""`benchmark` on a real GPU: its parts fit together, and the instruments tell what they should."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import nrd_trt
from nrd_trt.cli.benchmark import table
from nrd_trt.engine.compat import installed_flavours
from tests.artefacts import bundle
from tests.helpers import missing_for_plans

_MISSING = missing_for_plans()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_MISSING is not None, reason=f"needs a GPU: {_MISSING}")]


@cache
def planned() -> Path:
    return bundle(precision="fp16", builder=installed_flavours()[0])


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("copies", [True, False])
def test_figures_fit_together(streams: int, copies: bool) -> None:
    (row,) = nrd_trt.benchmark(
        planned(), runner=installed_flavours()[0], streams=streams, copies=copies, warmup=5, runs=50, progress=False
    ).rows
    compute, enqueue = row.timing.gpu_compute, row.timing.enqueue
    assert compute is not None and enqueue is not None
    assert compute.p50 > 0 and 0 < enqueue.p50 < row.latency.p50
    if streams == 1:  # several have more in flight while the engine is timed alone than while the calls are
        assert compute.p50 < row.latency.p50
    assert row.runs >= 50 * streams


def test_layers_and_energy_are_told() -> None:
    (row,) = nrd_trt.benchmark(
        planned(), runner=installed_flavours()[0], warmup=5, duration=3, profile=True, progress=False
    ).rows
    assert row.timing.seconds >= 3
    assert row.layers and sum(layer.share for layer in row.layers) == pytest.approx(1.0)
    assert row.energy is not None or any("energy" in note for note in row.notes)
    print("\n".join(table([row])))
