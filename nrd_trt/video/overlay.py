"""Pictures of masks on frames: overlay, class colours or both sides, with outlines and a legend. NumPy and Pillow.

Colours are the model's own, those of a data set, or ones made for any number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from nrd_trt.data.classes import CAMVID_PALETTE, CITYSCAPES_PALETTE, Palette, voc_palette
from nrd_trt.data.overlay import CONFIDENCE_PALETTE, blend
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.specs import ModelInfo, PaletteName, View, check_choice, format_size
from nrd_trt.video.legend import Legend

_OUTLINE = 255
_WIDE_FROM = 480  # from this height on, a line of one pixel is too thin to see
_SETS: dict[str, Palette] = {"camvid": CAMVID_PALETTE, "cityscapes": CITYSCAPES_PALETTE, "ade20k": voc_palette(150)}
_LIGHTNESS = (30, 90)  # of 0-100: darker and lighter colours are hard to tell from black and white


@dataclass(frozen=True, kw_only=True)
class OverlayStyle:
    """How a mask is shown.

    Attributes:
        view: ``"overlay"`` on the image, ``"mask"`` alone, ``"side"``: image beside overlay, twice as wide, or
            ``"confidence"`` on the image, bright where the network is unsure; it has no classes to colour.
        opacity: Opacity of the mask in the overlay, 0-1.
        contours: Whether the borders between classes are drawn, 1 or 2 pixels wide.
        show: Names or indices of the classes to colour; None colours all. What is not coloured keeps the image, and is
            black in ``"mask"``.
        palette: Where the colours come from.
        legend: Whether colour, name and share of the classes stand in the upper left corner.
    """

    view: View = "overlay"
    opacity: float = 0.6
    contours: bool = False
    show: tuple[str | int, ...] | None = None
    palette: PaletteName = "model"
    legend: bool = False

    def __post_init__(self) -> None:
        check_choice("view", self.view, View)
        check_choice("palette", self.palette, PaletteName)
        if not 0 <= self.opacity <= 1:
            raise ConfigError(f"opacity={self.opacity}: expected 0 to 1; 0.6 is the usual one.")
        if self.show is not None and not self.show:
            raise ConfigError("show=(): expected at least one class, got none; leave it out to colour all.")
        if self.view == "confidence" and (self.show is not None or self.legend):
            option = "show=" if self.show is not None else "legend=True"
            raise ConfigError(
                f"view='confidence': expected no {option}, which is about colours of classes; leave one out."
            )


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
        chosen = range(len(palette)) if style.show is None else _indices(style.show, info.class_names)
        self._style, self._palette = style, palette
        self._shown = None if style.show is None else np.isin(np.arange(256), chosen)
        # All classes that are not shown get one index, so that no border runs between them.
        self._outlined = None if self._shown is None else np.where(self._shown, np.arange(256), np.argmin(self._shown))
        self._legend = Legend(info.class_names, palette, chosen) if style.legend else None

    def __call__(
        self,
        rgb: np.ndarray,
        mask: np.ndarray,
        shares: np.ndarray | None = None,
        confidence: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draw one frame.

        Args:
            rgb: ``(H, W, 3) uint8 RGB``.
            mask: ``(H, W) uint8``.
            shares: ``(256,)``, what `class_shares` gives for the mask; counted here where it is None and needed.
            confidence: ``(H, W) uint8`` for the view ``"confidence"``.

        Returns:
            ``(H, W, 3) uint8 RGB``, or ``(H, 2·W, 3)`` with the view ``"side"``; owned by the caller.

        Raises:
            ShapeError: Image and mask have different sizes.
            ConfigError: The confidence is to be shown and there is none.
        """
        if rgb.shape != (*mask.shape, 3):
            raise ShapeError(
                f"mask: expected the image's size {format_size(rgb.shape[:2])}, got {format_size(mask.shape)}; "
                "bring it to that size first."
            )
        picture = self._blended(rgb, mask, confidence)
        if self._style.contours:
            table = self._outlined
            _outline(picture, mask if table is None else np.asarray(Image.fromarray(mask).point(table.tolist())))
        if self._legend is not None:
            self._legend.draw(picture, class_shares(mask) if shares is None else shares)
        return np.concatenate((rgb, picture), axis=1) if self._style.view == "side" else picture

    def _blended(self, rgb: np.ndarray, mask: np.ndarray, confidence: np.ndarray | None) -> np.ndarray:
        view, opacity = self._style.view, self._style.opacity
        if view == "mask":
            return blend(np.zeros_like(rgb), mask, self._palette, 1.0, shown=self._shown)
        if view != "confidence":
            return blend(rgb, mask, self._palette, opacity, shown=self._shown)
        if confidence is None:
            raise ConfigError(
                "view='confidence': expected the confidence beside the mask, got none; take another view."
            )
        return blend(rgb, confidence, CONFIDENCE_PALETTE, opacity)


def class_shares(mask: np.ndarray) -> np.ndarray:
    """Return the share of the pixels per class index, ``(256,) float64`` in 0-1, of a mask ``(H, W) uint8``."""
    return np.array(Image.fromarray(mask).histogram()) / mask.size  # half of np.bincount's time


def _indices(wanted_classes: tuple[str | int, ...], names: tuple[str, ...]) -> list[int]:
    """Return the indices of classes given by name or index; a name of several classes stands for all of them."""
    found = []
    for wanted in wanted_classes:
        matching = [index for index, name in enumerate(names) if wanted in (name, index)]
        if not matching:
            known = ", ".join(f"{index} {name}" for index, name in enumerate(names))
            raise ConfigError(f"show={wanted!r}: expected names or indices of the model's classes; it has {known}.")
        found += matching
    return found


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


def palette_of(name: PaletteName, info: ModelInfo) -> Palette:
    """Return one colour per class: class i gets colour i of the palette.

    Args:
        name: The model's own colours, those of a data set, or generated ones.
        info: Class names and the model's own colours.

    Raises:
        ConfigError: The palette has fewer colours than the model has classes.
    """
    count = len(info.class_names)
    if name == "model":
        return info.palette
    if name == "generated":
        return distinct_colours(count)
    colours = _SETS[name]
    if len(colours) < count:
        raise ConfigError(
            f"palette={name!r}: expected a colour for each of the {count} classes, got {len(colours)}; take model or "
            "generated."
        )
    return colours[:count]


def distinct_colours(count: int) -> Palette:
    """Return colours that are easy to tell apart, the same ones every time.

    Each colour is the one farthest in CIELAB from all before it, so that a longer palette starts with the shorter one.

    Args:
        count: Number of colours, 1-256.
    """
    levels = np.arange(0, 256, 17)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(rgb)
    usable = (lab[:, 0] >= _LIGHTNESS[0]) & (lab[:, 0] <= _LIGHTNESS[1])
    rgb, lab = rgb[usable], lab[usable]
    chosen = [int(np.linalg.norm(lab[:, 1:], axis=1).argmax())]  # the most vivid one
    distance = np.full(len(lab), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return tuple((int(r), int(g), int(b)) for r, g, b in rgb[chosen])


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Turn sRGB ``(N, 3)`` in 0-255 into CIELAB (white D65): its distances are about those that eyes see."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
