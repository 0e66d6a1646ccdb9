"""Pause, step and resume of a run, from any thread. Standard library only."""

from __future__ import annotations

import threading


class Gate:
    """Holds frames back while paused."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused = self._open_for_good = False
        self._steps = 0

    @property
    def paused(self) -> bool:
        """Whether frames are held back."""
        return self._paused

    def pause(self) -> None:
        """Hold frames back from now on."""
        with self._changed:
            self._paused = True

    def resume(self) -> None:
        """Let frames through again."""
        with self._changed:
            self._paused, self._steps = False, 0
            self._changed.notify_all()

    def step(self) -> None:
        """Let one more frame through; pauses first where needed."""
        with self._changed:
            self._paused = True
            self._steps += 1
            self._changed.notify_all()

    def release(self) -> None:
        """Open for good: the run ends, and nothing must wait here."""
        with self._changed:
            self._open_for_good = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until a frame may pass."""
        with self._changed:
            self._changed.wait_for(self._may_pass)
            self._take_step()

    def try_pass(self) -> bool:
        """Whether a frame may pass now; for live sources, whose frames cannot wait."""
        with self._changed:
            passes = self._may_pass()
            if passes:
                self._take_step()
            return passes

    def _may_pass(self) -> bool:
        return not self._paused or self._steps > 0 or self._open_for_good

    def _take_step(self) -> None:
        if self._paused and self._steps:
            self._steps -= 1
