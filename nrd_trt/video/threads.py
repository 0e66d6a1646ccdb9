"""Threads that belong together: the first one that fails stops them all. Standard library only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from nrd_trt.video.channel import Broken

_LOOK_EVERY_S = 0.1


class Crew:
    """One thread per stage of a run.

    Args:
        release: Wakes every stage after a failure, with `Broken` where it waits for another one.

    Attributes:
        failed: Name of the stage that failed first, or None.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self.failed: str | None = None

    def start(self, stages: Mapping[str, Callable[[], None]]) -> None:
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
        interrupted = False
        while not self._over.is_set():
            try:
                self._over.wait(_LOOK_EVERY_S)
                on_progress()
            except KeyboardInterrupt as exc:
                if interrupted:
                    self.fail("run", exc)
                else:
                    on_interrupt()
                interrupted = True

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

    def _guarded(self, name: str, stage: Callable[[], None], last: bool) -> None:
        try:
            stage()
        except Broken:  # another one failed, or the run was given up
            pass
        except BaseException as exc:
            self.fail(name, exc)
        finally:
            if last:
                self._over.set()
