"""The threads of a run and the queues between them. Standard library only."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

_LOOK_EVERY_S = 0.1

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """A bounded queue from one thread to another that any thread can end and empty.

    Args:
        capacity: Items held at most.
        drop_oldest: Let `put` replace the oldest item where it would wait.
    """

    def __init__(self, capacity: int, *, drop_oldest: bool = False) -> None:
        self._capacity, self._drop_oldest = capacity, drop_oldest
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._ended = False

    def put(self, item: Item) -> int:
        """Add an item, waiting for room; return how many were dropped for it. After the end it goes nowhere."""
        with self._changed:
            dropped = 0
            if self._drop_oldest and len(self._items) >= self._capacity:
                self._items.popleft()
                dropped = 1
            self._changed.wait_for(lambda: len(self._items) < self._capacity or self._ended)
            if not self._ended:
                self._items.append(item)
                self._changed.notify_all()
            return dropped

    def __iter__(self) -> Iterator[Item]:
        """Yield the items as they come, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def comes_within(self, seconds: float) -> bool:
        """Wait for an item, at most so long; return whether there is one to take."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended, seconds)
            return bool(self._items)

    def end(self, *, discard: bool = False) -> None:
        """Let nothing more in; what is held is still delivered, or with `discard` dropped."""
        with self._changed:
            self._ended = True
            if discard:
                self._items.clear()
            self._changed.notify_all()


class StageThreads:
    """One thread per stage of a run; the first one that fails stops them all.

    Args:
        release: Called after a failure: ends whatever a stage may wait for.

    Attributes:
        failed: Name of the stage that failed first, or None.
        interrupted: Whether Ctrl-C has ended the run.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self.failed: str | None = None
        self.interrupted = False

    def start(self, stages: Mapping[str, Callable[[], object]]) -> None:
        """Start the stages; the run is over when the last one of them returns, or any one fails."""
        last = list(stages)[-1]
        for name, stage in stages.items():
            thread = threading.Thread(
                target=self._guarded, args=(name, stage, name == last), name=f"nrd-{name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def wait(self, on_progress: Callable[[], None], on_interrupt: Callable[[], None]) -> None:
        """Wait until the run is over.

        Args:
            on_progress: Called on this thread about ten times a second.
            on_interrupt: Called on Ctrl-C; it should bring the end about. A second Ctrl-C is a failure.
        """
        while not self._over.is_set():
            try:
                self._over.wait(_LOOK_EVERY_S)
                on_progress()
            except KeyboardInterrupt as exc:
                if self.interrupted:
                    self.fail("run", exc)
                else:
                    self.interrupted = True
                    on_interrupt()

    def join(self, within_s: float, *, last_within_s: float) -> None:
        """Wait for the threads and raise the first error.

        Args:
            within_s: For all of them together at most.
            last_within_s: For the last stage, which has files to finish.
        """
        start = time.monotonic()
        for thread in reversed(self._threads):
            limit_s = last_within_s if thread is self._threads[-1] else within_s
            thread.join(max(0.0, start + limit_s - time.monotonic()))
        if self._error is not None:
            raise self._error

    def fail(self, name: str, error: BaseException) -> None:
        """Keep the first error and wake everybody."""
        with self._lock:
            if self._error is None:
                self.failed, self._error = name, error
        self._release()
        self._over.set()

    def _guarded(self, name: str, stage: Callable[[], object], last: bool) -> None:
        try:
            stage()
        except BaseException as exc:
            self.fail(name, exc)
        finally:
            if last:
                self._over.set()
