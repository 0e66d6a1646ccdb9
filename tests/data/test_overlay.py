"""Masks as pictures: the fast blend against the exact one, and palettes that are shorter than the masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nrd_trt.data.overlay import blend, colour, write_mask

GREYS = [(value, value, value) for value in range(256)]
# Each grey of the image under each grey of the palette.
IMAGE = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 256, axis=1).repeat(3, axis=2)
MASK = np.tile(np.arange(256, dtype=np.uint8), (256, 1))


@pytest.mark.parametrize("opacity", [0, 0.3, 0.5, 0.6, 0.65, 0.999, 1])
def test_blend_is_within_one_grey_level_of_the_exact_one_for_all_pairs_of_greys(opacity: float) -> None:
    exact = IMAGE * (1 - opacity) + np.array(GREYS)[MASK] * opacity
    assert np.abs(blend(IMAGE, MASK, GREYS, opacity) - np.rint(exact)).max() <= 1


def test_blend_of_no_or_full_opacity_is_exact_and_leaves_the_image_where_a_class_is_not_shown() -> None:
    np.testing.assert_array_equal(blend(IMAGE, MASK, GREYS, 0), IMAGE)
    np.testing.assert_array_equal(blend(IMAGE, MASK, GREYS, 1), colour(MASK, GREYS))
    shown = np.arange(256) % 3 == 0
    mixed = blend(IMAGE, MASK, GREYS, 0.6, shown=shown)
    np.testing.assert_array_equal(mixed[:, ~shown], IMAGE[:, ~shown])
    np.testing.assert_array_equal(mixed[:, shown], blend(IMAGE, MASK, GREYS, 0.6)[:, shown])


def test_results_belong_to_the_caller_and_arguments_are_not_written() -> None:
    image, mask = IMAGE.copy(), MASK.copy()
    for array in (image, mask):
        array.setflags(write=False)
    for result in (blend(image, mask, GREYS, 0.6), colour(mask, GREYS)):
        result += 1
        assert not np.shares_memory(result, image)


def test_indices_beyond_the_palette_are_black_and_kept_in_the_file(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    assert colour(mask, [(1, 2, 3), (4, 5, 6)]).tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0], [0, 0, 0]]]
    write_mask(tmp_path / "mask.png", MASK, [(1, 2, 3)])
    with Image.open(tmp_path / "mask.png") as image:
        np.testing.assert_array_equal(np.asarray(image), MASK)
