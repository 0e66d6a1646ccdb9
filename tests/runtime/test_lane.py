"""Scratch memory of a plan's runs on the fake driver: one block for each stream, whatever is captured or grows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrd_trt.errors import RunnerError
from nrd_trt.runtime.base import DeviceTensor
from nrd_trt.runtime.lane import GRAPH_CAPACITY, Lane, Run
from nrd_trt.runtime.trt_runner import LANE_CAPACITY, TrtRunner
from tests.runtime.bench import LARGE, SMALL, Bench, Caller, caller, check, image, runner
from tests.runtime.fake_cuda import OUT_OF_MEMORY, NotedCuda


def pixels(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[:3]))


def blocks(bench: Bench) -> set[tuple[int, int]]:
    """Scratch memory that the contexts have which are alive: addresses and sizes."""
    return {context.scratch for context in bench.engines[0].contexts if context.alive}


def device_bytes(bench: Bench) -> int:
    return sum(bench.cuda.library.fake_room(address) for address in bench.cuda.list("device"))


def run(trt: TrtRunner, one: Caller, tensor: DeviceTensor) -> DeviceTensor:
    return trt.infer_device({"image": tensor}, one.stream)["mask"]


def test_contexts_of_one_stream_share_memory_for_the_largest_shape(bench: Bench) -> None:
    """Those of four graphs and the one of runs without."""
    shapes = [LARGE, SMALL, (1, 8, 8, 3), (2, 4, 8, 3)]
    with runner() as trt:
        for seed in range(4):
            for shape in shapes:
                check(trt, shape, seed)
        contexts = bench.engines[0].contexts
        assert len(contexts) == len(bench.cuda.graphs) + 1 == GRAPH_CAPACITY + 1
        ((_, nbytes),) = blocks(bench)
        assert nbytes == max(context.scratch_bytes for context in contexts) == 4 * pixels(LARGE)
        assert device_bytes(bench) == (3 + 1 + 4) * pixels(LARGE) + nbytes  # image, mask and mean


def test_streams_have_memory_of_their_own_and_need_not_wait_for_each_other(bench: Bench) -> None:
    with runner() as trt, caller(bench.cuda) as one, caller(bench.cuda) as two:
        tensors = [one.put(image(seed=0)), two.put(image(seed=1))]
        for _ in range(4):  # without a graph, captured, replayed
            masks = [run(trt, *pair) for pair in zip((one, two), tensors, strict=True)]
            first, second = (thing for thing in bench.cuda.queued[-8:] if thing.name == "engine" and not thing.done)
            assert not second.is_behind(first)
            for seed, (caller_of, mask) in enumerate(zip((one, two), masks, strict=True)):
                assert np.array_equal(caller_of.read(mask), image(seed=seed)[..., 0])
            check(trt, SMALL, 2)  # on the runner's own stream
        assert len(blocks(bench)) == 3
        assert {nbytes for _, nbytes in blocks(bench)} == {4 * pixels(SMALL)}


def test_growth_waits_for_its_stream_and_drops_the_graphs_of_that_alone(bench: Bench) -> None:
    with runner() as trt, caller(bench.cuda) as one, caller(bench.cuda) as two:
        small, other, large = one.put(image(seed=0)), two.put(image(seed=1)), one.put(image(LARGE, seed=2))
        for _ in range(3):
            for pair in ((one, small), (two, other)):
                run(trt, *pair)
        _, second = bench.cuda.graphs
        assert not bench.cuda.queued[-1].done
        mask = run(trt, one, large)
        assert bench.cuda.graphs == [second]
        start = len(bench.cuda.calls)
        assert np.array_equal(two.read(run(trt, two, other)), image(seed=1)[..., 0])
        assert [call[1] for call in bench.cuda.calls[start:] if call[0] == "launch_graph"] == [second]
        assert np.array_equal(one.read(mask), image(LARGE, seed=2)[..., 0])
        for _ in range(3):
            assert np.array_equal(one.read(run(trt, one, small)), image(seed=0)[..., 0])
        assert sorted(nbytes for _, nbytes in blocks(bench)) == [4 * pixels(SMALL), 4 * pixels(LARGE)]


def test_out_of_memory_where_scratch_memory_grows_leaves_what_can_run(bench: Bench) -> None:
    with runner() as trt, caller(bench.cuda) as mine:
        small, large = mine.put(image()), mine.put(image(LARGE))
        place = {name: mine.room(4 * pixels(LARGE)) for name in trt.outputs}
        for tensor in (small, small):
            trt.infer_device({"image": tensor}, mine.stream, lambda name, nbytes: place[name])
        bench.cuda.fail("allocation", OUT_OF_MEMORY)
        with pytest.raises(RunnerError, match="out of memory"):
            trt.infer_device({"image": large}, mine.stream, lambda name, nbytes: place[name])
        assert not bench.cuda.graphs
        for tensor, shape in ((small, SMALL), (large, LARGE)) * 3:
            assert np.array_equal(mine.read(run(trt, mine, tensor)), image(shape)[..., 0])


def test_streams_that_come_and_go_hold_a_bounded_memory(bench: Bench) -> None:
    """The memory of the one that was not used for longest goes, once its runs have ended; the stream may be gone."""
    with runner() as trt:
        sizes = []
        for seed in range(LANE_CAPACITY + 3):
            with caller(bench.cuda) as mine:
                tensor = mine.put(image(seed=seed))
                for _ in range(3):
                    assert np.array_equal(mine.read(run(trt, mine, tensor)), image(seed=seed)[..., 0])
            sizes.append((len(blocks(bench)), len(bench.cuda.graphs), device_bytes(bench)))
        assert sizes[-1] == sizes[LANE_CAPACITY - 1] == (LANE_CAPACITY, LANE_CAPACITY, LANE_CAPACITY * sizes[0][2])


def test_runs_that_have_not_ended_are_waited_for_before_their_memory_goes(bench: Bench) -> None:
    with runner(cuda_graph=False) as trt, ExitStack() as stack:
        callers = [stack.enter_context(caller(bench.cuda)) for _ in range(LANE_CAPACITY + 1)]
        tensors = [one.put(image(seed=seed)) for seed, one in enumerate(callers)]
        for one, tensor in zip(callers, tensors, strict=True):
            run(trt, one, tensor)
        engine_runs = [thing for thing in bench.cuda.queued if thing.name == "engine"]
        assert [thing.done for thing in engine_runs] == [True, *[False] * LANE_CAPACITY]
        # The second is the next to go, unless it is used again.
        run(trt, callers[1], tensors[1])
        run(trt, callers[0], tensors[0])
        assert [thing.done for thing in engine_runs[1:3]] == [False, True]


def test_leaving_waits_for_runs_on_streams_of_others(bench: Bench) -> None:
    with caller(bench.cuda) as mine:
        with runner() as trt:
            tensor = mine.put(image())
            for _ in range(3):
                run(trt, mine, tensor)
            assert not bench.cuda.queued[-1].done
        assert bench.cuda.queued[-1].done


def test_a_context_that_cannot_be_captured_is_not_and_that_is_said_once(bench: Bench) -> None:
    with runner() as trt, caller(bench.cuda) as mine:
        bench.engines[0].capturable = False
        check(trt, SMALL, 0)
        with pytest.warns(
            UserWarning, match="runs go on without a CUDA graph, with the same masks: fake: may allocate"
        ):
            check(trt, SMALL, 1)
        tensor = mine.put(image())
        for seed in range(3):
            check(trt, SMALL, seed)
            assert np.array_equal(mine.read(run(trt, mine, tensor)), image()[..., 0])
        assert "begin_capture" not in bench.cuda.names() and not trt.cuda_graph


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_runs_on_the_default_streams_are_replayed_too(bench: Bench, stream: int) -> None:
    with runner() as trt, caller(bench.cuda) as mine:
        tensor = mine.put(image())
        for _ in range(3):
            mask = run(trt, replace(mine, stream=stream), tensor)
            mine.cuda.synchronize(stream)
            assert np.array_equal(mine.read(mask), image()[..., 0])
        assert trt.cuda_graph and bench.cuda.names().count("launch_graph") == 2


def test_the_default_stream_is_for_use_while_a_run_of_a_stream_that_waits_for_it_is_captured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyCUDA's and CuPy's streams do unless they are told otherwise, and other threads use the default one."""
    record = Lane._record
    with runner() as trt, caller(bench.cuda) as mine, ThreadPoolExecutor(1) as pool:
        own, event = mine.stream, mine.cuda.create_event()
        mine.stream = bench.cuda.library.fake_blocking_stream()

        def recording(lane: Lane, context: Any, one: Run) -> int:
            def queue_beside(captured: Any, stream: int) -> None:
                one.queue(captured, stream)
                pool.submit(beside).result()

            return record(lane, context, replace(one, queue=queue_beside))

        def beside() -> None:
            with mine.cuda.current():
                mine.cuda.record_event(event, 0)
                mine.cuda.synchronize(0)

        monkeypatch.setattr(Lane, "_record", recording)
        tensor = mine.put(image())
        for _ in range(3):
            assert np.array_equal(mine.read(run(trt, mine, tensor)), image()[..., 0])
        assert len(bench.cuda.graphs) == 1
        mine.cuda.destroy_event(event)
        mine.cuda.destroy_stream(own)


@pytest.mark.parametrize(("failing", "at"), [("cuEventCreate", 1), ("cuEventRecord", 1)])
def test_a_stream_that_cannot_be_taken_leaves_nothing(bench: Bench, failing: str, at: int) -> None:
    with runner() as trt:
        held = bench.cuda.alive
        bench.cuda.fail(failing, OUT_OF_MEMORY, at=at)
        with pytest.raises(RunnerError, match=f"{failing} failed"):
            trt.infer({"image": image()})
        assert bench.cuda.alive == held
        check(trt, SMALL, 0)


def test_one_lane_that_cannot_be_released_does_not_keep_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = NotedCuda.synchronize_event

    def failing(self: NotedCuda, event: int) -> None:
        wait(self, event)
        raise RunnerError("CUDA: sticky")

    with caller(bench.cuda) as mine:
        trt = runner()
        with trt:
            run(trt, mine, mine.put(image()))
            check(trt, SMALL, 0)
            monkeypatch.setattr(NotedCuda, "synchronize_event", failing)
            with pytest.raises(RunnerError, match="sticky"):
                trt.__exit__(None, None, None)
        monkeypatch.undo()
        assert bench.engines[0].contexts and not any(context.alive for context in bench.engines[0].contexts)
