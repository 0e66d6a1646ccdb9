"""Colours of classes by name, and colours for any number of classes. NumPy only."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from nrd_trt.data.classes import Palette, known_classes
from nrd_trt.errors import ConfigError
from nrd_trt.specs import ModelInfo

PaletteName = Literal["model", "camvid", "cityscapes", "ade20k", "generated"]
PALETTES: tuple[PaletteName, ...] = get_args(PaletteName)

_SETS = {"camvid": 11, "cityscapes": 19, "ade20k": 150}
_LIGHTNESS = (30, 90)  # of 0-100: darker and lighter colours are hard to tell from black and white


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
    known = known_classes(_SETS[name])
    colours = () if known is None else known[1]
    if len(colours) < count:
        raise ConfigError(
            f"palette {name!r}: expected a colour for each of the {count} classes, got {len(colours)}; "
            "take model or generated."
        )
    return colours[:count]


def distinct_colours(count: int) -> Palette:
    """Return colours that are easy to tell apart, the same ones every time.

    Each colour is the one farthest in CIELAB from all before it, so that a longer palette starts with the shorter one.

    Args:
        count: How many, 1-256.
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
