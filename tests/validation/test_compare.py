"""Figures over a data set: one confusion matrix, restored sizes, ties, labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from nrd_trt.data.preprocessing import FITS, fit_image
from nrd_trt.engine.bundle import ReferenceSet
from nrd_trt.specs import Fit, InputShape
from nrd_trt.validation.compare import Comparator, Comparison, Reference, Sample, compare
from nrd_trt.validation.references import StoredSamples
from tests.helpers import model_info

NAMES = ("sky", "road", "car")
IMAGE = np.zeros((2, 4, 3), np.uint8)


def mask(*rows: Sequence[int]) -> np.ndarray:
    return np.array(rows, np.uint8)


def sample(label: np.ndarray | None = None) -> Sample:
    return Sample(image=IMAGE, restore=np.asarray, label=label)


def figures(*images: tuple[np.ndarray, np.ndarray, np.ndarray | None], ties: Any = None) -> Comparison:
    """Compare (reference mask, engine mask, label) per image."""
    comparator = Comparator(NAMES)
    for reference, engine, label in images:
        comparator.add(Reference(mask=reference, near_tie=ties), engine, sample(label))
    return comparator.result()


def test_small_case_by_hand() -> None:
    reference, engine = mask([0, 0, 1, 1], [0, 0, 1, 1]), mask([0, 0, 0, 1], [0, 0, 1, 1])
    label = mask([0, 0, 1, 1], [0, 1, 1, 255])
    got = figures((reference, engine, label))
    # Reference against label: sky 3 of 4, road 3 of 4. Engine: sky 3 of 5, road 2 of 4. Between: 4 of 5, 3 of 4.
    assert got.miou_reference == pytest.approx((3 / 4 + 3 / 4) / 2)
    assert got.miou_engine == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert got.miou_between == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert got.pixel_agreement == 7 / 8
    assert got.per_class_iou == {"sky": pytest.approx(0.6), "road": pytest.approx(0.5), "car": None}
    assert got.miou_drop == pytest.approx(0.75 - 0.55)
    assert got.tie_share is None
    assert got.images == 1


def test_figures_without_labels_are_null() -> None:
    got = figures((mask([0, 1]), mask([0, 1]), None))
    assert (got.miou_reference, got.miou_engine, got.per_class_iou, got.miou_drop) == (None, None, None, None)
    assert (got.pixel_agreement, got.miou_between) == (1.0, 1.0)


def test_labels_of_ignored_pixels_only_are_as_none() -> None:
    got = figures((mask([0, 1]), mask([0, 1]), mask([255, 255])))
    assert (got.miou_reference, got.miou_engine, got.per_class_iou) == (None, None, None)


def test_nothing_compared_is_no_agreement() -> None:
    got = figures()
    assert (got.pixel_agreement, got.miou_between, got.images) == (None, None, 0)


def test_miou_is_of_the_whole_set_and_not_a_mean_over_images() -> None:
    # First image: 3 of 4 sky, second: road only, all wrong. Per image: (0.75 + 0) and 0.
    first = (mask([0, 0, 0, 0]), mask([0, 0, 0, 1]), mask([0, 0, 0, 0]))
    second = (mask([1, 1]), mask([0, 0]), mask([1, 1]))
    got = figures(first, second)
    # Sky: 3 hits, union 4 + 2; road: no hit.
    assert got.miou_engine == pytest.approx((3 / 6 + 0) / 2)
    alone = [figures(image).miou_engine for image in (first, second)]
    assert got.miou_engine != pytest.approx(np.mean([value for value in alone if value is not None]))
    assert got.pixel_agreement == 3 / 6
    assert got.images == 2


def test_tie_share_is_of_the_flipped_pixels_near_a_tie() -> None:
    reference, engine = mask([0, 0, 0, 0]), mask([0, 1, 1, 1])
    ties = np.array([[True, True, False, False]])  # the first did not flip
    assert figures((reference, engine, None), ties=ties).tie_share == pytest.approx(1 / 3)
    assert figures((reference, reference, None), ties=ties).tie_share == 0.0


def test_tie_share_is_null_where_one_image_does_not_know_its_ties() -> None:
    comparator = Comparator(NAMES)
    for ties in (np.array([[True, True]]), None):
        comparator.add(Reference(mask=mask([0, 0]), near_tie=ties), mask([0, 1]), sample())
    assert comparator.result().tie_share is None


@pytest.mark.parametrize("fit", ["pad", "letterbox"])
def test_padding_is_never_counted(fit: Fit) -> None:
    """The engine disagrees everywhere in the padding and nowhere else."""
    info = model_info(3)
    rgb = np.full((40, 50, 3), 200, np.uint8)
    fitted = fit_image(rgb, InputShape.static((64, 96)), info, fit)
    reference, engine = np.zeros((64, 96), np.uint8), np.full((64, 96), 1, np.uint8)
    rows, columns = fitted.content_hw
    assert rows * columns < 64 * 96
    engine[:rows, :columns] = 0
    label = np.zeros((40, 50), np.uint8)
    one = Sample(image=fitted.image, restore=fitted.restore, label=label)
    ties = np.ones((64, 96), bool)
    got = compare([one], lambda _: Reference(mask=reference, near_tie=ties), lambda _: engine, NAMES)
    assert (got.pixel_agreement, got.miou_between, got.miou_engine, got.tie_share) == (1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("fit", FITS)
def test_pixels_are_counted_at_the_images_size(fit: Fit) -> None:
    fitted = fit_image(np.zeros((30, 50, 3), np.uint8), InputShape.static((32, 64)), model_info(3), fit)
    one = Sample(image=fitted.image, restore=fitted.restore, label=np.zeros((30, 50), np.uint8))
    comparator = Comparator(NAMES)
    comparator.add(Reference(mask=np.zeros((32, 64), np.uint8), near_tie=None), np.zeros((32, 64), np.uint8), one)
    assert comparator._between.sum() == comparator._engine.sum() == 30 * 50


def test_compare_gives_each_side_its_own_view() -> None:
    samples = [Sample(image=np.full((1, 2, 3), value, np.uint8), restore=np.asarray) for value in (0, 1, 2)]
    seen: list[int] = []

    def reference(one: Sample) -> Reference:
        seen.append(int(one.image[0, 0, 0]))
        return Reference(mask=one.image[..., 0], near_tie=None)

    engine: Callable[[np.ndarray], np.ndarray] = lambda image: np.minimum(image[..., 0], 1)  # noqa: E731
    got = compare(iter(samples), reference, engine, NAMES)
    assert seen == [0, 1, 2]
    assert got.images == 3
    assert got.pixel_agreement == pytest.approx(2 / 3)


def test_stored_samples_are_compared_with_their_own_masks() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 1, 2, 3), np.uint8)
    stored = ReferenceSet(images=images, masks=images[..., 0], near_ties=np.ones((3, 1, 2), bool), source="torch")
    kept = StoredSamples(stored)
    assert len(kept) == 3
    with kept.reference() as draw:
        got = compare(kept, draw, lambda image: np.minimum(image[..., 0], 1), NAMES)
    assert got.pixel_agreement == pytest.approx(2 / 3)
    assert got.tie_share == 1.0
    unknown = StoredSamples(
        ReferenceSet(images=images, masks=images[..., 0], near_ties=np.zeros((3, 1, 2), bool), source="onnx")
    )
    with unknown.reference() as draw:
        assert compare(unknown, draw, lambda image: image[..., 0], NAMES).tie_share is None


def test_flips_are_told_apart_by_ties_and_classes() -> None:
    reference, engine = mask([0, 0, 1, 1, 2, 2]), mask([0, 1, 1, 0, 0, 0])
    ties = np.array([[False, True, True, False, True, False]])
    got = figures((reference, engine, None), ties=ties)
    assert (got.flips.pixels, got.flips.near_tie, got.flips.far) == (4, 2, 2)
    assert (got.flips.share, got.flips.far_share) == (4 / 6, 2 / 6)
    pairs = [(pair.reference, pair.engine, pair.pixels, pair.far) for pair in got.flip_pairs]
    assert pairs == [("car", "sky", 2, 1), ("road", "sky", 1, 1), ("sky", "road", 1, 0)]
    assert got.tie_share == 0.5


def test_flips_without_known_ties_are_not_called_far() -> None:
    got = figures((mask([0, 1]), mask([1, 1]), None))
    assert (got.flips.pixels, got.flips.near_tie, got.flips.far, got.flips.far_share) == (1, None, None, None)
    assert [pair.far for pair in got.flip_pairs] == [None]


def test_per_class_figures_between_the_masks_and_of_both_sides() -> None:
    reference, engine = mask([0, 0, 1, 1]), mask([0, 0, 0, 1])
    got = figures((reference, engine, mask([0, 0, 1, 1])))
    assert got.per_class_between == {"sky": pytest.approx(2 / 3), "road": 0.5, "car": None}
    assert got.per_class_reference == {"sky": 1.0, "road": 1.0, "car": None}
    assert got.per_class_boundary == {"sky": 1.0, "road": 1.0, "car": None}  # the outline moved by one pixel
    assert (got.boundary_between, got.boundary_reference, got.boundary_engine) == (1.0, 1.0, 1.0)


def test_the_worst_images_are_named_and_kept() -> None:
    comparator = Comparator(NAMES, pictures=2)
    for name, engine in (("equal", [0, 0, 0, 0]), ("worst", [1, 1, 1, 0]), ("bad", [1, 0, 0, 0])):
        one = Sample(image=IMAGE, restore=np.asarray, name=name)
        comparator.add(Reference(mask=mask([0, 0, 0, 0]), near_tie=None), mask(engine), one)
    got = comparator.result()
    assert [(figures.name, figures.index, figures.flips) for figures in got.worst_images] == [
        ("worst", 1, 3),
        ("bad", 2, 1),
    ]
    assert [figures.pixel_agreement for figures in got.per_image] == [1.0, 0.25, 0.75]
    assert [picture.figures.name for picture in got.pictures] == ["worst", "bad"]
    assert got.pictures[0].engine.tolist() == [[1, 1, 1, 0]]
    plain = got.to_dict()
    assert [figures["name"] for figures in plain["worst_images"]] == ["worst", "bad"]
    assert "pictures" not in plain and "per_image" not in plain
    json.dumps(plain, allow_nan=False)


def test_a_long_set_keeps_six_images() -> None:
    comparator = Comparator(NAMES, pictures=6)
    for index in range(20):
        engine = np.zeros((1, 40), np.uint8)
        engine[0, : (index * 7) % 20] = 1
        one = Sample(image=IMAGE, restore=np.asarray, name=str(index))
        comparator.add(Reference(mask=np.zeros((1, 40), np.uint8), near_tie=None), engine, one)
    got = comparator.result()
    assert len(got.worst_images) == len(got.pictures) == 6
    assert [figures.flips for figures in got.worst_images] == [19, 18, 17, 16, 15, 14]
    assert [picture.figures for picture in got.pictures] == got.worst_images
