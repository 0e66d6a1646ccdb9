"""The legend in the corner of a picture: colour, name and share of each class on a dark plate. NumPy and Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nrd_trt.data.overlay import Palette

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_DARKENED = 0.75  # of the plate: white text stays readable on a white picture
_TALLEST = 0.75  # of the picture's height: some of the picture stays to be seen
_WIDEST = "100.0 %"


class Legend:
    """Draw the legend of a model's classes into pictures of any size.

    Args:
        names: One per class.
        palette: One RGB triple in 0-255 per class.
        shown: Indices of the classes that may be listed.
    """

    def __init__(self, names: Sequence[str], palette: Palette, shown: Sequence[int]) -> None:
        self._names, self._palette, self._shown = names, palette, np.asarray(shown)

    def draw(self, picture: np.ndarray, shares: np.ndarray) -> None:
        """Write the classes that have pixels, largest first, into the upper left corner; what does not fit is counted.

        Args:
            picture: ``(H, W, 3) uint8 RGB``, written to. One too small for a single row stays as it is.
            shares: ``(256,)`` share of the pixels per class index, 0-1.
        """
        layout = _Layout(max(9, round(picture.shape[0] / 36)))
        around = 2 * (layout.margin + layout.pad)
        lines = self._lines(shares, (round(_TALLEST * picture.shape[0]) - around) // layout.row)
        names_width = max(layout.width(self._names[index]) for index in self._shown)
        width = min(picture.shape[1] - around, layout.columns(names_width))
        if not lines or width < layout.columns(layout.font_px):
            return
        height = len(lines) * layout.row
        corner = picture[layout.margin :, layout.margin :][: height + 2 * layout.pad, : width + 2 * layout.pad]
        plate = Image.fromarray(corner)
        plate = Image.blend(plate, Image.new("RGB", plate.size, _BLACK), _DARKENED)
        for place, line in enumerate(lines):
            layout.write(plate, layout.pad + place * layout.row, line)
        corner[:] = plate

    def _lines(self, shares: np.ndarray, fitting: int) -> list[_Line]:
        mine = shares[self._shown]
        order = self._shown[np.argsort(-mine, kind="stable")][: np.count_nonzero(mine)]
        kept = order if len(order) <= fitting else order[: max(fitting - 1, 0)]
        lines = []
        for i in kept:
            figure = "<0.1 %" if shares[i] < 0.0005 else f"{100 * shares[i]:.1f} %"
            lines.append(_Line(text=self._names[i], colour=self._palette[i], figure=figure))
        if len(kept) < len(order) and fitting > 0:
            lines.append(_Line(text=f"+{len(order) - len(kept)} more"))
        return lines


@dataclass(frozen=True, kw_only=True)
class _Line:
    text: str
    colour: tuple[int, int, int] | None = None
    figure: str = ""


class _Layout:
    """Lengths in pixels, all from the size of the font."""

    def __init__(self, font_px: int) -> None:
        self.font_px = font_px
        self.row = round(1.35 * font_px)
        self.pad = round(0.5 * font_px)
        self.margin = round(0.6 * font_px)
        self.indent = round(1.7 * font_px)  # from the plate's content to the names: colour and gap

    def width(self, text: str) -> int:
        return _render(text, self.font_px).width

    def columns(self, name_width: int) -> int:
        """Width of colour, name and figure side by side."""
        return self.indent + name_width + self.font_px + self.width(_WIDEST)

    def write(self, plate: Image.Image, top: int, line: _Line) -> None:
        """Write a line; a name that meets the figure is cut."""
        left, right = self.pad, plate.width - self.pad
        if line.colour is not None:
            side = self.font_px
            above = top + (self.row - side) // 2
            plate.paste(_WHITE, (left, above, left + side, above + side))
            plate.paste(line.colour, (left + 1, above + 1, left + side - 1, above + side - 1))
        figure = _render(line.figure, self.font_px)
        figure_left = right - figure.width
        plate.paste(_WHITE, (figure_left, top + (self.row - figure.height) // 2), figure)
        left += self.indent
        name_width = right - (self.font_px + self.width(_WIDEST) if line.figure else 0) - left
        name = _render(_cut(line.text, self.font_px, name_width), self.font_px)
        plate.paste(_WHITE, (left, top + (self.row - name.height) // 2), name)


@lru_cache(maxsize=1024)
def _cut(text: str, font_px: int, width: int) -> str:
    """Shorten a text to what fits."""
    shortened = text
    while shortened and _render(shortened, font_px).width > width:
        shortened = f"{shortened.rstrip('…')[:-1]}…" if len(shortened) > 1 else ""
    return shortened


@lru_cache(maxsize=4096)
def _render(text: str, font_px: int) -> Image.Image:
    """Return the text's coverage as an ``L`` image; all texts of a font have the same height and baseline."""
    font = _font(font_px)
    ascent, descent = font.getmetrics()
    image = Image.new("L", (math.ceil(font.getlength(text)), ascent + descent))
    ImageDraw.Draw(image).text((0, ascent), text, fill=255, font=font, anchor="ls")
    return image


@lru_cache(maxsize=16)
def _font(font_px: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(font_px))  # with a size it is never the bitmap font
