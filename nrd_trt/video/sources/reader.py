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
    """A `Source` that plays a reader once; a live one is replaced by the next whenever it is lost.

    Args:
        name: See `StreamInfo`.
        open_reader: Called on entering, and for each reader that follows a lost one.
        report: Receives one line when a live source is lost, and one when it is back.

    Attributes:
        reconnects: How often the source was lost and came back.
    """

    def __init__(self, name: str, open_reader: OpenReader, *, report: Report = print) -> None:
        self._name, self._open, self._report = name, open_reader, report
        self._stopped = threading.Event()
        self._reading = threading.Lock()  # closing what another thread reads would end the process
        self._info: StreamInfo | None = None
        self._reader: Reader | None = None
        self._frames: Iterator[Frame] = iter(())
        self.reconnects = 0

    @property
    def info(self) -> StreamInfo:
        """What is known of the frames; only once entered."""
        if self._info is None:
            raise VideoError(f"{self._name}: expected an open source, got one that was not entered; use `with`.")
        return self._info

    def __enter__(self) -> ReaderSource:
        self._reader = reader = self._open(self._stopped)
        self._frames = self._play(self._reconnecting(reader) if reader.facts.live else iter(reader))
        self._info = StreamInfo(name=self._name, **vars(reader.facts))
        return self

    def __iter__(self) -> Iterator[Frame]:
        return self._frames  # who iterates again goes on where the last one left

    def stop(self) -> None:
        """End the iterator: at once while it waits for a lost source, else with the read that it is in.

        FFmpeg and OpenCV cannot be interrupted: a stream that sends nothing holds a read for up to 2 s and an attempt
        to open it for up to 5 s, a camera for as long as its driver does.
        """
        self._stopped.set()

    def __exit__(self, *error: object) -> None:
        self.stop()
        with self._reading:
            if self._reader is not None:
                self._reader.close()

    def _play(self, pictures: Iterator[Picture]) -> Iterator[Frame]:
        for index in itertools.count():
            with self._reading:
                picture = None if self._stopped.is_set() else next(pictures, None)
                if picture is None or self._stopped.is_set():
                    return
                rgb = picture.rgb()
            name = picture.name or f"{index:06d}"
            yield Frame(index=index, rgb=rgb, pts=picture.pts, duration=picture.duration, name=name)

    def _reconnecting(self, reader: Reader) -> Iterator[Picture]:
        """Yield the pictures of a live reader and of all that follow it, in ticks of the first one's time base."""
        times = _Times(reader.facts.time_base)
        while True:
            reason = "it ended"
            try:
                for picture in reader:
                    yield replace(picture, pts=times.place(picture.pts, reader.facts.time_base))
            except BrokenOffError as exc:
                reason = exc.reason.partition(";")[0]
            if self._stopped.is_set():
                return
            reader.close()
            following = self._opened_again(reason)
            if following is None:
                return
            self._reader = reader = following
            times.start_again()

    def _opened_again(self, reason: str) -> Reader | None:
        """Return the next reader, or None when stopped."""
        self._report(f"{self._name}: lost ({reason}); opening it again")
        lost, pause_s = time.monotonic(), _FIRST_PAUSE_S
        # The pauses differ by chance, so that the clients of a server that restarts do not all come at once.
        while not self._stopped.wait(pause_s * random.uniform(0.8, 1.2)):
            try:
                reader = self._open(self._stopped)
            except VideoError:
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            self.reconnects += 1
            self._report(f"{self._name}: back after {time.monotonic() - lost:.1f} s")
            return reader
        return None


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
