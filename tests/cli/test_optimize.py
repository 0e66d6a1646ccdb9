"""`nrd-trt optimize` as its user calls it: what it says, and its exit codes. The search: tests/optimization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nrd_trt as package
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.optimization.candidates import Budget, Candidate
from nrd_trt.optimization.optimize_record import Optimized
from tests.artefacts import SIZE_HW, bundle
from tests.cli.conftest import Invoke, one_object

FAST = Candidate(
    name="a-64x96-int8",
    source="a.pth",
    size=SIZE_HW,
    precision="int8",
    gmac=1.25,
    latency_ms=12.5,
    runner="openvino",
    miou=0.61,
    images=32,
    passed=True,
    onnx_sha256="0",
    rejected=("max_latency_ms=5: it has 12.5",),
)
HALF = replace(FAST, name="a-64x96-fp16", latency_ms=None, runner=None, passed=None, rejected=("export_candidates=",))
FOUND = Optimized(
    candidates=(FAST, HALF),
    front=(FAST.name,),
    chosen=None,
    budget=Budget(max_latency_ms=5),
    timed="cpu",
    target="cpu",
    calibrated_on_data=False,
    files=(Path("search/optimize.json"),),
)


def test_what_it_says(nrd_trt: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    found = [FOUND]
    monkeypatch.setattr(package, "optimize", lambda *_, **options: given.update(options) or found[0], raising=False)
    command = ("optimize", "a.pth", "-o", "search", "--sizes", "64x96,96x128", "--precisions", "int8,fp16")
    result = nrd_trt(*command, "--max-latency-ms", 5, "--json")
    assert (result.exit_code, one_object(result.stdout)) == (1, FOUND.to_dict())
    assert given["sizes"] == ((64, 96), (96, 128)) and given["precisions"] == ("int8", "fp16")
    assert "gate failed: --max-latency-ms 5: the nearest is a-64x96-int8 (12.50 ms, mIoU 0.6100)" in result.stderr
    assert "search smaller --sizes, other --precisions or a smaller network" in result.stderr
    table = nrd_trt(*command).stdout
    assert f"+ {FAST.name}     64x96   1.250    12.500  0.6100     32      –  openvino\n" in table
    assert "      --max-latency-ms 5: it has 12.5\n" in table and "      --export-candidates\n" in table
    found[0] = replace(FOUND, chosen=FAST.name, bundle=read_bundle(bundle()), candidates=(replace(FAST, rejected=()),))
    result = nrd_trt(*command)
    assert result.exit_code == 0 and f"\nchosen: {FAST}, {bundle()}\n" in result.stdout
    found[0] = replace(FOUND, exported=tmp_path / "away")
    result = nrd_trt(*command)
    assert result.exit_code == 0 and f"nrd-trt benchmark --compare {FAST.name}.nrd " in result.stderr
    assert nrd_trt("optimize", "a.pth", "-o", "search", "--sizes", "64").exit_code == 2
