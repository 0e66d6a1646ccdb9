"""The runner of plans on a fake driver and engine: what is copied, queued, captured and freed, and in which context."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrd_trt.errors import RunnerError, ShapeError
from nrd_trt.runtime.base import DeviceRunner
from nrd_trt.runtime.lane import GRAPH_CAPACITY, Lane, Run
from nrd_trt.runtime.trt_runner import TrtRunner
from tests.engine.records import record
from tests.runtime.bench import LARGE, SMALL, Bench, caller, check, image, runner
from tests.runtime.conftest import MakeBench
from tests.runtime.fake_cuda import (
    CAPTURE_UNSUPPORTED,
    ILLEGAL_ADDRESS,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    NotedCuda,
    another_context,
    faulting,
)

REFUSALS: dict[str, Callable[[Bench], object]] = {
    "run": lambda bench: setattr(bench.engines[0], "fail_at", 2),
    "begin": lambda bench: bench.cuda.fail("cuStreamBeginCapture_v2", NOT_SUPPORTED),
    "copy": lambda bench: bench.cuda.fail("cuMemcpyHtoDAsync_v2", CAPTURE_UNSUPPORTED, at=2),
    "end": lambda bench: bench.cuda.fail("cuStreamEndCapture", CAPTURE_UNSUPPORTED),
    "instantiate": lambda bench: bench.cuda.fail("cuGraphInstantiateWithFlags", OUT_OF_MEMORY),
}
ONE_RUN = ["upload", "enqueue", "download", "download", "synchronize"]
REPLAY = ["wait_event", "launch_graph", "record_event", "synchronize"]


def test_is_a_runner_and_loads_as_it_is_told(bench: Bench, tmp_path: Any) -> None:
    (tmp_path / "engine.plan").write_bytes(b"from a file")
    with runner() as first, TrtRunner(tmp_path / "engine.plan", flavour="tensorrt", rebuild="x", host_code=True):
        assert isinstance(first, DeviceRunner)  # a protocol: by what it has, not by descent
        assert list(first.inputs) == ["image"] and list(first.outputs) == ["mask", "mean"]
    assert bench.asked == [
        (b"plan", {"host_code": False, "rebuild": "rebuild it"}),
        (b"from a file", {"host_code": True, "rebuild": "x"}),
    ]


def test_gives_right_and_fresh_arrays(bench: Bench) -> None:
    wide = image((2, 4, 16, 3))[:, :, ::2]
    with runner() as trt:
        results = [check(trt, SMALL, seed) for seed in range(4)]
        assert np.array_equal(trt.infer({"image": wide})["mask"], wide[..., 0])  # a view, in its own order
    for seed, outputs in enumerate(results):
        assert np.array_equal(outputs["mask"], image(SMALL, seed)[..., 0])  # not overwritten by later runs
        assert outputs["mask"].flags.owndata or outputs["mask"].base.flags.owndata
        outputs["mask"][...] = 0


@pytest.mark.parametrize("before", [[], [LARGE]], ids=["first", "after a larger one"])
def test_the_images_own_bytes_are_copied_around_the_run(bench: Bench, before: list[tuple[int, ...]]) -> None:
    with runner() as trt:
        for shape in before:
            check(trt, shape, 0)
        start = len(bench.cuda.calls)
        check(trt, SMALL, 1)
        calls = [call for call in bench.cuda.calls[start:] if call[0] in ONE_RUN]
    assert [call[0] for call in calls] == ONE_RUN
    assert [call[3] for call in calls if call[0] in ("upload", "download")] == [96, 32, 128]
    assert not before or not any(name.startswith("allocate") for name in bench.since(start))


def test_integrated_gpus_copy_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(integrated=True)
    with runner() as trt:
        for seed in range(4):
            check(trt, SMALL, seed)
            check(trt, LARGE, seed)
    names = bench.cuda.names()
    assert not {"upload", "download"} & set(names)
    assert "launch_graph" in names and names.count("allocate") == 2  # scratch memory, which grew once


def test_second_run_of_a_shape_is_captured_and_later_ones_replay_its_graph(bench: Bench) -> None:
    shapes = [LARGE, SMALL, (2, 4, 8, 3)]
    with runner() as trt:
        assert trt.cuda_graph
        for seed in range(5):
            for number, shape in enumerate(shapes):
                start = len(bench.cuda.calls)
                check(trt, shape, seed)
                assert len(bench.cuda.graphs) == (0 if seed == 0 else number + 1 if seed == 1 else len(shapes))
                if seed >= 2:
                    assert bench.since(start) == REPLAY
        launched = [call[1] for call in bench.cuda.calls if call[0] == "launch_graph"]
        assert len(set(launched)) == len(shapes) == len(bench.engines[0].contexts) - 1


def test_least_recently_used_graph_goes(bench: Bench) -> None:
    shapes = [(1, 8, 8, 3), *((1, 2 + n, 8, 3) for n in range(GRAPH_CAPACITY))]
    with runner() as trt:
        for shape in shapes[:-1]:
            check(trt, shape, 0)
            check(trt, shape, 1)
        check(trt, shapes[0], 2)  # used again, so that shapes[1] is the oldest
        first, second = list(bench.cuda.graphs)[:2]
        check(trt, shapes[-1], 0)
        check(trt, shapes[-1], 1)
        assert len(bench.cuda.graphs) == GRAPH_CAPACITY
        assert first in bench.cuda.graphs and second not in bench.cuda.graphs
        assert [context.alive for context in bench.engines[0].contexts] == [True, True, False, True, True, True]
        for shape in shapes:
            check(trt, shape, 3)


def test_more_alternating_runs_than_graphs_are_not_captured_in_turn(bench: Bench) -> None:
    shapes = [(1, 4, 4 + 4 * n, 3) for n in range(GRAPH_CAPACITY + 1)]
    with runner() as trt:
        for seed in range(4):
            for shape in shapes:
                check(trt, shape, seed)
    assert "begin_capture" not in bench.cuda.names()


def test_growing_buffers_frees_the_graphs_that_hold_the_old_ones(bench: Bench) -> None:
    """Each shape is then captured again, once, by the second run after the growth."""
    seen = []
    with runner() as trt:
        for seed, shape in enumerate([SMALL, SMALL, SMALL, LARGE, SMALL, SMALL, SMALL, LARGE, LARGE]):
            check(trt, shape, seed)
            captures, engines = bench.cuda.names().count("begin_capture"), bench.cuda.list("engine")
            seen.append((captures, len(bench.cuda.graphs), len(engines)))
    one, two = (1, 1, 2), (2, 1, 2)
    assert seen == [(0, 0, 1), one, one, (1, 0, 1), (1, 0, 1), two, two, (3, 2, 3), (3, 2, 3)]


@pytest.mark.parametrize(("asked", "has_graphs"), [(False, True), (True, False)])
def test_never_captures_without_graphs(make_bench: MakeBench, asked: bool, has_graphs: bool) -> None:
    bench = make_bench(has_graphs=has_graphs)
    with runner(cuda_graph=asked) as trt:
        assert trt.cuda_graph is False
        for seed in range(4):
            check(trt, SMALL, seed)
    assert bench.cuda.names().count("enqueue") == 4
    assert not {"begin_capture", "launch_graph"} & set(bench.cuda.names())
    assert len(bench.engines[0].contexts) == 1


def test_a_run_that_fails_in_its_capture_and_again_without_is_an_error(bench: Bench) -> None:
    with runner() as trt:
        check(trt, SMALL, 0)
        bench.engines[0].fail_at, bench.engines[0].contexts[0].fail_at = 2, 2
        with pytest.warns(UserWarning, match="without a CUDA graph"), pytest.raises(RunnerError, match="start the run"):
            trt.infer({"image": image()})
        check(trt, SMALL, 1)


@pytest.mark.parametrize("failing", ["run", "copy back", "wait"])
def test_a_run_before_its_capture_that_fails_is_an_error_and_no_refusal(bench: Bench, failing: str) -> None:
    with runner() as trt:
        check(trt, SMALL, 0)
        if failing == "run":
            bench.engines[0].fail_at = 1
        else:
            function = {"copy back": "cuMemcpyDtoHAsync_v2", "wait": "cuStreamSynchronize"}[failing]
            bench.cuda.fail(function, ILLEGAL_ADDRESS)
        with pytest.raises(RunnerError, match=r"could not start the run|CUDA_ERROR_ILLEGAL_ADDRESS"):
            trt.infer({"image": image()})
        bench.engines[0].fail_at = 0
        assert trt.cuda_graph and len(bench.cuda.list("engine")) == 1
        check(trt, SMALL, 1)
        assert len(bench.cuda.graphs) == 1


@pytest.mark.parametrize("runs", [0, 1], ids=["plain", "before its capture"])
@pytest.mark.parametrize("host", [True, False])
def test_the_first_error_of_a_device_that_has_faulted_is_told(bench: Bench, host: bool, runs: int) -> None:
    with caller(bench.cuda) as mine:
        tensor = mine.put(image())

        def run(trt: TrtRunner) -> None:
            trt.infer({"image": image()}) if host else trt.infer_device({"image": tensor}, mine.stream)

        with ExitStack() as stack, pytest.raises(RunnerError, match=r"^fake: could not start"), runner() as trt:
            for _ in range(runs):
                run(trt)
            stack.enter_context(faulting())
            run(trt)


@pytest.mark.parametrize("refused", REFUSALS)
def test_a_refused_capture_warns_once_and_runs_go_on_without_graphs(bench: Bench, refused: str) -> None:
    with runner() as trt:
        check(trt, SMALL, 0)
        REFUSALS[refused](bench)
        with pytest.warns(
            UserWarning, match="^tensorrt: runs go on without a CUDA graph, with the same masks: "
        ) as said:
            check(trt, SMALL, 1)
        assert len(said) == 1
        assert not trt.cuda_graph and not bench.cuda.capturing and not bench.cuda.graphs
        assert len(bench.cuda.list("engine")) == 1
        start = len(bench.cuda.calls)
        for seed in range(3):  # a second warning would be an error
            check(trt, SMALL, seed)
            check(trt, LARGE, seed)
        assert not {"begin_capture", "launch_graph"} & set(bench.since(start))


def test_other_threads_work_on_while_one_captures(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """They allocate and wait, which a capture for all threads would forbid them and break with."""
    record = Lane._record
    with runner() as trt, caller(bench.cuda) as mine, ThreadPoolExecutor(1) as pool:

        def recording(lane: Lane, context: Any, run: Run) -> int:
            def queue_beside(captured: Any, stream: int) -> None:
                run.queue(captured, stream)
                pool.submit(beside).result()

            return record(lane, context, replace(run, queue=queue_beside))

        def beside() -> None:
            with mine.cuda.current():
                mine.room(64)
                mine.cuda.synchronize(mine.stream)

        monkeypatch.setattr(Lane, "_record", recording)
        for seed in range(3):
            check(trt, SMALL, seed)
        assert len(mine.held) == len(bench.cuda.graphs) == 1


@pytest.mark.parametrize("fail_at", range(1, 15))
def test_out_of_memory_says_what_to_do_and_leaves_no_half_of_a_pair(make_bench: MakeBench, fail_at: int) -> None:
    """In the first run, or where the buffers of a graph are to grow; that goes, because it holds freed ones."""
    bench = make_bench(fail_at=fail_at)
    growing, failing = divmod(fail_at - 1, 7)  # three pairs, then scratch memory
    with runner() as trt:
        for seed in range(2 if growing else 0):
            check(trt, SMALL, seed)
        with pytest.raises(RunnerError, match="out of memory, close other programs or build a smaller size"):
            trt.infer({"image": image(LARGE)})
        assert not bench.cuda.graphs
        pairs = 3 if failing == 6 else 2 if growing else failing // 2
        scratch = 1 if growing and failing < 6 else 0
        assert (len(bench.cuda.list("host")), len(bench.cuda.list("device"))) == (pairs, pairs + scratch)
        for shape in (SMALL, LARGE, SMALL):
            check(trt, shape, 2)


def test_users_are_freed_before_what_they_use(bench: Bench) -> None:
    with runner() as trt:
        check(trt, SMALL, 0)
        check(trt, SMALL, 1)
        start = len(bench.cuda.calls)
    order = bench.since(start)
    names = ["synchronize_event", "destroy_event", "destroy_graph", "close", "free", "close", "free", "destroy_stream"]
    assert [name for name in order if name in names] == [*names[:6], *["free"] * 3, names[-1]]


@pytest.mark.parametrize(
    "failing", ["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuStreamCreate", "cuMemGetInfo_v2"]
)
def test_error_while_opening_releases_what_was_taken(bench: Bench, failing: str) -> None:
    trt = runner()
    bench.cuda.fail(failing, OUT_OF_MEMORY)
    with pytest.raises(RunnerError, match=f"^CUDA: {failing[:12]}.* failed.*of memory, close other programs"):
        trt.__enter__()
    assert bench.cuda.alive == {}
    with trt:
        check(trt, SMALL, 0)


def test_one_failing_release_does_not_keep_the_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    destroy = NotedCuda.destroy_graph

    def failing(self: NotedCuda, graph: int) -> None:
        destroy(self, graph)
        raise RunnerError("CUDA: sticky")

    monkeypatch.setattr(NotedCuda, "destroy_graph", failing)
    with pytest.raises(RunnerError, match="sticky"), runner() as trt:
        for shape in (LARGE, SMALL) * 2:
            check(trt, shape, 0)
        assert len(bench.cuda.graphs) == 2
    assert bench.cuda.alive == {}


def test_runs_from_any_thread_whatever_context_it_has(bench: Bench) -> None:
    """A new thread has no context, and that of the second one belongs to somebody else."""
    with runner() as trt:

        def without() -> None:
            for seed in range(3):
                check(trt, SMALL, seed)

        def with_another() -> None:
            with another_context(bench.cuda) as context:
                for seed in range(3):
                    check(trt, LARGE, seed)
                assert bench.cuda.current_context() == context  # it was given back

        for work in (without, with_another):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(work).result()
        assert len(bench.cuda.graphs) == 1


def test_may_be_entered_again_and_leaves_nothing(bench: Bench) -> None:
    trt = runner()
    for seed in range(2):
        with trt:
            check(trt, SMALL, seed)
            check(trt, SMALL, seed)
        assert bench.cuda.alive == {}
    with pytest.raises(RunnerError, match="not entered"):
        trt.infer_device({}, 0)


def test_feeds_are_checked_before_any_copy(bench: Bench) -> None:
    with runner() as trt:
        check(trt, SMALL, 1)
        start = len(bench.cuda.calls)
        for feed in ({}, {"image": image((5, 4, 8, 3))}):  # the second is refused by the engine
            with pytest.raises(ShapeError):
                trt.infer(feed)
        assert bench.since(start) == []
        check(trt, SMALL, 0)


def test_a_plan_of_another_file_is_refused_before_it_takes_memory(bench: Bench) -> None:
    trt = runner(graph=record().model)
    with pytest.raises(
        RunnerError, match=r"tensor 'mean': float32 any×any×any, expected none.*Rebuild it with: rebuild it"
    ):
        trt.__enter__()
    assert bench.cuda.alive == {} and "allocate" not in bench.cuda.names()
