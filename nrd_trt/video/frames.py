"""What travels along the pipeline, and the contracts of who gives and who takes it. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from nrd_trt.data.preprocessing import Fitting
from nrd_trt.data.videos import Picture, VideoFacts
from nrd_trt.runtime.base import DeviceTensor
from nrd_trt.runtime.graph_io import Segmentation
from nrd_trt.specs import Resample, Size

Report = Callable[[str], None]
"""Receives one line that a user should know, e.g. that a stream was lost and is opened again."""

Ending = Literal["complete", "stopped", "failed"]
"""How a run ended: with its source, by request (Ctrl-C, a closed window), or with an error."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run takes of its source, so that one with hardware of its own can spare the rest.

    Attributes:
        fitting: Tells for the size of a picture how it goes into the engine.
        padding: Colour of padding, ``(3,) uint8 RGB``.
        pixels: Whether pictures are shown or written, at their own size.
        on_device: Tells, once the engine is open, whether it reads memory of the GPU.
        resample: What scales pictures on the CPU; see `nrd_trt.data.preprocessing.fit_image`.
    """

    fitting: Callable[[Size], Fitting]
    padding: np.ndarray
    pixels: bool
    on_device: Callable[[], bool]
    resample: Resample = "pillow"


@dataclass(frozen=True, kw_only=True)
class StreamInfo(VideoFacts):
    """What a source knows of its frames before the first one.

    Attributes:
        name: Path, URL or camera as messages show it, without passwords.
    """

    name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceImage:
    """A picture on the GPU; its memory is used again when this object has gone.

    Attributes:
        tensor: ``(h, w, 3) uint8 RGB``, complete; the first rows are the picture, the others padding.
        size_hw: Size of the picture, of the same width.
        download: Copies it to the host: ``() -> (H, W, 3) uint8 RGB``, a fresh array.
    """

    tensor: DeviceTensor
    size_hw: Size
    download: Callable[[], np.ndarray]

    def lies_as(self, engine_hw: Size) -> bool:
        """Whether an engine of this size can read it as it is."""
        return self.tensor.shape[:2] == engine_hw


@dataclass(frozen=True, kw_only=True, eq=False)
class DevicePicture(Picture):
    """One picture of a reader that lies on the GPU; `rgb` copies it to the host."""

    image: DeviceImage


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture of a source.

    Attributes:
        index: Position in the source, from 0; a gap is a frame that was dropped.
        image: ``(H, W, 3) uint8 RGB``, shared by all stages: nobody writes to it. Smaller than `StreamInfo.size_hw`
            where the source scales.
        pts: When it is shown, in ticks of `StreamInfo.time_base`; grows from frame to frame.
        duration: Length in ticks, or None where the source does not tell.
        name: Stem of the files made of it: that of the image, or the index.
    """

    index: int
    image: np.ndarray | DeviceImage
    pts: int
    duration: int | None
    name: str

    @cached_property
    def rgb(self) -> np.ndarray:
        """The image on the host; one that lies on the GPU is copied when this is first asked for."""
        return self.image.download() if isinstance(self.image, DeviceImage) else self.image


@dataclass(frozen=True, kw_only=True)
class SegmentedFrame:
    """A frame with what was made of it.

    Attributes:
        frame: The frame as it was read.
        mask: ``(H, W) uint8`` class indices at the frame's size, or that from which the source has scaled it.
        unsmoothed: The same before smoothing; without smoothing the same array.
        shares: ``(256,)`` share of the mask's pixels per class index.
        arrived_s: When the frame was read, by `time.monotonic`.
        painted: ``(H, W, 3) uint8 RGB``, or None where nothing is drawn.
        confidence: ``(H, W) uint8`` of the mask before smoothing, or None where the engine does not give it.
    """

    frame: Frame
    mask: np.ndarray
    unsmoothed: np.ndarray
    shares: np.ndarray
    arrived_s: float
    painted: np.ndarray | None = None
    confidence: np.ndarray | None = None

    @property
    def drawn(self) -> Segmentation:
        """Mask and confidence."""
        return Segmentation(mask=self.mask, confidence=self.confidence)

    @property
    def picture(self) -> np.ndarray:
        """What is shown, ``(H, W, 3) uint8 RGB``: what was drawn, or else the frame itself."""
        return self.frame.rgb if self.painted is None else self.painted


class Source(Protocol):
    """Frames in order. The constructor is cheap; entering opens the source and tells what it is.

    Entering, iterating and leaving may happen on different threads, one after the other.
    """

    @property
    def reconnects(self) -> int:
        """How often the source was lost and opened again; only live ones are."""
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
        """Open the source.

        Raises:
            VideoError: The source is not there or cannot be read; the message says what to do.
            MissingDependencyError: Something that it needs is not installed.
        """
        ...

    def __exit__(self, *error: object) -> None:
        """Close the source; may be called again."""
        ...


class Sink(Protocol):
    """Takes the frames of one run, on one thread.

    Attributes:
        shows_picture: Whether it reads `SegmentedFrame.picture`; where no sink does, nothing is drawn.
    """

    shows_picture: bool

    def open(self, info: StreamInfo) -> None:
        """Get ready.

        Raises:
            VideoError: The output cannot be written.
            MissingDependencyError: Something that it needs is not installed.
        """
        ...

    def write(self, frame: SegmentedFrame) -> None:
        """Take the next frame.

        Raises:
            VideoError: The frame cannot be written.
            EndOfRun: The viewer has closed the output.
        """
        ...

    def close(self, ending: Ending) -> str | None:
        """Finish the output; return one line for the user where it is not what was asked for.

        Called once, also where opening failed.
        """
        ...


class EndOfRun(Exception):
    """A sink asks for the end of the run: not an error."""
