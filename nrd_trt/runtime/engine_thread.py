"""An engine on a thread of its own, for callers on any thread, with runs that are begun and finished apart.

CUDA contexts belong to threads and an execution context serves one run at a time, so a video and the uploads of a web
page share an engine through one thread. On a runner that works on device memory, a run is begun while the one ahead of
it goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Lock

import numpy as np

from nrd_trt.errors import RunnerError, leave
from nrd_trt.runtime.base import DeviceRunner, Feed
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.graph_io import Segmentation, segmentation_at
from nrd_trt.runtime.overlap import OverlappedRunner, Ticket

Outputs = dict[str, np.ndarray]


Pending = Future[Outputs]
"""A run that was begun: its result is the outputs by name, or its error."""


class EngineThread:
    """An engine whose runner is opened, run and closed on one thread; everything else may be called from any thread.

    Args:
        engine: Not entered; nobody else runs it meanwhile.

    Attributes:
        engine: As given; what it says of itself, and `Engine.fitted` and `Engine.feed`, need no thread.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self._runner = engine, engine.runner
        self._lock = Lock()  # so that the last job of the thread is to leave the runner
        self._pool: ThreadPoolExecutor | None = None
        self._in_order: _InOrder | None = None
        self._release = ExitStack()

    def segment(self, rgb: np.ndarray) -> Segmentation:
        """Segment one image ``(H, W, 3) uint8 RGB`` of any size; see `Engine.segment`."""
        fitted = self.engine.fitted(rgb)
        outputs = self.begin(self.engine.feed(fitted.image)).result()
        return segmentation_at(outputs, 0, self.engine.graph).restored(fitted)

    @property
    def takes_device_memory(self) -> bool:
        """Whether `begin` takes inputs that lie on the device; known once entered."""
        return self._in_order is not None

    def begin(self, feed: Feed) -> Pending:
        """Queue one run; its result, or its error, is that of what is returned.

        Args:
            feed: Inputs by name. Device memory, where it is taken, is complete and stays until the result is there.

        Raises:
            RunnerError: Not entered.
        """
        with self._lock:
            if self._pool is None:
                raise RunnerError(f"{self._runner.name}: not entered; use it inside a `with` block.")
            if self._in_order is None:
                arrays = {name: array for name, array in feed.items() if isinstance(array, np.ndarray)}
                return self._pool.submit(self._runner.infer, arrays)
            outcome = _Overlapped(self._finish)
            self._pool.submit(self._in_order.begin, feed, outcome)
            return outcome

    def __enter__(self) -> EngineThread:
        if self._pool is not None:
            raise RunnerError(f"{self._runner.name}: already entered; leave it first or make a second one.")
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nrd-engine")
        try:
            pool.submit(self._open).result()
        except BaseException:
            pool.shutdown()
            raise
        self._pool = pool
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            try:
                leave(pool.submit(self._release.close).result, error)
            finally:
                pool.shutdown(cancel_futures=True)

    def _open(self) -> None:
        self._in_order = None
        with ExitStack() as stack:
            stack.enter_context(self._runner)
            if isinstance(self._runner, DeviceRunner):
                self._in_order = _InOrder(stack.enter_context(OverlappedRunner(self._runner)))
                stack.callback(self._in_order.finish_all)
            self._release = stack.pop_all()

    def _finish(self, outcome: Pending) -> None:
        """Ask the thread to finish a run; whoever leaves the runner has that done."""
        with self._lock:
            if self._pool is not None and self._in_order is not None and not outcome.done():
                self._pool.submit(self._in_order.finish, outcome)


class _Overlapped(Pending):
    """A run that the engine's thread finishes when its result is asked for."""

    def __init__(self, finish: Callable[[Pending], None]) -> None:
        super().__init__()
        self._finish = finish

    def result(self, timeout: float | None = None) -> Outputs:
        """Wait for the run and return its outputs by name, or raise its error; may be called again."""
        self._finish(self)
        return super().result(timeout)


class _InOrder:
    """Overlapped runs, finished in the order in which they were begun; on the engine's thread.

    Args:
        runner: Entered.
    """

    def __init__(self, runner: OverlappedRunner) -> None:
        self._runner = runner
        self._running: deque[tuple[Ticket, Pending]] = deque()

    def begin(self, feed: Feed, outcome: Pending) -> None:
        """Begin a run.

        Where all slots are taken, the oldest run is finished first and its outputs are kept for whoever asks for them.
        To wait until somebody asks would be a deadlock: the answer takes this thread.
        """
        if len(self._running) == self._runner.slots:
            self._finish_oldest()
        try:
            self._running.append((self._runner.begin(feed), outcome))
        except BaseException as exc:
            outcome.set_exception(exc)

    def finish(self, outcome: Pending) -> None:
        """Finish the runs up to this one; the engine ends them in this order too."""
        while not outcome.done():
            self._finish_oldest()

    def finish_all(self) -> None:
        """Finish what was begun."""
        while self._running:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        ticket, outcome = self._running.popleft()
        try:
            outcome.set_result(self._runner.finish(ticket))
        except BaseException as exc:
            outcome.set_exception(exc)
