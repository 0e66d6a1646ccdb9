"""Random changes of training images: image and label stay together, sizes and colours stay in their ranges."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest

from nrd_trt.data import augment
from nrd_trt.data.augment import Augmentation, random_sample
from nrd_trt.data.folders import IGNORE
from nrd_trt.errors import ConfigError
from tests.helpers import model_info

CROP = (64, 96)
PLAIN = model_info(6, mean=(0, 0, 0), std=(1, 1, 1))
"""Pixels stay what they are."""
GREY = model_info(6, mean=(100.0, 110.0, 120.0), std=(50.0, 50.0, 50.0))


def how(**changes: Any) -> Augmentation:
    return Augmentation(**{"crop_hw": CROP, "scale_range": (1.0, 1.0), "colour": "none", **changes})


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def blocks() -> tuple[np.ndarray, np.ndarray]:
    """A label of six blocks, and the image whose every channel is the label."""
    label = np.kron(np.array([[0, 40, 80], [120, 160, 200]], np.uint8), np.ones((40, 40), np.uint8))
    return np.repeat(label[..., None], 3, axis=2), label


def ramp(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red and green count columns and rows, all of class 1."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, x * 0], axis=-1).astype(np.uint8), np.ones((height, width), np.uint8)


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("seed", range(4))
def test_image_and_label_move_together(scale: float, seed: int) -> None:
    image, label = blocks()
    out, mask = random_sample(image, label, how(scale_range=(scale, scale)), rng(seed), info=PLAIN)
    assert (out.shape, out.dtype) == ((3, *CROP), np.float32)
    assert (mask.shape, mask.dtype) == (CROP, np.uint8)
    counted = mask != IGNORE
    # only pixels beside a border between two classes may be a blend of both
    assert np.mean(np.abs(out[0][counted] - mask[counted]) < 2) > 0.8
    assert set(np.unique(mask[counted]).tolist()) <= {0, 40, 80, 120, 160, 200}  # no label is
    assert (out[:, ~counted] == 0).all()
    assert counted.all() == (scale >= 1)
    assert len(np.unique(mask[counted])) > 1


def test_crops_come_from_everywhere_and_half_of_them_are_mirrored() -> None:
    image, label = ramp(128, 192)
    crops = [random_sample(image, label, how(), rng(seed), info=PLAIN)[0] for seed in range(100)]
    tops = [crop[1, 0, 0] for crop in crops]
    assert min(tops) < 7 and max(tops) > 57  # 0 to 64 is possible
    assert 35 < sum(crop[0, 0, 0] > crop[0, 0, 1] for crop in crops) < 65


def test_small_pictures_lie_anywhere_on_the_mean_colour() -> None:
    image, label = np.full((20, 30, 3), 200, np.uint8), np.ones((20, 30), np.uint8)
    corners = set()
    for seed in range(30):
        out, mask = random_sample(image, label, how(), rng(seed), info=GREY)
        rows, columns = np.nonzero(mask == 1)
        assert (len(rows), np.ptp(rows), np.ptp(columns)) == (600, 19, 29)
        assert out[:, rows[0], columns[0]].tolist() == pytest.approx([2.0, 1.8, 1.6])
        assert (out[:, mask == IGNORE] == 0).all()
        corners.add((rows[0], columns[0]))
    assert len(corners) > 20 and max(row for row, _ in corners) > 30


def enlargement(height: int, width: int, seed: int, **changes: Any) -> float:
    """By how much a picture was scaled, read off how fast its columns pass."""
    image, label = ramp(height, width)
    out, mask = random_sample(image, label, how(**changes), rng(seed), info=PLAIN)
    first = (mask == 1).any(axis=1).argmax()
    row = out[0, first][mask[first] == 1][3:-3]  # without the blends at the sides
    return float((len(row) - 1) / abs(row[-1] - row[0]))


def test_scales_fill_their_range() -> None:
    scales = [enlargement(200, 250, seed, scale_range=(0.5, 2.0)) for seed in range(100)]
    assert 0.47 < min(scales) < 0.65 and 1.8 < max(scales) < 2.1
    assert 1.1 < np.mean(scales) < 1.4, "drawn evenly"


@pytest.mark.parametrize(
    ("size_hw", "base_wh", "expected"),
    [
        ((100, 200), (100, 80), 0.5),  # the long side binds
        ((100, 200), (800, 150), 1.5),  # the short side binds
        ((200, 100), (100, 80), 0.5),  # an upright picture: the base turns with it
        ((200, 100), (80, 100), 0.5),
        ((100, 200), None, 1.0),
    ],
)
def test_pictures_are_brought_to_the_base(
    size_hw: tuple[int, int], base_wh: tuple[int, int] | None, expected: float
) -> None:
    assert enlargement(*size_hw, 0, base_wh=base_wh) == pytest.approx(expected, rel=0.06)
    doubled = enlargement(*size_hw, 0, base_wh=base_wh, scale_range=(0.8, 0.8))
    assert doubled == pytest.approx(0.8 * expected, rel=0.06)


def test_crops_of_one_class_are_drawn_again() -> None:
    """Of one class but for a strip at the right, which an eighth of the crops show well."""
    image, label = np.zeros((64, 960, 3), np.uint8), np.zeros((64, 960), np.uint8)
    label[:, 860:] = 1
    shares = []
    for most in (1.0, 0.75):
        masks = [random_sample(image, label, how(max_class_share=most), rng(seed), info=PLAIN)[1] for seed in range(60)]
        shares.append([float(np.bincount(mask.ravel()).max() / mask.size) for mask in masks])
    free, bound = shares
    assert sum(share < 0.75 for share in free) < 15
    assert 25 < sum(share < 0.75 for share in bound) < 60
    assert max(bound) == 1.0, "after ten tries whatever comes is taken"


def test_ignored_pixels_do_not_count_as_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.zeros((64, 96), np.uint8)
    label[:, :6], label[:, 6:12] = 1, 2
    label[:, 12:] = IGNORE
    monkeypatch.setattr(augment, "_CROP_TRIES", 3)
    for changed, expected in ((label, 1), (np.where(label == 2, 1, label), 3), (np.full_like(label, IGNORE), 3)):
        with mock.patch.object(augment, "_largest_share", wraps=augment._largest_share) as tries:
            random_sample(np.zeros((64, 96, 3), np.uint8), changed, how(max_class_share=0.75), rng(), info=PLAIN)
        assert tries.call_count == expected


def recoloured(colour: Any, seed: int, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label = np.tile(np.arange(6, dtype=np.uint8), (64, 16))
    return random_sample(image, label, how(colour=colour), rng(seed), info=PLAIN)


@pytest.mark.parametrize("colour", ["jitter", "photometric"])
def test_colours_change_within_a_byte_and_labels_do_not(colour: str) -> None:
    noise, changed = rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8), []
    for seed in range(20):
        plain, label = recoloured("none", seed, noise)
        out, mask = recoloured(colour, seed, noise)
        assert np.array_equal(mask, label)
        assert out.min() >= 0 and out.max() <= 255
        if colour == "photometric":
            assert np.array_equal(out, out.round())
        assert np.corrcoef(out.ravel(), plain.ravel())[0, 1] > 0.5, "it is still the same picture"
        changed.append(not np.array_equal(out, plain))
    assert sum(changed) >= (18 if colour == "photometric" else 20)


def test_jitter_changes_brightness_by_up_to_thirty_percent() -> None:
    image = np.full((64, 96, 3), 100, np.uint8)
    levels = [recoloured("jitter", seed, image)[0].mean() for seed in range(100)]
    assert 69.9 < min(levels) < 75 and 125 < max(levels) < 130.1


def test_photometric_changes_hue_brightness_contrast_and_saturation() -> None:
    """On flat colours: of grey only brightness and contrast change, of red also the other two."""

    def pixels_of(colour: object) -> np.ndarray:
        image = np.full((64, 96, 3), colour, np.uint8)
        return np.array([recoloured("photometric", seed, image)[0][:, 0, 0] for seed in range(200)])

    greys, reds, vivid = pixels_of(120), pixels_of((110, 40, 40)), pixels_of((120, 6, 6))
    assert not np.ptp(greys, axis=1).any()
    levels = greys[:, 0]
    assert levels.min() >= 120 * 0.5 - 33 and levels.max() <= 120 * 1.5 + 49
    assert levels.min() < 75 and levels.max() > 170
    assert 0.15 < np.mean(levels == 120) < 0.4, "both stay as they are in a quarter of the samples"
    hues = 60 * (reds[:, 1] - reds[:, 2]) / np.ptp(reds, axis=1)  # in degrees; the other changes leave it
    assert 0.3 < np.mean(np.abs(hues) <= 1) < 0.7, "hue changes in half of the samples"
    assert -38 < hues.min() < -30 and 30 < hues.max() < 38  # up to 36, which is 18 steps of mmseg's 180
    spread = np.ptp(reds, axis=1) / reds.max(axis=1)
    assert spread.min() < 0.4 and spread.max() > 0.9  # 0.64 before
    vivid = vivid[vivid.max(axis=1) > 115]  # brightness that was lowered has cut the small values off
    assert len(vivid) > 40
    assert (np.ptp(vivid, axis=1) / vivid.max(axis=1)).min() > 0.35, "saturation ends at full colour; 0.95 before"


@pytest.mark.parametrize(
    "changes",
    [{"scale_range": (0.0, 1.0)}, {"scale_range": (2.0, 1.0)}, {"max_class_share": 0.0}, {"max_class_share": 1.5}],
    ids=str,
)
def test_invalid_ranges_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="augmentation: expected 0 < smallest <= largest scale, max_class_share"):
        how(**changes)


def test_another_camera_changes_colours_and_nothing_else() -> None:
    """Each sample has its own exposure and white balance; labels, places and the order of grey levels stay."""
    image, label = blocks()
    plain, _ = random_sample(image, label, how(), rng(1), info=PLAIN)
    seen = set()
    for seed in range(1, 20):
        out, mask = random_sample(image, label, how(colour="camera"), rng(seed), info=PLAIN)
        assert 0 <= out.min() and out.max() <= 255
        same, expected = random_sample(image, label, how(), rng(seed), info=PLAIN)
        np.testing.assert_array_equal(mask, expected)
        inside = mask != IGNORE
        for channel in out[:, inside]:  # brighter pixels stay brighter, but for what is cut at 255
            assert (np.diff(channel[np.argsort(same[0][inside], kind="stable")]) >= -1e-3).all()
        seen.add(tuple(out[:, inside].mean(1).round()))
    assert len(seen) == 19 and plain.shape == out.shape
    rows = np.array(sorted(seen))
    assert rows.mean(1).std() > 15, "exposures differ"
    assert (rows.max(1) - rows.min(1)).max() > 15, "white balances differ"


def test_blur_softens_edges_of_the_image_alone() -> None:
    image, label = blocks()
    softened = []
    for seed in range(12):
        out, mask = random_sample(image, label, how(blur=3.0), rng(seed), info=PLAIN)
        sharp, expected = random_sample(image, label, how(), rng(seed), info=PLAIN)
        np.testing.assert_array_equal(mask, expected)
        softened.append(np.abs(np.diff(out[0])).max() < np.abs(np.diff(sharp[0])).max())
    assert any(softened) and not all(softened)
    with pytest.raises(ConfigError, match=r"expected .* blur >= 0, got .* -1"):
        how(blur=-1)
