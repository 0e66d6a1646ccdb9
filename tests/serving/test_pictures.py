"""What viewers get: exact masks, the same colours as everywhere, records that can be taken apart."""

from __future__ import annotations

import io
from itertools import product

import numpy as np
from PIL import Image

from nrd_trt.serving.pictures import Look, View, compose, mask_png, shrink

PALETTE = ((10, 20, 30), (200, 100, 50), (0, 250, 0))
RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (6, 9, 3), np.uint8)
MASK = RNG.integers(0, 3, (6, 9), np.uint8)
COLOURS = np.array(PALETTE, np.uint8)[MASK]


def expected(look: Look) -> np.ndarray:
    shown = np.isin(MASK, list(range(3) if look.classes is None else look.classes))[..., None]
    if look.view == "mask":
        return np.where(shown, COLOURS, 0)
    overlay = np.where(shown, RGB * (1 - look.opacity) + COLOURS * look.opacity, RGB)
    return {"image": RGB, "overlay": overlay, "side": np.concatenate((RGB, overlay), axis=1)}[look.view]


def test_views_show_the_classes_asked_for_and_leave_the_image_alone() -> None:
    before = RGB.copy()
    views: tuple[View, ...] = ("image", "overlay", "mask", "side")
    for view, classes, opacity in product(views, (None, frozenset({0, 2}), frozenset()), (0.0, 0.35, 1.0)):
        look = Look(view=view, opacity=opacity, classes=classes)
        picture = compose(RGB, MASK, PALETTE, look)
        assert picture.dtype == np.uint8
        assert np.abs(picture.astype(float) - expected(look)).max() <= 1, look
    assert np.array_equal(RGB, before)


def test_index_png_keeps_indices_beyond_the_palette() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.open(io.BytesIO(mask_png(mask, PALETTE)))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), mask)
    assert (image.getpalette() or [])[:9] == [level for colour in PALETTE for level in colour]


def test_shrinking_keeps_the_shape_and_invents_no_class() -> None:
    rgb, mask = shrink(np.zeros((90, 160, 3), np.uint8), np.kron(MASK, np.ones((15, 18), np.uint8))[:90, :160], 80)
    assert (rgb.shape, mask.shape) == ((45, 80, 3), (45, 80))
    assert set(np.unique(mask)) <= {0, 1, 2}
    assert shrink(RGB, MASK, 9) == (RGB, MASK) or shrink(RGB, MASK, 9)[0] is RGB
