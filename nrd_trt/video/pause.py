"""Pause, step and resume of a run, from any thread. Standard library only."""

from __future__ import annotations

import threading


class PauseSwitch:
    """Holds frames back while paused.

    Attributes:
        paused: Whether frames are held back.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.paused = self._released = False
        self._steps = 0

    def pause(self) -> None:
        """Hold frames back from now on."""
        with self._changed:
            self.paused = True

    def resume(self) -> None:
        """Let frames through again."""
        with self._changed:
            self.paused, self._steps = False, 0
            self._changed.notify_all()

    def step(self) -> None:
        """Let one more frame through; pause first where needed."""
        with self._changed:
            self.paused = True
            self._steps += 1
            self._changed.notify_all()

    def release(self) -> None:
        """Let everything through for good: the run ends, and nothing must wait here."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def lets_through(self, *, wait: bool) -> bool:
        """Tell whether a frame may go on.

        Args:
            wait: Wait until it may. Frames of a live source cannot: they are dropped while the run is paused.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(self._open)
            passes = self._open()
            if self.paused and self._steps and passes:
                self._steps -= 1
            return passes

    def _open(self) -> bool:
        return not self.paused or self._steps > 0 or self._released
