"""The one implementation of sources: what a reader gives, with numbers and names, until it ends or is stopped."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType

from nrd_trt.errors import VideoError
from nrd_trt.video.frames import Frame, StreamInfo
from nrd_trt.video.sources.base import Report
from nrd_trt.video.sources.reconnect import Reader, Reconnecting

OpenReader = Callable[[threading.Event], Reader]
"""Opens a reader, or raises `VideoError`; once the event is set, the reader ends as soon as it can."""


class ReaderSource:
    """A `Source` that plays a reader once; a live one is opened again whenever it is lost.

    Args:
        name: See `StreamInfo`.
        open_reader: Called on entering.
        report: Told of a lost stream and of its return.
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
        self._info = StreamInfo(
            name=self._name,
            size_hw=facts.size_hw,
            rate=facts.rate,
            time_base=facts.time_base,
            frames=None if facts.live else facts.frames,
            live=facts.live,
        )
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
