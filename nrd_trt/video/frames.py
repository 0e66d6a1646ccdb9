"""What travels along the pipeline. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """What a source knows of its frames before the first one.

    Attributes:
        name: For people: the path, URL or camera. Passwords are left out.
        size_hw: Of the first frame; later frames may differ.
        rate: Frames per second as the source states them, or None where it does not.
        time_base: Seconds per tick of `Frame.pts`.
        frames: How many there will be, or None where that is not known.
        live: Frames arrive whether they are read or not: late ones are dropped, a lost source is opened again.
    """

    name: str
    size_hw: tuple[int, int]
    rate: Fraction | None
    time_base: Fraction
    frames: int | None
    live: bool


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture of a source.

    Attributes:
        index: From 0, in the order of the source; a gap is a frame that was dropped.
        rgb: ``(H, W, 3) uint8 RGB``, shared by all stages: nobody writes to it.
        pts: When it is shown, in ticks of `StreamInfo.time_base`; grows from frame to frame.
        duration: In ticks, or None where the source does not tell.
        name: Stem for files made of it: the image's, or the index.
    """

    index: int
    rgb: np.ndarray
    pts: int
    duration: int | None
    name: str


@dataclass(frozen=True, kw_only=True)
class SegmentedFrame:
    """A frame with what was made of it.

    Attributes:
        frame: As it was read.
        mask: ``(H, W) uint8`` class indices at the frame's size.
        unsmoothed: The same before smoothing; without smoothing the same array.
        picture: ``(H, W, 3) uint8 RGB``, or None where no sink shows one.
        shares: ``(256,)`` share of the mask's pixels per class index.
        latency_s: From the arrival of the frame to the end of drawing.
    """

    frame: Frame
    mask: np.ndarray
    unsmoothed: np.ndarray
    picture: np.ndarray | None
    shares: np.ndarray
    latency_s: float
