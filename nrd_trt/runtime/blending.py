"""From the logits of several views of an image to one mask, in bands of rows so that memory stays bounded. NumPy only.

A network is anything that maps an image of a size that it takes to logits: it is asked for a window when the first band
needs it, and the window's logits, which are much smaller than what they are enlarged to, are forgotten after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from nrd_trt.data.preprocessing import Fitting, pad_image, scale_image
from nrd_trt.data.views import View, Window
from nrd_trt.runtime.graph_io import Segmentation, neighbours
from nrd_trt.specs import ModelInfo, Resample

LogitsOf = Callable[[np.ndarray], np.ndarray]
"""Maps an image ``(h, w, 3) uint8 RGB`` to logits ``(K, h/s, w/s) float32``."""
_BAND_BYTES = 64 << 20
"""Of the logits of a band at the image's size; about four times of it is held meanwhile."""


@dataclass(kw_only=True)
class Seams:
    """How far windows that overlap agree: what a network makes of a place should not hang on where a window ends.

    Attributes:
        pixels: Pixels that several windows show, once for each of these.
        equal: Those to which the window alone gives the class that the average has.
    """

    pixels: int = 0
    equal: int = 0

    @property
    def agreement(self) -> float | None:
        """Share of the pixels, in 0-1; None where no windows overlap."""
        return self.equal / self.pixels if self.pixels else None


@dataclass(frozen=True, kw_only=True)
class Network:
    """What runs, and what it reads.

    Attributes:
        logits_of: Runs it on an image of a size that it takes.
        info: Its classes and preprocessing.
        upsample: Factor from the size of the logits to that of the image.
        resample: What scales images.
    """

    logits_of: LogitsOf
    info: ModelInfo
    upsample: int
    resample: Resample = "pillow"


