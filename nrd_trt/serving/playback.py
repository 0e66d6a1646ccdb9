"""A file as a page shows it: at its own pace, and again from the start. Standard library only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from nrd_trt.video.frames import Frame, Source, StreamInfo


class Playback:
    """A source that plays another one; live ones pass through as they come.

    Where the engine is slower than the file, or was paused, frames come as soon as they are wanted: none is left out.

    Args:
        open_source: Makes the source that is played, one for each round.
        loop: Whether to begin again at its end.
    """

    def __init__(self, open_source: Callable[[], Source], *, loop: bool) -> None:
        self._open_source, self._loop = open_source, loop
        self._playing = open_source()
        self._stopped = threading.Event()
        self._due = 0.0

    @property
    def reconnects(self) -> int:
        """How often a live source was lost and opened again."""
        return self._playing.reconnects

    @property
    def info(self) -> StreamInfo:
        """What is known of the frames; only once entered."""
        info = self._playing.info
        return info if info.live or not self._loop else replace(info, frames=None)

    def __iter__(self) -> Iterator[Frame]:
        if self._playing.info.live:
            yield from self._playing
            return
        index, before, following = 0, None, 0
        while True:
            info, shift = self._playing.info, None
            usual = max(1, round(1 / (info.rate or 25) / info.time_base))
            for frame in self._playing:
                if shift is None:
                    shift = following - frame.pts if index else 0
                pts = frame.pts + shift
                self._wait(0.0 if before is None else float((pts - before) * info.time_base))
                yield replace(frame, index=index, pts=pts)
                index, before, following = index + 1, pts, pts + (frame.duration or usual)
            if shift is None or not self._loop or self._stopped.is_set():
                return
            self._playing.__exit__(None, None, None)
            opened = self._open_source()
            opened.__enter__()  # before anybody else sees it: other threads ask for `info`
            self._playing = opened
            if self._stopped.is_set():  # asked to stop in between
                self._playing.stop()

    def stop(self) -> None:
        """End the iterator soon, also where it waits for its pace."""
        self._stopped.set()
        self._playing.stop()

    def __enter__(self) -> Playback:
        self._playing.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._playing.__exit__(*error)

    def _wait(self, gap_s: float) -> None:
        """Wait until the next frame is due; what was late by more than a frame stays late."""
        now = time.monotonic()
        self._due = max(self._due + gap_s, now - gap_s)
        self._stopped.wait(max(0.0, self._due - now))
