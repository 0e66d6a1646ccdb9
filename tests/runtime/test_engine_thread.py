"""A runner on a thread of its own: overlapped runs for callers on any thread, in any order, without a deadlock."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from nrd_trt.errors import RunnerError, ShapeError
from nrd_trt.runtime.base import Runner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.engine_thread import EngineThread, Pending
from tests.runtime.bench import LARGE, SMALL, Bench, HostRunner, caller, image, runner
from tests.runtime.fake_cuda import OUT_OF_MEMORY, faulting
from tests.runtime.test_graph_io import facts

WITHIN_S = 60.0
SHAPES = (SMALL, LARGE, (1, 8, 8, 3))


@pytest.fixture(autouse=True)
def _one_thread_only(bench: Bench) -> Iterator[None]:
    yield
    assert bench.cuda.threads <= {"nrd-engine_0"}


def on_thread(made: Runner) -> EngineThread:
    return EngineThread(Engine(made, facts()))


def begin(engine: EngineThread, seed: int, shape: tuple[int, ...] = SMALL) -> Pending:
    return engine.begin({"image": image(shape, seed)})


def check(pending: Pending, seed: int, shape: tuple[int, ...] = SMALL) -> None:
    assert np.array_equal(pending.result()["mask"], image(shape, seed)[..., 0])


def in_time(*work: Callable[[], None]) -> None:
    """Do things on a thread each; all must return, none may fail."""
    errors: list[BaseException] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    if errors:
        raise errors[0]


def test_a_runner_on_the_cpu_runs_one_by_one() -> None:
    host = HostRunner()
    with on_thread(host) as engine:
        pending = [begin(engine, seed) for seed in range(4)]
        for seed, one in enumerate(pending):
            check(one, seed)
        with pytest.raises(ShapeError):
            engine.begin({}).result()
    assert host.calls == ["open", *["run"] * 4, "close"]
    assert host.threads == {"nrd-engine_0"}


def test_a_run_is_begun_while_the_one_ahead_goes_on(bench: Bench) -> None:
    """The order of a file's frames: two begun, and from then on one result and one begin in turn."""
    with on_thread(runner()) as engine:
        ahead = begin(engine, 0)
        for seed in range(1, 8):
            following = begin(engine, seed)
            check(ahead, seed - 1)
            ahead = following
        check(ahead, 7)
    names = [call for call in bench.cuda.calls if call[0] in ("upload", "synchronize_event")]
    order = [call[0] for call in names][:-1]  # without the runner's last wait
    assert order == ["upload", *["upload", "synchronize_event"] * 7, "synchronize_event"]


def test_inputs_on_the_device_go_to_runners_that_take_them(bench: Bench) -> None:
    with on_thread(runner()) as engine, caller(bench.cuda) as mine:
        assert engine.takes_device_memory
        tensors = [mine.put(image(seed=seed)) for seed in range(4)]
        for seed, pending in enumerate([engine.begin({"image": tensor}) for tensor in tensors]):
            check(pending, seed)
        assert "upload" not in bench.cuda.names()
        with on_thread(HostRunner()) as host, pytest.raises(ShapeError, match=r"expected inputs \['image'\]"):
            assert not host.takes_device_memory
            host.begin({"image": tensors[0]}).result()
    bench.cuda.threads.discard(threading.current_thread().name)  # that of the caller's own memory


def test_more_runs_than_slots_need_no_results_in_between_and_some_are_never_asked_for(bench: Bench) -> None:
    def work() -> None:
        with on_thread(runner()) as engine:
            for seed in range(5):
                begin(engine, seed)
            pending = [begin(engine, seed) for seed in range(7)]
            for seed in (6, 0, 3, 5, 1, 2, 4):
                check(pending[seed], seed)
            begin(engine, 6)

    in_time(work)


def test_two_callers_share_the_engine(bench: Bench) -> None:
    with on_thread(runner()) as engine:

        def caller(first: int) -> Callable[[], None]:
            def work() -> None:
                choose, begun = random.Random(first), []
                for seed in range(first, first + 40):
                    shape = choose.choice(SHAPES)
                    begun.append((begin(engine, seed, shape), seed, shape))
                    while begun and choose.random() < 0.5:
                        check(*begun.pop(choose.randrange(len(begun))))
                for one in begun:
                    check(*one)

            return work

        in_time(caller(0), caller(1000))


def test_an_error_is_that_of_its_own_run(bench: Bench) -> None:
    with on_thread(runner()) as engine:
        good, wrong, more = begin(engine, 0), engine.begin({"image": image((5, 4, 8, 3))}), begin(engine, 1)
        for _ in range(2):
            with pytest.raises(ShapeError, match="expected at most"):
                wrong.result()
        check(good, 0)
        check(more, 1)
        check(good, 0)  # may be asked again


def test_the_first_error_of_a_device_that_has_faulted_is_told(bench: Bench) -> None:
    with faulting(), pytest.raises(RunnerError, match=r"^fake: could not start"), on_thread(runner()) as engine:
        begin(engine, 0).result()


def test_leaving_finishes_what_was_begun(bench: Bench) -> None:
    engine = on_thread(runner())
    with engine:
        pending = [begin(engine, seed) for seed in range(3)]
    in_time(*[lambda one=one, seed=seed: check(one, seed) for seed, one in enumerate(pending)])
    with pytest.raises(RunnerError, match="not entered"):
        begin(engine, 0)
    with engine:
        check(begin(engine, 4), 4)
        with pytest.raises(RunnerError, match="already entered"):
            engine.__enter__()


def test_a_runner_that_cannot_be_opened_leaves_nothing(bench: Bench) -> None:
    engine = on_thread(runner())
    bench.cuda.fail("cuEventCreate", OUT_OF_MEMORY)
    with pytest.raises(RunnerError, match="cuEventCreate failed"):
        engine.__enter__()
    assert bench.cuda.alive == {}
    with engine:
        check(begin(engine, 0), 0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nrd-engine")]
