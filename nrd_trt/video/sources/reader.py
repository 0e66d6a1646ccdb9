"""The one implementation of sources: what a reader gives, with numbers and names, until it ends or is stopped.

A live reader is opened again whenever it is lost, and its numbers and times go on.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from types import TracebackType
from typing import Protocol

from nrd_trt.data.videos import BrokenOffError, Picture, VideoFacts
from nrd_trt.errors import VideoError
from nrd_trt.video.frames import Frame, Report, StreamInfo

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


OpenReader = Callable[[threading.Event], Reader]
"""Opens a reader, or raises `VideoError`; once the event is set, the reader ends as soon as it can."""


class ReaderSource:
    """A `Source` that plays a reader once; a live one is opened again whenever it is lost.

    Args:
        name: See `StreamInfo`.
        open_reader: Called on entering.
        report: Receives one line when a live source is lost, and one when it is back.
    """

    def __init__(self, name: str, open_reader: OpenReader, *, report: Report = print) -> None:
        self._name, self._open, self._report = name, open_reader, report
        self._stopped = threading.Event()
        self._reading = threading.Lock()  # closing what another thread reads would end the process
        self._info: StreamInfo | None = None
        self._reconnecting: Reconnecting | None = None
        self._played: Reader | None = None
        self._frames: Iterator[Frame] = iter(())

    @property
    def info(self) -> StreamInfo:
        """What is known of the frames; only once entered."""
        if self._info is None:
            raise VideoError(f"{self._name}: expected an open source, got one that was not entered; use `with`.")
        return self._info

    @property
    def reconnects(self) -> int:
        """How often the source was lost and came back."""
        return 0 if self._reconnecting is None else self._reconnecting.count

    def __enter__(self) -> ReaderSource:
        reader = self._open(self._stopped)
        facts = reader.facts
        if facts.live:
            reader = self._reconnecting = Reconnecting(
                reader, partial(self._open, self._stopped), name=self._name, stopped=self._stopped, report=self._report
            )
        self._played, self._frames = reader, self._play(reader)
        self._info = StreamInfo(name=self._name, **vars(facts))
        return self

    def __iter__(self) -> Iterator[Frame]:
        return self._frames  # who iterates again goes on where the last one left

    def stop(self) -> None:
        """End the iterator: at once while it waits for a lost source, else with the read that it is in.

        FFmpeg and OpenCV cannot be interrupted: a stream that sends nothing holds a read for up to 2 s and an attempt
        to open it for up to 5 s, a camera for as long as its driver does.
        """
        self._stopped.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        with self._reading:
            if self._played is not None:
                self._played.close()
                self._played = None

    def _play(self, reader: Reader) -> Iterator[Frame]:
        pictures = iter(reader)
        for index in itertools.count():
            with self._reading:
                picture = None if self._stopped.is_set() else next(pictures, None)
                if picture is None or self._stopped.is_set():
                    return
                rgb = picture.rgb()
            name = picture.name or f"{index:06d}"
            yield Frame(index=index, rgb=rgb, pts=picture.pts, duration=picture.duration, name=name)


class Reconnecting:
    """The pictures of a live reader and of all that follow it; a `Reader` itself.

    Args:
        reader: The first one; this object closes it.
        reopen: Opens the next, or raises `VideoError`.
        name: Name of the source in reports.
        stopped: Ends the waiting for a lost reader.
        report: Receives one line when a reader is lost, and one when the next is open.

    Attributes:
        facts: Facts of the first reader, to whose time base `Picture.pts` keeps.
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
