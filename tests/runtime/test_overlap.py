"""Overlapped runs on a strict fake of the driver: what is queued in which order, and that they equal plain runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrd_trt.errors import ConfigError, RunnerError, ShapeError
from nrd_trt.runtime.overlap import OverlappedRunner, Ticket
from tests.runtime.bench import LARGE, SMALL, Bench, caller, image, runner
from tests.runtime.bench import check_outputs as check
from tests.runtime.conftest import MakeBench
from tests.runtime.fake_cuda import LARGEST, OUT_OF_MEMORY, FakeEngine, NotedCuda, PackedEngine, Queued, faulting

REPLAYED = [
    *("upload", "record_event", "wait_event"),
    *("wait_event", "launch_graph", "record_event"),  # of the runner
    *("record_event", "wait_event", "download", "download", "record_event"),
]


def feed(shape: tuple[int, ...] = SMALL, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": image(shape, seed)}


def warm(overlapped: OverlappedRunner, shape: tuple[int, ...] = SMALL) -> None:
    """Run so often that every slot has its memory and its graph."""
    for _ in range(2):
        tickets = [overlapped.begin(feed(shape)) for _ in range(overlapped.slots)]
        for ticket in reversed(tickets):
            overlapped.finish(ticket)


# --- order ----------------------------------------------------------------------------------------------------------


def test_neighbours_overlap_and_only_what_must_wait_does(bench: Bench) -> None:
    with runner() as trt, OverlappedRunner(trt) as overlapped:
        warm(overlapped)
        start, calls = len(bench.cuda.queued), len(bench.cuda.calls)
        tickets = [overlapped.begin(feed(seed=seed)) for seed in range(2)]
        assert not [name for name in bench.since(calls) if name.startswith(("synchronize", "allocate", "free"))]
        by_name: dict[str, list[Queued]] = {}
        for node in bench.cuda.queued[start:]:
            by_name.setdefault(node.name, []).append(node)
        uploads, engines, downloads = (by_name[name] for name in ("upload", "engine", "download"))
        # Runs across, what they may be behind down: only the engine waits for the other run, and for its engine only.
        assert [[node.is_behind(upload) for node in engines] for upload in uploads] == [[True, True], [False, True]]
        assert [[node.is_behind(engine) for node in engines] for engine in engines] == [[True, True], [False, True]]
        assert [[node.is_behind(engine) for node in uploads] for engine in engines] == [[False, False]] * 2
        assert [[node.is_behind(download) for node in engines] for download in downloads] == [[False, False]] * 4
        assert [node.is_behind(engines[0]) for node in downloads] == [True] * 4
        assert [node.is_behind(engines[1]) for node in downloads] == [False, False, True, True]
        for seed, ticket in enumerate(tickets):
            check(overlapped.finish(ticket), SMALL, seed)


def test_a_warm_run_is_copies_and_a_graph_and_its_end_does_not_wait_for_the_next(bench: Bench) -> None:
    with runner() as trt, OverlappedRunner(trt) as overlapped:
        warm(overlapped)
        assert len(bench.cuda.graphs) == 2
        start = len(bench.cuda.calls)
        first = overlapped.begin(feed(seed=1))
        assert bench.since(start) == REPLAYED
        second = overlapped.begin(feed(seed=2))
        start = len(bench.cuda.calls)
        check(overlapped.finish(first), SMALL, 1)
        assert bench.since(start) == ["synchronize_event"]
        assert [node.done for node in bench.cuda.queued if node.name == "engine"][-2:] == [True, False]
        check(overlapped.finish(second), SMALL, 2)


def test_one_run_at_a_time_keeps_to_one_slot(bench: Bench) -> None:
    with runner() as trt, OverlappedRunner(trt) as overlapped:
        for seed in range(5):
            check(overlapped.finish(overlapped.begin(feed(seed=seed))), SMALL, seed)
        assert len(bench.cuda.graphs) == 1


@pytest.mark.parametrize(
    ("settings", "never"),
    [
        ({"integrated": True}, {"upload", "download"}),
        ({"has_graphs": False}, {"begin_capture", "launch_graph"}),
    ],
    ids=["integrated", "no graphs"],
)
def test_no_copies_or_no_graphs_where_there_are_none(
    make_bench: MakeBench, settings: dict[str, bool], never: set[str]
) -> None:
    bench = make_bench(**settings)
    with runner() as trt, OverlappedRunner(trt) as overlapped:
        warm(overlapped)
        start = len(bench.cuda.calls)
        tickets = [overlapped.begin(feed(seed=seed)) for seed in range(2)]
        assert "synchronize" not in bench.since(start)
        for seed, ticket in enumerate(tickets):
            check(overlapped.finish(ticket), SMALL, seed)
    assert not never & set(bench.cuda.names())


@pytest.mark.parametrize("integrated", [False, True])
def test_inputs_on_the_device_are_copied_there_and_need_no_graphs_of_their_own(
    make_bench: MakeBench, integrated: bool
) -> None:
    bench = make_bench(integrated=integrated)
    with runner() as trt, OverlappedRunner(trt) as overlapped, caller(bench.cuda) as mine:
        tensors = [mine.put(image(seed=seed)) for seed in range(6)]
        warm(overlapped)
        start = len(bench.cuda.calls)
        for pair in ((0, 1), (2, 3), (4, 5)):
            tickets = [overlapped.begin({"image": tensors[seed]}) for seed in pair]
            for seed, ticket in zip(pair, tickets, strict=True):
                check(overlapped.finish(ticket), SMALL, seed)
        names = bench.since(start)
        assert (names.count("copy"), names.count("upload"), names.count("launch_graph")) == (6, 0, 6)
        with pytest.raises(RunnerError, match=r"^tensor 'image': expected memory of this GPU, got the address 0x7,"):
            overlapped.begin({"image": replace(tensors[0], address=7)})
        check(overlapped.finish(overlapped.begin({"image": tensors[0]})), SMALL, 0)


# --- equal to plain runs --------------------------------------------------------------------------------------------

SHAPES = [SMALL, LARGE, (1, 8, 8, 3), (2, 4, 4, 3), LARGEST]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, len(SHAPES) - 1)), st.tuples(st.just("finish"), st.integers(0, 7))
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=120, derandomize=True)
@given(
    steps=STEPS,
    slots=st.integers(1, 3),
    integrated=st.booleans(),
    has_graphs=st.booleans(),
    packed=st.booleans(),
)
def test_any_interleaving_equals_plain_runs(
    steps: list[tuple[str, int]], slots: int, integrated: bool, has_graphs: bool, packed: bool
) -> None:
    engine = PackedEngine if packed else FakeEngine
    encoding: Any = "u8x4" if packed else "uint8"
    with pytest.MonkeyPatch.context() as monkeypatch:
        bench = Bench(monkeypatch, engine, integrated=integrated, has_graphs=has_graphs)
        with (
            runner(mask_encoding=encoding) as plain,
            runner(mask_encoding=encoding) as trt,
            OverlappedRunner(trt, slots=slots) as overlapped,
        ):
            begun: list[tuple[Ticket, dict[str, np.ndarray]]] = []
            finished: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
            for seed, (step, choice) in enumerate(steps):
                if step == "begin" and len(begun) < slots:
                    pixels = feed(SHAPES[choice], seed)
                    begun.append((overlapped.begin(pixels), plain.infer(pixels)))
                    pixels["image"][...] = 0  # the feed is not needed any more
                elif step == "finish" and begun:
                    ticket, wanted = begun.pop(choice % len(begun))
                    finished.append((overlapped.finish(ticket), wanted))
        for got, wanted in finished:  # fresh: no later run has written to them
            assert got.keys() == wanted.keys()
            for name, array in wanted.items():
                assert got[name].dtype == array.dtype and np.array_equal(got[name], array), name
        assert (bench.cuda.alive, bench.cuda.violation) == ({}, "")


# --- slots and tickets ----------------------------------------------------------------------------------------------


def test_more_runs_than_slots_is_an_error(bench: Bench) -> None:
    with runner() as trt, OverlappedRunner(trt) as overlapped:
        tickets = [overlapped.begin(feed(seed=seed)) for seed in range(2)]
        with pytest.raises(RunnerError, match="all 2 slots hold runs that were begun; finish one first"):
            overlapped.begin(feed())
        check(overlapped.finish(tickets[0]), SMALL, 0)
        third = overlapped.begin(feed(seed=2))
        check(overlapped.finish(tickets[1]), SMALL, 1)
        check(overlapped.finish(third), SMALL, 2)


def test_tickets_are_for_one_finish(bench: Bench) -> None:
    with runner() as trt, OverlappedRunner(trt) as overlapped:
        ticket = overlapped.begin(feed())
        overlapped.finish(ticket)
        with pytest.raises(RunnerError, match="expected a run that was begun here and not finished"):
            overlapped.finish(ticket)
        left = overlapped.begin(feed())
        with runner() as other, OverlappedRunner(other) as foreign, pytest.raises(RunnerError, match="begun here"):
            foreign.finish(left)
        overlapped.__exit__(None, None, None)
        with overlapped, pytest.raises(RunnerError, match="begun here"):
            overlapped.finish(left)


def test_use_outside_is_an_error_and_exit_may_be_repeated(bench: Bench) -> None:
    with runner() as trt:
        overlapped = OverlappedRunner(trt)
        with pytest.raises(RunnerError, match="not entered"):
            overlapped.begin(feed())
        with overlapped:
            ticket = overlapped.begin(feed())
            with pytest.raises(RunnerError, match="already entered"):
                overlapped.__enter__()
        overlapped.__exit__(None, None, None)
        with pytest.raises(RunnerError, match="not entered"):
            overlapped.finish(ticket)
    with pytest.raises(ConfigError, match="slots: expected at least 1, got 0"):
        OverlappedRunner(trt, slots=0)


def test_runs_that_nobody_finishes_are_waited_for(bench: Bench) -> None:
    """The fake driver refuses that anything goes while a run uses it."""
    trt = runner()
    for seed in range(3):
        with trt, OverlappedRunner(trt) as overlapped:
            for shape in (SMALL, LARGE, LARGE):
                check(overlapped.finish(overlapped.begin(feed(shape, seed))), shape, seed)
            overlapped.begin(feed(LARGE))
            overlapped.begin(feed(SMALL))
        assert bench.cuda.alive == {}


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_start_hurts_no_other_and_leaves_its_slot_usable(bench: Bench) -> None:
    with runner() as trt, OverlappedRunner(trt) as overlapped:
        start = len(bench.cuda.calls)
        for wrong in ({"picture": image()}, {"image": image(SMALL[1:])}):
            with pytest.raises(ShapeError):
                overlapped.begin(wrong)
        assert bench.since(start) == []
        first = overlapped.begin(feed(seed=1))
        for seed in range(3):
            with pytest.raises(ShapeError, match="expected at most"):
                overlapped.begin(feed((5, 4, 8, 3)))
            context = bench.engines[0].contexts[0]
            context.fail_at = context.runs + 1
            with pytest.raises(RunnerError, match="could not start the run"):
                overlapped.begin(feed((1, 2, 4 + seed, 3)))
            check(overlapped.finish(overlapped.begin(feed(seed=seed))), SMALL, seed)
        check(overlapped.finish(first), SMALL, 1)


def test_the_first_error_of_a_device_that_has_faulted_is_told(bench: Bench) -> None:
    with faulting(), pytest.raises(RunnerError, match=r"^fake: could not start the run"):
        with runner() as trt, OverlappedRunner(trt) as overlapped:
            overlapped.begin(feed())


def test_a_failed_capture_hurts_no_other(bench: Bench) -> None:
    with runner() as trt, OverlappedRunner(trt) as overlapped:
        tickets = [overlapped.begin(feed(seed=seed)) for seed in range(2)]
        check(overlapped.finish(tickets[0]), SMALL, 0)
        bench.engines[0].fail_at = 2
        with pytest.warns(UserWarning, match="without a CUDA graph.*could not start the run"):
            tickets.append(overlapped.begin(feed(seed=2)))
        assert not bench.cuda.capturing and not bench.cuda.graphs and len(bench.cuda.list("engine")) == 1
        for seed, ticket in enumerate(tickets[1:], 1):
            check(overlapped.finish(ticket), SMALL, seed)
        warm(overlapped)
        assert not bench.cuda.graphs and not trt.cuda_graph


@pytest.mark.parametrize("fail_at", range(1, 7))
def test_out_of_memory_leaves_the_slot_usable(make_bench: MakeBench, fail_at: int) -> None:
    bench = make_bench()
    with runner() as trt, OverlappedRunner(trt) as overlapped:
        first = overlapped.begin(feed(seed=1))
        bench.cuda.fail("allocation", OUT_OF_MEMORY, at=fail_at)
        with pytest.raises(RunnerError, match="out of memory"):
            overlapped.begin(feed(LARGE))
        for seed in range(3):
            check(overlapped.finish(overlapped.begin(feed(LARGE, seed))), LARGE, seed)
        check(overlapped.finish(first), SMALL, 1)


@pytest.mark.parametrize(("failing", "at"), [("cuStreamCreate", 3), ("cuEventCreate", 3), ("cuMemGetInfo_v2", 1)])
def test_error_while_opening_releases_what_was_taken(bench: Bench, failing: str, at: int) -> None:
    with runner() as trt:
        held = bench.cuda.alive
        bench.cuda.fail(failing, OUT_OF_MEMORY, at=at)
        with pytest.raises(RunnerError, match=f"{failing} failed"):
            OverlappedRunner(trt).__enter__()
        assert bench.cuda.alive == held


def test_a_failed_wait_does_not_keep_the_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = NotedCuda.synchronize

    def failing(self: NotedCuda, stream: int) -> None:
        wait(self, stream)
        raise RunnerError("CUDA: sticky")

    with runner() as trt:
        overlapped = OverlappedRunner(trt)
        overlapped.__enter__()
        overlapped.begin(feed())
        with monkeypatch.context() as patched:
            patched.setattr(NotedCuda, "synchronize", failing)
            with pytest.raises(RunnerError, match="sticky"):
                overlapped.__exit__(None, None, None)
