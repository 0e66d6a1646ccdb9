"""The contract of sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

from nrd_trt.video.frames import Frame, StreamInfo

Report = Callable[[str], None]
"""Takes one line for people, e.g. that a stream was lost and is opened again."""


class Source(Protocol):
    """Frames in order. The constructor is cheap; entering opens the source and tells what it is.

    Entering, iterating and leaving may happen on different threads, one after the other.
    """

    @property
    def reconnects(self) -> int:
        """How often it was lost and opened again; only live sources are."""
        ...

    @property
    def info(self) -> StreamInfo:
        """What is known of the frames; only once entered."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames; each array is fresh.

        Raises:
            VideoError: A frame cannot be read, and trying again is of no use.
        """
        ...

    def stop(self) -> None:
        """Ask for the end, from any thread: the iterator ends soon, also where it waits. May be called again."""
        ...

    def __enter__(self) -> Source:
        """Open.

        Raises:
            VideoError: It is not there, or cannot be read; the message says what to do.
            MissingDependencyError: Something it needs is not installed.
        """
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; may be called again."""
        ...
