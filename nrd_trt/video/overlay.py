"""Pictures of masks on frames: overlay, class colours or both sides, with outlines and a legend. NumPy and Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from nrd_trt.data.overlay import blend, colour
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.specs import ModelInfo, format_size
from nrd_trt.video.legend import Legend
from nrd_trt.video.palettes import PALETTES, PaletteName, palette_of

View = Literal["overlay", "mask", "side"]
VIEWS: tuple[View, ...] = get_args(View)

_OUTLINE = 255
_WIDE_FROM = 480  # from this height on, a line of one pixel is too thin to see


@dataclass(frozen=True, kw_only=True)
class OverlayStyle:
    """How a mask is shown.

    Attributes:
        view: ``"overlay"`` on the image, ``"mask"`` alone, or ``"side"``: image beside overlay, twice as wide.
        opacity: Of the overlay, 0-1.
        contours: Whether the borders between classes are drawn, 1 or 2 pixels wide.
        classes: Names or indices of the classes to colour; None colours all. What is not coloured keeps the image, and
            is black in ``"mask"``.
        palette: Where the colours come from.
        legend: Whether colour, name and share of the classes stand in the upper left corner.
    """

    view: View = "overlay"
    opacity: float = 0.6
    contours: bool = False
    classes: tuple[str | int, ...] | None = None
    palette: PaletteName = "model"
    legend: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (("view", self.view, VIEWS), ("palette", self.palette, PALETTES)):
            if value not in known:
                raise ConfigError(f"{what} {value!r}: expected one of {', '.join(known)}.")
        if not 0 <= self.opacity <= 1:
            raise ConfigError(f"opacity: expected 0 to 1, got {self.opacity}.")
        if self.classes is not None and not self.classes:
            raise ConfigError("classes: expected at least one class, got none; leave it out to colour all.")


class Painter:
    """Callable that draws a frame's picture; it may be called from several threads.

    Args:
        info: Class names and colours.
        style: What to draw.

    Raises:
        ConfigError: A class is unknown, or the palette too short for the model.
    """

    def __init__(self, info: ModelInfo, style: OverlayStyle) -> None:
        palette = palette_of(style.palette, info)
        chosen = range(len(palette)) if style.classes is None else _indices(style.classes, info.class_names)
        self._style = style
        self._shown = None if style.classes is None else np.isin(np.arange(256), chosen)
        self._palette = [rgb if index in chosen else (0, 0, 0) for index, rgb in enumerate(palette)]
        self._legend = Legend(info.class_names, palette, chosen) if style.legend else None

    def __call__(self, rgb: np.ndarray, mask: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
        """Draw one frame.

        Args:
            rgb: ``(H, W, 3) uint8 RGB``.
            mask: ``(H, W) uint8``.
            shares: ``(256,)``, what `class_shares` gives for the mask; counted here where it is None and needed.

        Returns:
            ``(H, W, 3) uint8 RGB``, or ``(H, 2·W, 3)`` with the view ``"side"``; owned by the caller.

        Raises:
            ShapeError: Image and mask have different sizes.
        """
        if rgb.shape != (*mask.shape, 3):
            raise ShapeError(
                f"mask: expected the image's size {format_size(rgb.shape[:2])}, got {format_size(mask.shape)}; "
                "bring it to that size first."
            )
        if self._style.view == "mask":
            picture = colour(mask, self._palette)
        else:
            picture = blend(rgb, mask, self._palette, self._style.opacity, shown=self._shown)
        if self._style.contours:
            _outline(picture, mask if self._shown is None else _merged(mask, self._shown))
        if self._legend is not None:
            self._legend.draw(picture, class_shares(mask) if shares is None else shares)
        return np.concatenate((rgb, picture), axis=1) if self._style.view == "side" else picture


def class_shares(mask: np.ndarray) -> np.ndarray:
    """Return the share of the pixels per class index, ``(256,) float64`` in 0-1, of a mask ``(H, W) uint8``."""
    return np.array(Image.fromarray(mask).histogram()) / mask.size  # half of np.bincount's time


def _indices(classes: tuple[str | int, ...], names: tuple[str, ...]) -> list[int]:
    """Return the indices of classes given by name or index; a name of several classes stands for all of them."""
    found = []
    for wanted in classes:
        matching = [index for index, name in enumerate(names) if wanted in (name, index)]
        if not matching:
            known = ", ".join(f"{index} {name}" for index, name in enumerate(names))
            raise ConfigError(
                f"classes: expected names or indices of the model's classes, got {wanted!r}; it has {known}."
            )
        found += matching
    return found


def _merged(mask: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Give all classes that are not shown one index, so that no border runs between them."""
    table = np.where(shown, np.arange(256), np.argmin(shown))
    return np.asarray(Image.fromarray(mask).point(table.tolist()))


def _outline(picture: np.ndarray, mask: np.ndarray) -> None:
    """Write the borders between classes into a picture: on one side of a border, or on both in a large picture."""
    border = np.zeros(mask.shape, np.bool_)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    border[1:] |= down
    border[:, 1:] |= right
    if len(mask) >= _WIDE_FROM:
        border[:-1] |= down
        border[:, :-1] |= right
    picture.reshape(-1, 3)[np.flatnonzero(border)] = _OUTLINE  # a third of the time of picture[border]
