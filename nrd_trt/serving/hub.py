"""The newest frame, for any number of viewers. Standard library and NumPy only."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from nrd_trt.video.frames import Ending, SegmentedFrame, StreamInfo
from nrd_trt.video.pause import PauseSwitch

State = Literal["starting", "running", "paused", "lost", "ended", "failed"]

_ENDINGS = {"complete": "the source has ended", "stopped": "the run was stopped"}
_SILENT_S = 2.0
_VIEWER_LEAVES_S = 3.0
_KEPT = 16


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A frame as the hub holds it.

    Attributes:
        number: From 1, without gaps.
        frame: The frame as the pipeline wrote it.
        made: What viewers were given of it, kept for the next one.
    """

    number: int
    frame: SegmentedFrame
    made: dict[Hashable, Any] = field(default_factory=dict)


class Hub:
    """A sink that keeps the newest frame and lets viewers wait for it.

    The pipeline never waits here. What a viewer gets is made when the first one asks for it and kept for the others, so
    nothing is encoded while nobody looks, and nothing twice.

    Args:
        pause: The switch that pauses the run.

    Attributes:
        pause: As given.
        info: What the source is, once it is open.
        newest: The last frame, or None before the first.
        latency_sum_s: Sum of the latencies of all frames.
        started: Set once the source is open, or the run has failed.
        closing: Whether the server shuts down, so that endless answers end.
    """

    shows_picture = False

    def __init__(self, pause: PauseSwitch) -> None:
        self.info: StreamInfo | None = None
        self.newest: Shown | None = None
        self.latency_sum_s = 0.0
        self.started = threading.Event()
        self.closing = False
        self.pause = pause
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._waiting: set[Callable[[], Any]] = set()
        self._seen: dict[str, float] = {}
        self._last_sign = time.monotonic()
        self._notice: str | None = None
        self._noticed_at = 0.0
        self._over: tuple[State, str] | None = None

    # --- called by the run -------------------------------------------------------------------------------------------

    def open(self, info: StreamInfo) -> None:
        """Take note of the source."""
        self.info = info
        self.started.set()

    def write(self, frame: SegmentedFrame) -> None:
        """Make `frame` the newest one and wake whoever waits for it."""
        with self._lock:
            number = self.newest.number + 1 if self.newest else 1
            self.newest = Shown(number=number, frame=frame)
            self._last_sign = time.monotonic()
            self.latency_sum_s += self._last_sign - frame.arrived_s
            if self._last_sign - self._noticed_at > _SILENT_S:  # frames on their way may still come after a loss
                self._notice = None
        self.wake()

    def close(self, ending: Ending) -> None:
        """Tell viewers that no more frames come; why a run has failed is known later, and comes by `fail`."""
        if ending != "failed":
            self._over = self._over or ("ended", _ENDINGS[ending])
            self.wake()

    def fail(self, reason: str) -> None:
        """Tell viewers why the run has failed."""
        self._over = ("failed", reason)
        self.started.set()
        self.wake()

    def report(self, line: str) -> None:
        """Keep what the source says, e.g. that it was lost, until it has been well for a while."""
        self._notice, self._noticed_at = line, time.monotonic()

    def leave(self) -> None:
        """Send all viewers home: the server shuts down."""
        self.closing = True
        self.wake()

    def wake(self) -> None:
        """Let every waiting viewer look again."""
        # Under the lock: a viewer takes itself off the list before its event loop ends.
        with self._lock:
            for wake in self._waiting:
                wake()

    # --- asked by viewers --------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether no more frames come."""
        return self._over is not None

    @property
    def state(self) -> tuple[State, str | None]:
        """How the run stands, and a sentence about it where there is one."""
        if self._over is not None:
            return self._over
        if self.pause.paused:
            return "paused", None
        if self.newest is None:
            return "starting", self._notice
        live = self.info is not None and self.info.live
        if (live or self._notice) and self.silent_s > _SILENT_S:
            return "lost", self._notice or f"no frame for {self.silent_s:.0f} s"
        return "running", None

    @property
    def silent_s(self) -> float:
        """Seconds since the last frame, or since the start."""
        return time.monotonic() - self._last_sign

    @property
    def viewers(self) -> int:
        """How many have asked for a frame within the last seconds."""
        now = time.monotonic()
        with self._lock:
            return sum(now - at < _VIEWER_LEAVES_S for at in self._seen.values())

    def see(self, viewer: str) -> None:
        """Note that a viewer is there."""
        now = time.monotonic()
        with self._lock:
            self._seen[viewer] = now
            self._seen = {name: at for name, at in self._seen.items() if now - at < _VIEWER_LEAVES_S}

    async def newer(self, than: int, timeout_s: float) -> Shown | None:
        """Wait for another frame than number `than`.

        Returns:
            The newest frame, or None where none came in time or the state of the run has changed.
        """
        changed = asyncio.Event()
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
        with self._lock:
            if self.newest is not None and self.newest.number != than:
                return self.newest
            self._waiting.add(wake)
        try:
            await asyncio.wait_for(changed.wait(), timeout_s)
        except asyncio.TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting.discard(wake)
        newest = self.newest
        return newest if newest is not None and newest.number != than else None

    def once(self, shown: Shown, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` gives for a frame; the first caller makes it, the others of the same frame get the same.

        Args:
            shown: The frame.
            key: What is made of it.
            make: Makes it.
        """
        with self._making:
            if key not in shown.made:
                if len(shown.made) >= _KEPT:  # a paused frame stays long, and viewers may wish for anything
                    shown.made.clear()
                shown.made[key] = make()
            return shown.made[key]