def average_logits(
    rgb: np.ndarray, views: Sequence[View], network: Network, *, rows: int | None = None, seams: Seams | None = None
) -> Iterator[np.ndarray]:
    """Yield the mean of the views' logits at the image's size, band by band from the top.

    In a view a pixel has the mean over the windows that show it; the view is then brought to the image's size
    bilinearly, and all views count alike.

    Args:
        rgb: ``(H, W, 3) uint8``.
        views: At least one; see `nrd_trt.data.views.views_of`.
        network: What runs on the windows.
        rows: Rows of a band; None takes as many as 64 MiB hold.
        seams: Is added to.

    Yields:
        Logits ``(K, rows, W) float32``, the last band with what is left.
    """
    (height, width), classes = rgb.shape[:2], len(network.info.class_names)
    rows = rows or max(1, _BAND_BYTES // (4 * classes * width))
    blends = [_ViewBlend(view=view, image=_image_of(rgb, view, network.resample), network=network) for view in views]
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        total = blends[0].band(top, bottom, (height, width), seams)
        for blend in blends[1:]:
            total += blend.band(top, bottom, (height, width), seams)
        total /= np.float32(len(blends))
        yield total


def draw_views(
    rgb: np.ndarray,
    views: Sequence[View],
    network: Network,
    *,
    confidence: bool = False,
    rows: int | None = None,
    seams: Seams | None = None,
) -> Segmentation:
    """Return the class of the mean logits at every pixel, ties to the lowest index; arguments as `average_logits`.

    The confidence, where it is asked for, is 255 times the softmax of that class.
    """
    mask = np.empty(rgb.shape[:2], np.uint8)
    sure = np.empty_like(mask) if confidence else None
    top = 0
    for logits in average_logits(rgb, views, network, rows=rows, seams=seams):
        band = slice(top, top + logits.shape[1])
        mask[band] = logits.argmax(axis=0)
        if sure is not None:
            logits -= logits.max(axis=0)
            sure[band] = np.rint(255 / np.exp(logits, out=logits).sum(axis=0))
        top = band.stop
    return Segmentation(mask=mask, confidence=sure)


def view_image(rgb: np.ndarray, view: View, info: ModelInfo, resample: Resample) -> np.ndarray:
    """Return what the network runs on for a view of one window."""
    return pad_image(_image_of(rgb, view, resample), view.run_hw, info)


def view_fitting(view: View, original_hw: tuple[int, int]) -> Fitting:
    """Tell how the mask of a view of one window comes back to the image."""
    return Fitting(engine_hw=view.run_hw, content_hw=view.size_hw, original_hw=original_hw)


@dataclass(kw_only=True)
class _ViewBlend:
    """One view: its image, and the logits of those windows that the bands are at."""

    view: View
    image: np.ndarray
    network: Network
    held: dict[Window, np.ndarray] = field(default_factory=dict)

    def band(self, top: int, bottom: int, image_hw: tuple[int, int], seams: Seams | None) -> np.ndarray:
        """Return rows of the image ``(K, bottom - top, W)``, a fresh array."""
        if self.view.size_hw == image_hw:
            rows = self._rows(top, bottom, seams)
            return rows[:, :, ::-1].copy() if self.view.flipped else rows
        above, below, down = (taps[top:bottom] for taps in neighbours(self.view.size_hw[0], image_hw[0]))
        first, last = int(above[0]), int(below[-1]) + 1
        rows = self._rows(first, last, seams)
        rows = rows[:, :, ::-1] if self.view.flipped else rows
        across = neighbours(self.view.size_hw[1], image_hw[1])
        return _interpolated(rows, (above - first, below - first, down), across)

    def _rows(self, top: int, bottom: int, seams: Seams | None) -> np.ndarray:
        """Return rows of the view ``(K, bottom - top, w)``: the sums over the windows, each divided once."""
        windows = [window for window in self.view.windows if window.top < bottom and window.top + window.height > top]
        for past in set(self.held) - set(windows):
            del self.held[past]
        shape = (bottom - top, self.view.size_hw[1])
        total, count = np.zeros((len(self.network.info.class_names), *shape), np.float32), np.zeros(shape, np.uint16)
        own = []
        for window in windows:
            place, part = self._part(window, top, bottom)
            total[(slice(None), *place)] += part
            count[place] += 1
            if seams is not None and len(self.view.windows) > 1:
                own.append((place, part.argmax(axis=0).astype(np.uint8)))
        if len(self.view.windows) > 1:
            total /= count
        if own and seams is not None:
            _count_seams(own, total.argmax(axis=0), count, seams)
        return total

    def _part(self, window: Window, top: int, bottom: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return the rows of a window that lie in a band, and their place there."""
        if window not in self.held:
            rows, columns = (
                slice(window.top, window.top + window.height),
                slice(window.left, window.left + window.width),
            )
            self.held[window] = self.network.logits_of(
                pad_image(self.image[rows, columns], self.view.run_hw, self.network.info)
            )
        logits = self.held[window]
        first, last = max(top, window.top), min(bottom, window.top + window.height)
        (above, below, down), (left, right, across) = (
            neighbours(side, side * self.network.upsample) for side in logits.shape[1:]
        )
        band = slice(first - window.top, last - window.top)
        shown = slice(0, window.width)
        part = _interpolated(logits, (above[band], below[band], down[band]), (left[shown], right[shown], across[shown]))
        return (slice(first - top, last - top), slice(window.left, window.left + window.width)), part


def _count_seams(
    own: Sequence[tuple[tuple[slice, slice], np.ndarray]], drawn: np.ndarray, count: np.ndarray, seams: Seams
) -> None:
    for place, mask in own:
        shared = count[place] > 1
        seams.pixels += int(shared.sum())
        seams.equal += int((shared & (mask == drawn[place])).sum())


def _image_of(rgb: np.ndarray, view: View, resample: Resample) -> np.ndarray:
    for size_hw in view.steps:
        rgb = scale_image(rgb, size_hw, resample)
    return rgb[:, ::-1] if view.flipped else rgb


_Taps = tuple[np.ndarray, np.ndarray, np.ndarray]


def _interpolated(planes: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
    """Weigh two neighbours along each axis, as `nrd_trt.runtime.graph_io.neighbours` names them."""
    (above, below, down), (left, right, across) = rows, columns
    lines = planes[:, above] * (1 - down)[:, None] + planes[:, below] * down[:, None]
    found: np.ndarray = lines[:, :, left] * (1 - across)
    found += lines[:, :, right] * across
    return found
