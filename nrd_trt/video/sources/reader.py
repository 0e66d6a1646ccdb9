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
from typing import Protocol

from nrd_trt.data.videos import BrokenOffError, Picture, VideoFacts
from nrd_trt.errors import VideoError
from nrd_trt.video.frames import DevicePicture, Frame, Report, StreamInfo

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
        info: What is known of the frames; only once entered.
        reconnects: How often the source was lost and came back.
    """

    def __init__(self, name: str, open_reader: OpenReader, *, report: Report = print) -> None:
        self._name, self._open, self._report = name, open_reader, report
        self._stopped = threading.Event()
        self._reading = threading.Lock()  # closing what another thread reads would end the process
        self._reader: Reader | None = None
        self.reconnects = 0

    def __enter__(self) -> ReaderSource:
        self._reader = reader = self._open(self._stopped)
        self._frames = self._play(self._reconnecting(reader) if reader.facts.live else iter(reader))
        self.info = StreamInfo(name=self._name, **vars(reader.facts))
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
                image = picture.image if isinstance(picture, DevicePicture) else picture.rgb()
            name = picture.name or f"{index:06d}"
            yield Frame(index=index, image=image, pts=picture.pts, duration=picture.duration, name=name)

    def _reconnecting(self, reader: Reader) -> Iterator[Picture]:
        """Yield the pictures of a live reader and of all that follow it, in ticks of the first one's time base."""
        time_base, seen = reader.facts.time_base, 0.0
        shift: int | None = None
        last: int | None = None
        while True:
            reason = "it ended"
            try:
                for picture in reader:
                    now, ticks = time.monotonic(), round(picture.pts * reader.facts.time_base / time_base)
                    if shift is None:  # the time between two readers is that of the clock on the wall
                        shift = 0 if last is None else last + round((now - seen) / time_base) - ticks
                    last, seen = ticks + shift if last is None else max(ticks + shift, last + 1), now
                    yield replace(picture, pts=last)
            except BrokenOffError as exc:
                reason = exc.reason.partition(";")[0]
            if self._stopped.is_set():
                return
            reader.close()
            following = self._opened_again(reason)
            if following is None:
                return
            self._reader = reader = following
            shift = None

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
