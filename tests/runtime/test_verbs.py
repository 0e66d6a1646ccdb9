"""Every verb that runs a plan, on the fake driver: with CUDA graphs, without them, and where the driver refuses one."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import nrd_trt
from nrd_trt.building.request import BuildRequest
from nrd_trt.data.images import read_image
from nrd_trt.engine.bundle import PLAN_FILE
from nrd_trt.files import sha256_file
from nrd_trt.optimization.tune import _plan_latency
from nrd_trt.runtime.select import RunOptions
from tests.artefacts import SIZE_HW, bundle, copy_of, onnx_file, read_facts_of, rewrite_facts, scenes
from tests.engine.surface.enterprise import enterprise
from tests.runtime.bench import Bench
from tests.runtime.conftest import MakeBench
from tests.runtime.fake_cuda import NOT_SUPPORTED, MaskEngine
from tests.serving.waiting import until

RUNS = 8
"""Enough for a capture in every place that a frame of a video may be kept in."""


class FewClasses(MaskEngine):
    """An engine that draws classes that the network has."""

    last_class = 10


@pytest.fixture(autouse=True)
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with enterprise TensorRT."""
    monkeypatch.setitem(sys.modules, "tensorrt", enterprise("10.3.0"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a plan that was built on the fake GPU."""
    path = copy_of(bundle(), tmp_path_factory.mktemp("planned") / "city.nrd")
    (path / PLAN_FILE).write_bytes(b"plan")
    facts = read_facts_of(path)
    made_on = {
        "name": "tensorrt",
        "version": "10.3.0",
        "compute_capabilities": ["8.7"],
        "machine": platform.machine(),
        "gpu": "Fake GPU 0",
    }
    files = {**facts["files"], PLAN_FILE: sha256_file(path / PLAN_FILE)}
    rewrite_facts(path, builder={**facts["builder"], **made_on}, files=files)
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the engine's size, and their labels."""
    return scenes(tmp_path_factory.mktemp("scenes") / "val", RUNS, labels=True, size_hw=SIZE_HW)


Use = Callable[[Path, Path, Bench, Path, bool], Any]
"""Takes bundle, data, bench, a folder to write to, and whether graphs are wanted; returns whether the plan ran."""


def predict(path: Path, data: Path, bench: Bench, folder: Path, graph: bool) -> Any:
    with nrd_trt.open_bundle(path, cuda_graph=graph) as engine:
        for image in sorted((data / "images").iterdir()):
            engine.predict(read_image(image))
        return engine.plan_ran


def validate(path: Path, data: Path, bench: Bench, folder: Path, graph: bool) -> Any:
    return nrd_trt.validate(path, min_agreement=0.0, cuda_graph=graph, progress=False).plan_ran


def evaluate(path: Path, data: Path, bench: Bench, folder: Path, graph: bool) -> Any:
    return nrd_trt.evaluate(path, data, cuda_graph=graph, progress=False).plan_ran


def benchmark(path: Path, data: Path, bench: Bench, folder: Path, graph: bool) -> Any:
    (row,) = nrd_trt.benchmark(path, runs=RUNS, cuda_graph=None if graph else False, progress=False).rows
    assert row.cuda_graph is ("launch_graph" in bench.cuda.names())
    return row.plan_ran


def video(path: Path, data: Path, bench: Bench, folder: Path, graph: bool) -> Any:
    found = nrd_trt.segment_video(data / "images", "null", path, cuda_graph=graph, progress=False)
    assert found.frames == RUNS
    return found.plan_ran


def serve(path: Path, data: Path, bench: Bench, folder: Path, graph: bool) -> Any:
    pytest.importorskip("fastapi", reason="needs fastapi: pip install nrd-trt[serve]")

    def ready(url: str, token: str | None) -> None:
        until(lambda: bench.cuda.names().count("synchronize_event") > 2 * RUNS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nrd_trt.serve(data / "images", path, port=0, cuda_graph=graph, on_ready=ready)
    return bool(bench.asked)


def build(path: Path, data: Path, bench: Bench, folder: Path, graph: bool) -> Any:
    made = nrd_trt.build(
        onnx_file(),
        folder / "built.nrd",
        precision="fp32",
        decode="onnx",
        min_agreement=0.0,
        cuda_graph=graph,
        force=True,
        progress=False,
    )
    return made.record.validation.plan_ran


def tune(path: Path, data: Path, bench: Bench, folder: Path, graph: bool) -> Any:
    request = BuildRequest(source=onnx_file(), output=folder / "a.nrd", run=RunOptions(cuda_graph=graph))
    return _plan_latency(request, onnx.load(onnx_file())) is not None


@pytest.mark.parametrize("use", [predict, validate, evaluate, benchmark, video, serve, build, tune])
def test_a_graph_that_is_refused_is_a_warning_in_every_verb(
    use: Use, planned: Path, labelled: Path, make_bench: MakeBench, tmp_path: Path
) -> None:
    """Once, and runs go on; without graphs none is tried, and else they are replayed."""
    for wanted, refused in ((True, False), (True, True), (False, True)):
        bench = make_bench(FewClasses)
        if refused:
            bench.cuda.fail("cuStreamBeginCapture_v2", NOT_SUPPORTED)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert use(planned, labelled, bench, tmp_path, wanted) is True
        said = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
        assert len(said) == (wanted and refused), said
        assert all("tensorrt: runs go on without a CUDA graph, with the same masks: CUDA: " in line for line in said)
        assert ("begin_capture" in bench.cuda.names(), "launch_graph" in bench.cuda.names()) == (
            wanted,
            wanted and not refused,
        )
