"""Runs of a plan on device memory, against a double of the driver: whose memory, which stream, which graph."""

from __future__ import annotations

import numpy as np
import pytest

from nrd_trt.errors import ShapeError
from nrd_trt.runtime.base import DeviceTensor
from nrd_trt.runtime.trt_runner import GRAPH_CAPACITY, TrtRunner
from tests.runtime.bench import LARGE, SMALL, Bench, check, image, runner
from tests.runtime.fake_cuda import FakeCuda


def on_device(cuda: FakeCuda, pixels: np.ndarray) -> DeviceTensor:
    address = cuda.allocate(pixels.nbytes)
    cuda.on_device(address, pixels.nbytes)[:] = pixels.reshape(-1)
    return DeviceTensor(address=address, shape=pixels.shape, dtype=pixels.dtype)


def read(cuda: FakeCuda, tensor: DeviceTensor) -> np.ndarray:
    nbytes = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
    return cuda.on_device(tensor.address, nbytes).copy().view(tensor.dtype).reshape(tensor.shape)


@pytest.mark.parametrize("host_runs", [0, 1, 3])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_device_runs_use_the_callers_memory_and_stream(bench: Bench, host_runs: int, shape: tuple[int, ...]) -> None:
    pixels = image(shape, seed=5)
    with runner() as trt:
        for seed in range(host_runs):
            check(trt, SMALL, seed)
        mine, tensor = bench.cuda.create_stream(), on_device(bench.cuda, pixels)
        start = len(bench.cuda.calls)
        outputs = trt.infer_device({"image": tensor}, mine)
        queued = [call for call in bench.cuda.calls[start:] if call[0] in ("upload", "download", "enqueue")]
        assert queued == [("enqueue", mine)]
        assert bench.since(start)[-1] == "enqueue"  # it may wait before, where memory moves
        bench.cuda.synchronize(mine)
        assert np.array_equal(read(bench.cuda, outputs["mask"]), pixels[..., 0])
        assert np.allclose(read(bench.cuda, outputs["mean"]), pixels.mean(axis=-1))
        for seed in range(6, 9):
            check(trt, SMALL, seed)
        bench.cuda.free(tensor.address)
        bench.cuda.destroy_stream(mine)


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"picture": DeviceTensor(address=1, shape=SMALL, dtype=np.dtype(np.uint8))},
        {"image": DeviceTensor(address=1, shape=SMALL, dtype=np.dtype(np.int8))},
        {"image": DeviceTensor(address=1, shape=SMALL[1:], dtype=np.dtype(np.uint8))},
    ],
    ids=["missing", "renamed", "type", "rank"],
)
def test_wrong_device_feeds_are_errors(bench: Bench, feed: dict[str, DeviceTensor]) -> None:
    with runner() as trt:
        start = len(bench.cuda.calls)
        with pytest.raises(ShapeError):
            trt.infer_device(feed, 1)
        assert bench.since(start) == []


def run_on_device(trt: TrtRunner, cuda: FakeCuda, tensor: DeviceTensor, stream: int, seed: int) -> list[str]:
    """Run, check the mask in the runner's memory and return the calls."""
    start = len(cuda.calls)
    mask = trt.infer_device({"image": tensor}, stream)["mask"]
    names = cuda.names()[start:]
    cuda.synchronize(stream)
    assert np.array_equal(read(cuda, mask), image(seed=seed)[..., 0])
    return names


def test_device_runs_replay_the_graph_of_their_addresses(bench: Bench) -> None:
    with runner() as trt:
        stream, tensors = bench.cuda.create_stream(), [on_device(bench.cuda, image(seed=seed)) for seed in range(2)]
        calls = [
            [run_on_device(trt, bench.cuda, tensor, stream, seed) for seed, tensor in enumerate(tensors)]
            for _ in range(3)
        ]
        assert [names[-1] for names in calls[0]] == ["enqueue", "enqueue"]
        assert all("end_capture" in names and names[-1] == "launch_graph" for names in calls[1])
        assert calls[2] == [["launch_graph"], ["launch_graph"]]
        launched = [call[1] for call in bench.cuda.calls if call[0] == "launch_graph"]
        assert len(set(launched)) == 2 and launched[:2] == launched[2:]
        for tensor in tensors:
            bench.cuda.free(tensor.address)
        bench.cuda.destroy_stream(stream)


def test_growing_memory_of_the_runner_waits_for_the_run_that_uses_it(bench: Bench) -> None:
    with runner() as trt:
        stream, small = bench.cuda.create_stream(), on_device(bench.cuda, image())
        for _ in range(3):
            trt.infer_device({"image": small}, stream)
        large = bench.cuda.allocate(int(np.prod(LARGE)))
        trt.infer_device({"image": DeviceTensor(address=large, shape=LARGE, dtype=np.dtype(np.uint8))}, stream)
        assert not bench.cuda.graphs
        bench.cuda.synchronize(stream)
        for address in (small.address, large):
            bench.cuda.free(address)
        bench.cuda.destroy_stream(stream)


def test_graph_that_makes_room_may_still_be_running(bench: Bench) -> None:
    with runner() as trt:
        stream = bench.cuda.create_stream()
        tensors = [on_device(bench.cuda, image(seed=seed)) for seed in range(GRAPH_CAPACITY + 1)]
        for tensor in tensors:
            for _ in range(3):
                trt.infer_device({"image": tensor}, stream)
        assert len(bench.cuda.graphs) == GRAPH_CAPACITY
        bench.cuda.synchronize(stream)
        for tensor in tensors:
            bench.cuda.free(tensor.address)
        bench.cuda.destroy_stream(stream)


def test_outputs_are_written_where_they_are_placed(bench: Bench) -> None:
    """The same input and two places: each has its own graph, and the memory of the runner stays as it was."""
    with runner() as trt:
        stream, tensor = bench.cuda.create_stream(), on_device(bench.cuda, image(seed=3))
        places = [{name: bench.cuda.allocate(128) for name in trt.outputs} for _ in range(2)]
        for _ in range(3):
            for place in places:
                for address in place.values():
                    bench.cuda.on_device(address, 128)[:] = 0
                outputs = trt.infer_device({"image": tensor}, stream, lambda name, nbytes, place=place: place[name])
                assert {name: output.address for name, output in outputs.items()} == place
                bench.cuda.synchronize(stream)
                assert np.array_equal(read(bench.cuda, outputs["mask"]), image(seed=3)[..., 0])
        assert len(bench.cuda.graphs) == 2
        for address in [tensor.address, *places[0].values(), *places[1].values()]:
            bench.cuda.free(address)
        bench.cuda.destroy_stream(stream)
