"""Runs of a plan on device memory, on the fake driver: whose memory, which stream, which graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nrd_trt.errors import RunnerError, ShapeError
from nrd_trt.runtime.base import DeviceTensor
from nrd_trt.runtime.lane import GRAPH_CAPACITY
from tests.runtime.bench import LARGE, SMALL, Bench, caller, check, image, runner
from tests.runtime.fake_cuda import LAYERS, NOT_SUPPORTED, another_context


@pytest.mark.parametrize("host_runs", [0, 1, 3])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_device_runs_use_the_callers_memory_and_stream(bench: Bench, host_runs: int, shape: tuple[int, ...]) -> None:
    pixels = image(shape, seed=5)
    with runner() as trt, caller(bench.cuda) as mine:
        for seed in range(host_runs):
            check(trt, SMALL, seed)
        tensor, start = mine.put(pixels), len(bench.cuda.calls)
        outputs = trt.infer_device({"image": tensor}, mine.stream)
        queued = [call for call in bench.cuda.calls[start:] if call[0] in ("upload", "download", "enqueue")]
        assert queued == [("enqueue", mine.stream)]
        assert bench.since(start)[-2:] == ["enqueue", "record_event"]  # it waits for nothing
        assert np.array_equal(mine.read(outputs["mask"]), pixels[..., 0])
        assert np.allclose(mine.read(outputs["mean"]), pixels.mean(axis=-1))
        for seed in range(6, 9):
            check(trt, SMALL, seed)


def test_wrong_device_feeds_are_errors(bench: Bench) -> None:
    with runner() as trt:
        start = len(bench.cuda.calls)
        for name, shape, dtype in (("picture", SMALL, "u1"), ("image", SMALL, "i1"), ("image", SMALL[1:], "u1")):
            with pytest.raises(ShapeError):
                trt.infer_device({name: DeviceTensor(address=1, shape=shape, dtype=np.dtype(dtype))}, 1)
        assert bench.since(start) == []


def test_device_runs_replay_the_graph_of_their_addresses(bench: Bench) -> None:
    with runner() as trt, caller(bench.cuda) as mine:
        tensors = [mine.put(image(seed=seed)) for seed in range(2)]
        for round_of in range(3):
            for seed, tensor in enumerate(tensors):
                start = len(bench.cuda.calls)
                mask = trt.infer_device({"image": tensor}, mine.stream)["mask"]
                names = bench.since(start)
                assert names[-2] == ("launch_graph" if round_of else "enqueue")
                assert ("end_capture" in names) == (round_of == 1)
                assert round_of < 2 or names == ["wait_event", "launch_graph", "record_event"]
                assert np.array_equal(mine.read(mask), image(seed=seed)[..., 0])
        launched = [call[1] for call in bench.cuda.calls if call[0] == "launch_graph"]
        assert len(set(launched)) == 2 and launched[:2] == launched[2:]


def test_growing_memory_of_the_runner_waits_for_the_run_that_uses_it(bench: Bench) -> None:
    """Each input is then captured again, once, by the second run after the growth."""
    seen = []
    with runner() as trt, caller(bench.cuda) as mine:
        small, large = mine.put(image()), mine.put(image(LARGE))
        for tensor in (small, small, small, large, small, small, small, large, large):
            trt.infer_device({"image": tensor}, mine.stream)
            seen.append((bench.cuda.names().count("begin_capture"), len(bench.cuda.graphs)))
    assert seen == [(0, 0), (1, 1), (1, 1), (1, 0), (1, 0), (2, 1), (2, 1), (3, 2), (3, 2)]


def test_graph_that_makes_room_may_still_be_running(bench: Bench) -> None:
    with runner() as trt, caller(bench.cuda) as mine:
        *tensors, last = (mine.put(image(seed=seed)) for seed in range(GRAPH_CAPACITY + 1))
        for tensor in tensors * 3:
            trt.infer_device({"image": tensor}, mine.stream)
        assert len(bench.cuda.graphs) == GRAPH_CAPACITY and not bench.cuda.queued[-1].done
        trt.infer_device({"image": last}, mine.stream)
        assert len(bench.cuda.graphs) == GRAPH_CAPACITY - 1


def test_outputs_are_written_where_they_are_placed(bench: Bench) -> None:
    """The same input and two places: each has its own graph, and the memory of the runner stays as it was."""
    with runner() as trt, caller(bench.cuda) as mine:
        tensor = mine.put(image(seed=3))
        places = [{name: mine.room(128) for name in trt.outputs} for _ in range(2)]
        for place in places * 3:
            for address in place.values():
                bench.cuda.on_device(address, 128)[:] = 0
            outputs = trt.infer_device({"image": tensor}, mine.stream, lambda name, nbytes, place=place: place[name])
            assert {name: output.address for name, output in outputs.items()} == place
            assert np.array_equal(mine.read(outputs["mask"]), image(seed=3)[..., 0])
        assert len(bench.cuda.graphs) == 2


def test_memory_of_another_context_or_of_the_host_is_refused_before_the_run(bench: Bench) -> None:
    with runner() as trt, caller(bench.cuda) as mine:
        tensor = mine.put(image())
        with another_context(bench.cuda):
            foreign, start = mine.cuda.allocate(128), len(bench.cuda.calls)
            with pytest.raises(RunnerError, match=r"^tensor 'image': expected memory of the GPU's primary context"):
                trt.infer_device({"image": replace(tensor, address=foreign)}, mine.stream)
        pageable = np.zeros(128, np.uint8)
        with pytest.raises(RunnerError, match=r"^tensor 'mask': expected memory of this GPU, got the address"):
            trt.infer_device({"image": tensor}, mine.stream, lambda name, nbytes: pageable.ctypes.data)
        assert "enqueue" not in bench.since(start)
        assert np.array_equal(mine.read(trt.infer_device({"image": tensor}, mine.stream)["mask"]), image()[..., 0])


def test_a_refused_capture_warns_once_and_device_runs_go_on(bench: Bench) -> None:
    with runner() as trt, caller(bench.cuda) as mine:
        tensors = [mine.put(image(seed=seed)) for seed in range(2)]
        trt.infer_device({"image": tensors[0]}, mine.stream)
        bench.cuda.fail("cuStreamBeginCapture_v2", NOT_SUPPORTED)
        with pytest.warns(UserWarning, match="runs go on without a CUDA graph.*CUDA_ERROR_NOT_SUPPORTED"):
            trt.infer_device({"image": tensors[0]}, mine.stream)
        for seed in (0, 1, 0, 1):
            mask = trt.infer_device({"image": tensors[seed]}, mine.stream)["mask"]
            assert np.array_equal(mine.read(mask), image(seed=seed)[..., 0])
        assert not bench.cuda.graphs and len(bench.cuda.list("engine")) == 1


def test_layers_are_profiled_without_the_graphs_of_before(bench: Bench) -> None:
    told: list[tuple[str, float]] = []
    with runner() as trt, caller(bench.cuda) as mine:
        tensor = mine.put(image(seed=1))
        for _ in range(3):
            trt.infer_device({"image": tensor}, mine.stream)
        mine.cuda.synchronize(mine.stream)
        assert len(bench.cuda.graphs) == 1
        trt.profile_layers(lambda name, milliseconds: told.append((name, milliseconds)))
        for _ in range(3):
            mask = trt.infer_device({"image": tensor}, mine.stream)["mask"]
        assert np.array_equal(mine.read(mask), image(seed=1)[..., 0])
        assert (told, bench.cuda.graphs, trt.cuda_graph) == (list(LAYERS.items()) * 3, [], False)
    with pytest.raises(RunnerError, match="not entered"):
        trt.profile_layers(lambda *_: None)
