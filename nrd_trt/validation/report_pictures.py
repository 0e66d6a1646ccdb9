"""The pictures of a report: image, reference, engine and difference, side by side, inside the page. NumPy, Pillow."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from nrd_trt.data.overlay import Palette, colour
from nrd_trt.validation.compare import Picture
from nrd_trt.validation.html import Html, section, tag

_PICTURE_WIDTH = 640
_FAR, _TIED = (230, 40, 40), (245, 185, 40)


def show_pictures(pictures: Sequence[Picture], palette: Palette) -> Html | None:
    """Return the part of the report with the pictures, or None where no pixel differs.

    Args:
        pictures: The worst first; those without a flip are left out.
        palette: One RGB triple in 0-255 per class.
    """
    shown = [picture for picture in pictures if picture.figures.flips]
    if not shown:
        return None
    return section(
        "Worst images",
        tag(
            "p",
            "Differences: red not near a tie, yellow near a tie or not known, drawn wider than they are.",
            class_="soft small",
        ),
        [_shots(picture, palette) for picture in shown],
    )


def _shots(picture: Picture, palette: Palette) -> Html:
    figures = picture.figures
    views = [
        ("image", _png(picture.image)),
        ("reference", _png(colour(picture.reference.mask, palette), masks=True)),
        ("engine", _png(colour(picture.engine, palette), masks=True)),
        ("difference", _png(_difference(picture), masks=True)),
    ]
    caption = f"{figures.name}: agreement {figures.pixel_agreement or 0:.6f}, {figures.flips} pixels differ"
    return tag(
        "div",
        tag("p", caption),
        tag(
            "div",
            [
                tag("figure", tag("img", src=data, alt=f"{name} of {figures.name}"), tag("figcaption", name))
                for name, data in views
            ],
            class_="shots",
        ),
    )


def _difference(picture: Picture) -> np.ndarray:
    """Return the flips over the faded image, ``(h, w, 3) uint8``."""
    flipped = picture.reference.mask != picture.engine
    near_tie = picture.reference.near_tie
    tied = flipped if near_tie is None else flipped & near_tie
    far = flipped & ~tied
    grey = picture.image.mean(axis=2, keepdims=True) * 0.4 + 50
    shown = np.repeat(grey, 3, axis=2).astype(np.uint8)
    reach = 1 + shown.shape[1] // _PICTURE_WIDTH * 2
    shown[_widened(tied, reach)] = _TIED
    shown[_widened(far, reach)] = _FAR
    return shown


def _widened(pixels: np.ndarray, reach: int) -> np.ndarray:
    """Return the pixels and those up to `reach` away, so that single ones survive a smaller picture."""
    padded = np.pad(pixels, reach)
    rows, columns = pixels.shape
    side = range(2 * reach + 1)
    wide: np.ndarray = np.logical_or.reduce(
        [padded[top : top + rows, left : left + columns] for top in side for left in side]
    )
    return wide


def _png(rgb: np.ndarray, *, masks: bool = False) -> str:
    """Return a picture as a data URL, at most 640 wide; of masks no colours are mixed."""
    image = Image.fromarray(rgb)
    if image.width > _PICTURE_WIDTH:
        height = round(image.height * _PICTURE_WIDTH / image.width)
        resample = Image.Resampling.NEAREST if masks else Image.Resampling.LANCZOS
        image = image.resize((_PICTURE_WIDTH, height), resample)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
