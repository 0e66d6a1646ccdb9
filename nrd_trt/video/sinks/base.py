"""The contract of sinks."""

from __future__ import annotations

from typing import Literal, Protocol

from nrd_trt.video.frames import SegmentedFrame, StreamInfo

Ending = Literal["complete", "stopped", "failed"]
"""How a run ended: with its source, by request (Ctrl-C, a closed window), or with an error."""


class Sink(Protocol):
    """Takes the frames of one run, on one thread.

    Attributes:
        shows_picture: Whether it reads `SegmentedFrame.picture`; where none does, nothing is drawn.
    """

    shows_picture: bool

    def open(self, info: StreamInfo) -> None:
        """Get ready.

        Raises:
            ConfigError: Its output exists, or cannot be made.
            MissingDependencyError: Something it needs is not installed.
        """
        ...

    def write(self, frame: SegmentedFrame) -> None:
        """Take the next frame.

        Raises:
            VideoError: It cannot be written.
            EndOfRun: The viewer has closed it.
        """
        ...

    def close(self, ending: Ending) -> str | None:
        """Finish the output; return one line for people where it is not what was asked for.

        Called once, also where opening failed.
        """
        ...


class EndOfRun(Exception):
    """A sink asks for the end of the run: not an error."""
