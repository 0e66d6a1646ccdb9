"""Live readers: opened again whenever they are lost, with numbers and times that go on."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

from nrd_trt.data.videos import BrokenOffError, Picture, VideoFacts
from nrd_trt.errors import VideoError
from nrd_trt.video.sources.base import Report

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


class Reader(Protocol):
    """Something opened that gives pictures, once."""

    @property
    def facts(self) -> VideoFacts:
        """What is known of the pictures."""
        ...

    def __iter__(self) -> Iterator[Picture]:
        """Yield the pictures.

        Raises:
            VideoError: No more can be read.
        """
        ...

    def close(self) -> None:
        """Close; may be called again."""
        ...


class Reconnecting:
    """The pictures of a live reader and of all that follow it; a `Reader` itself.

    Args:
        reader: The first one; this object closes it.
        reopen: Opens the next, or raises `VideoError`.
        name: For reports.
        stopped: Ends the waiting for a lost reader.
        report: Takes one line when a reader is lost, and one when the next is open.

    Attributes:
        facts: Of the first reader; `Picture.pts` keeps to its time base.
        count: How often a reader was replaced.
    """

    def __init__(
        self, reader: Reader, reopen: Callable[[], Reader], *, name: str, stopped: threading.Event, report: Report
    ) -> None:
        self.facts, self.count = reader.facts, 0
        self._reader, self._reopen = reader, reopen
        self._name, self._stopped, self._report = name, stopped, report

    def __iter__(self) -> Iterator[Picture]:
        times = _Times(self.facts.time_base)
        while True:
            reason = "it ended"
            try:
                for picture in self._reader:
                    yield replace(picture, pts=times.place(picture.pts, self._reader.facts.time_base))
            except BrokenOffError as exc:
                reason = exc.reason.partition(";")[0]
            if self._stopped.is_set() or not self._replace_reader(reason):
                return
            times.start_again()

    def _replace_reader(self, reason: str) -> bool:
        """Return whether there is a next reader; False when stopped."""
        self._reader.close()
        self._report(f"{self._name}: lost ({reason}); opening it again")
        lost, pause_s = time.monotonic(), _FIRST_PAUSE_S
        # The pauses differ by chance, so that the clients of a server that restarts do not all come at once.
        while not self._stopped.wait(pause_s * random.uniform(0.8, 1.2)):
            try:
                self._reader = self._reopen()
            except VideoError:
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            self.count += 1
            self._report(f"{self._name}: back after {time.monotonic() - lost:.1f} s")
            return True
        return False

    def close(self) -> None:
        """Close the reader; may be called again."""
        self._reader.close()


class _Times:
    """Times of consecutive readers on one axis; the time between them is that of the clock on the wall."""

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._shift: int | None = 0
        self._last: int | None = None
        self._seen = 0.0

    def start_again(self) -> None:
        self._shift = None

    def place(self, pts: int, time_base: Fraction) -> int:
        now = time.monotonic()
        ticks = pts if time_base == self._time_base else round(pts * time_base / self._time_base)
        if self._last is None:
            placed = ticks
        else:
            if self._shift is None:
                self._shift = self._last + round((now - self._seen) / self._time_base) - ticks
            placed = max(ticks + self._shift, self._last + 1)
        self._last, self._seen = placed, now
        return placed
