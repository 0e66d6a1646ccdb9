"""Masks over time: where the image stands still, how much its masks flicker there, and smoothing. NumPy only.

All arrays are of the engine's size ``(h, w)``; none that is given is written to or kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from nrd_trt.errors import ConfigError
from nrd_trt.runtime.graph_io import mask_of_logits

# On CamVid's validation frames 3 frames cost 0.009 mIoU and 2 cost 0.004. Weights of 0.1 to 0.5 cost less than 0.001;
# below 0.3 the lag grows faster than the flicker falls.
HYSTERESIS_FRAMES = 2
EMA_WEIGHT = 0.3
_NOISE = 8
"""Largest difference of a channel, of 0-255, between two pictures of what stands still."""


class Stillness:
    """Callable that tells where an image did not change against the one before, but for noise."""

    def __init__(self) -> None:
        self._before = np.empty((0, 0, 3), np.uint8)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Compare the next image ``(h, w, 3) uint8`` with the last: ``(h, w) bool``, all False where there is none."""
        before, self._before = self._before, image.copy()
        if before.shape != image.shape:
            return np.zeros(image.shape[:2], np.bool_)
        difference = np.maximum(image, before)
        difference -= np.minimum(image, before)
        red, green, blue = np.moveaxis(difference, 2, 0)  # a reduction over so short an axis takes seven times as long
        still: np.ndarray = np.maximum(np.maximum(red, green), blue) <= _NOISE
        return still


class FlickerMeter:
    """Share of the still pixels whose class changed against the frame before, over all frames."""

    def __init__(self) -> None:
        self._before = np.empty((0, 0), np.uint8)
        self._still = self._changed = 0

    def update(self, mask: np.ndarray, still: np.ndarray) -> None:
        """Add the next mask ``(h, w) uint8``; ``still (h, w) bool`` is that of its image. A new size starts over."""
        before, self._before = self._before, mask.copy()
        if before.shape == mask.shape:
            self._still += int(np.count_nonzero(still))
            self._changed += int(np.count_nonzero(still & (mask != before)))

    @property
    def flicker(self) -> float | None:
        """The share in 0-1, or None where no pixel was still in any pair of frames."""
        return self._changed / self._still if self._still else None


class Smoother(Protocol):
    """What makes masks calmer, frame after frame of one stream.

    Attributes:
        name: As `parse_smoothing` reads it.
        lag_frames: Frames by which a change is shown later where the image is still; the mean where that varies.
    """

    name: str
    lag_frames: float

    def __call__(self, mask: np.ndarray, outputs: Mapping[str, np.ndarray], still: np.ndarray) -> np.ndarray:
        """Smooth the next mask; a new size starts over.

        Args:
            mask: ``(h, w) uint8``.
            outputs: Those of the engine: ``logits (1, K, h/s, w/s) float32`` where it gives them.
            still: ``(h, w) bool``, where the image is that of the frame before.

        Returns:
            ``(h, w) uint8``, owned by the caller.
        """
        ...


class NoSmoothing:
    """Return each mask as it is."""

    name, lag_frames = "none", 0.0

    def __call__(self, mask: np.ndarray, outputs: Mapping[str, np.ndarray], still: np.ndarray) -> np.ndarray:
        """Copy the mask."""
        return mask.copy()


class Hysteresis:
    """Keep the class of a pixel until it was not seen for several frames in a row; no longer where the image changed.

    So a class that comes for fewer frames is not shown, one that stays is, and what is shown was seen in that many
    frames.

    Args:
        frames: Frames in a row, 1-255.
    """

    def __init__(self, frames: int) -> None:
        if not 1 <= frames <= 255:
            raise ConfigError(f"hysteresis: expected 1 to 255 frames, got {frames}; 1 does nothing, 2 or 3 calm a lot.")
        self._frames = frames
        self._shown = np.empty((0, 0), np.uint8)
        self._missed = self._shown  # frames in a row in which the shown class was not seen
        self.name, self.lag_frames = f"hysteresis:{frames}", float(frames - 1)

    def __call__(self, mask: np.ndarray, outputs: Mapping[str, np.ndarray], still: np.ndarray) -> np.ndarray:
        """Smooth the next mask; see `Smoother`."""
        if self._shown.shape != mask.shape:
            self._shown, self._missed = mask.copy(), np.zeros(mask.shape, np.uint8)
        else:
            self._missed = (self._missed + np.uint8(1)) * (mask != self._shown)
            kept = still & (self._missed < self._frames)
            self._missed *= kept
            self._shown = np.where(kept, self._shown, mask)
        return self._shown.copy()


class LogitsEma:
    """Draw the mask of the exponential mean of the logits.

    A logit stands for a block of the image. The frame's weight grows with the share of the block that changed, up to 1
    where all did: what moves leaves no trail, and the logits behind it do not count.

    Args:
        weight: Weight of a frame where the image is still, above 0 and up to 1.
        upsample: Factor from the logits' size to the mask's.
    """

    def __init__(self, weight: float, *, upsample: int) -> None:
        if not 0 < weight <= 1:
            raise ConfigError(f"ema: expected a weight above 0 and up to 1, got {weight}; 1 does nothing, 0.3 calms.")
        self._weight, self._scale = weight, upsample
        self._mean = np.empty((0, 0, 0), np.float32)
        self.name, self.lag_frames = f"ema:{weight:g}", (1 - weight) / weight

    def __call__(self, mask: np.ndarray, outputs: Mapping[str, np.ndarray], still: np.ndarray) -> np.ndarray:
        """Smooth the next mask; see `Smoother`."""
        logits = outputs["logits"][0]
        if self._mean.shape != logits.shape:
            self._mean = logits.copy()
        else:
            scale, (rows, columns) = self._scale, logits.shape[1:]
            kept = still.reshape(rows, scale, columns, scale).mean(axis=(1, 3), dtype=np.float32)
            self._mean += (1 - np.float32(1 - self._weight) * kept) * (logits - self._mean)
        return mask_of_logits(self._mean, self._scale)


def parse_smoothing(text: str, *, has_logits: bool, upsample: int) -> Smoother:
    """Make the smoother that a text names.

    Args:
        text: ``none``, ``hysteresis[:FRAMES]`` or ``ema[:WEIGHT]``.
        has_logits: Whether the engine gives logits.
        upsample: Factor from the logits' size to the mask's.

    Raises:
        ConfigError: The text has another form, a number is out of its range, or the engine gives no logits to ema.
    """
    if text == "none":
        return NoSmoothing()
    if match := re.fullmatch(r"hysteresis(?::(\d+))?", text):
        return Hysteresis(int(match[1] or HYSTERESIS_FRAMES))
    match = re.fullmatch(r"ema(?::(\d*\.?\d+))?", text)
    if match is None:
        raise ConfigError(f"smooth={text!r}: expected none, hysteresis, hysteresis:FRAMES, ema or ema:WEIGHT.")
    if not has_logits:
        raise ConfigError(
            f"smooth={text!r}: expected an engine that gives logits, got one that gives masks only; build it with the "
            "outputs mask and logits, or take hysteresis."
        )
    return LogitsEma(float(match[1] or EMA_WEIGHT), upsample=upsample)
