"""OpenCV's bilinear scaling in NumPy: the bytes of OpenCV itself, where it is installed and where it is not."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nrd_trt.data.bilinear import resize_as_cv2
from nrd_trt.specs import Size

# By old and new size, what `cv2.resize` of OpenCV 4.9 to 5.0 on x86-64 makes of `picture`.
RECORDED: dict[tuple[Size, Size], str] = {
    ((72, 96), (35, 48)): "4ef649c8fa6aad69",
    ((36, 48), (35, 48)): "7c8ab63786051f9b",
    ((64, 96), (32, 48)): "20c607f84332cea1",
    ((32, 48), (64, 96)): "bbe8ff11b1baedc4",
    ((31, 47), (93, 141)): "2b39895e65753fee",
    ((33, 47), (33, 64)): "137999f9f590742f",
    ((33, 47), (64, 47)): "3796f2bb2b463d69",
    ((108, 192), (51, 102)): "95827a52fe34d52e",
    ((128, 128), (32, 32)): "4a97a18e30cb64f0",
    ((97, 61), (7, 5)): "f3e8bb8ec9f61b6b",
    ((5, 7), (96, 101)): "2fc1711db19120ec",
    ((3, 346), (3, 301)): "b9abd81da87627a1",  # where places of more than 32 bits would give other weights
    ((1, 1), (4, 6)): "1d038e485a8e63b2",
    ((1, 9), (5, 3)): "3cdce53c50a85a9e",
    ((9, 1), (3, 9)): "080e699b5192c08c",
    ((40, 50), (1, 1)): "827dfc5abd6ccfb1",
    ((2, 2), (5, 5)): "840cee84a919237b",
}


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture of hard contrasts that no library's random numbers are needed for."""
    values = np.arange(height * width * channels, dtype=np.uint64)
    return (values * values * 2654435761 >> 13).astype(np.uint8).reshape(height, width, channels)


def digest(rgb: np.ndarray) -> str:
    return hashlib.sha256(rgb.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("old", "new"), RECORDED)
def test_it_is_what_cv2_gave(old: Size, new: Size) -> None:
    scaled = resize_as_cv2(picture(*old), new)
    assert (scaled.shape, scaled.dtype, scaled.flags.c_contiguous) == ((*new, 3), np.uint8, True)
    assert digest(scaled) == RECORDED[old, new]


def test_it_is_what_cv2_gives() -> None:
    """Over sizes that shrink, grow, stay on one side, halve, double and have one pixel."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV to compare with: pip install opencv-python-headless")
    random = np.random.default_rng(0)
    sizes = [*RECORDED, *((tuple(pair[:2]), tuple(pair[2:])) for pair in random.integers(1, 120, (300, 4)).tolist())]
    for old, new in sizes:
        for channels in (1, 3):
            rgb = random.integers(0, 256, (*old, channels), dtype=np.uint8)
            expected = cv2.resize(rgb, new[::-1], interpolation=cv2.INTER_LINEAR).reshape(*new, channels)
            np.testing.assert_array_equal(resize_as_cv2(rgb, new), expected, err_msg=f"{old} to {new}")


def test_a_picture_that_shrinks_is_not_averaged() -> None:
    """Of four columns the middle two count, where Pillow's filter would blur all of them."""
    columns = np.tile(np.array([0, 100, 200, 40], np.uint8), 8)
    rgb = np.broadcast_to(columns[None, :, None], (32, 32, 3))
    assert np.unique(resize_as_cv2(rgb, (8, 8))).tolist() == [150]
    np.testing.assert_array_equal(resize_as_cv2(rgb, (32, 32)), rgb)
