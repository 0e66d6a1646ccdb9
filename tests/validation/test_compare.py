"""Figures over a data set: one confusion matrix, restored sizes, ties, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nrd_trt.data.preprocessing import FITS, fit_image
from nrd_trt.data.samples import Sample
from nrd_trt.engine.bundle import ReferenceSet
from nrd_trt.specs import Fit, InputShape
from nrd_trt.validation.compare import Comparator, Comparison, Reference
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
    assert got.per_class_between == {"sky": pytest.approx(0.8), "road": 0.75, "car": None}
    assert got.per_class_reference == {"sky": 0.75, "road": 0.75, "car": None}
    assert got.per_class_boundary == {"sky": 1.0, "road": 1.0, "car": None}  # the outline moved by one pixel
    assert (got.boundary_between, got.boundary_reference, got.boundary_engine) == (1.0, 1.0, 1.0)
    assert got.miou_drop == pytest.approx(0.75 - 0.55)
    assert got.tie_share is None
    assert got.images == 1


@pytest.mark.parametrize("label", [None, mask([255, 255])])
def test_figures_without_labels_are_null(label: np.ndarray | None) -> None:
    got = figures((mask([0, 1]), mask([0, 1]), label))
    assert (got.miou_reference, got.miou_engine, got.per_class_iou, got.miou_drop) == (None, None, None, None)
    assert (got.per_class_reference, got.boundary_reference, got.boundary_engine) == (None, None, None)
    assert (got.pixel_agreement, got.miou_between) == (1.0, 1.0)
    nothing = figures()
    assert (nothing.pixel_agreement, nothing.miou_between, nothing.images) == (None, None, 0)


def test_miou_is_of_the_whole_set_and_not_a_mean_over_images() -> None:
    # First image: 3 of 4 sky, second: road only, all wrong. Per image: (0.75 + 0) and 0.
    first = (mask([0, 0, 0, 0]), mask([0, 0, 0, 1]), mask([0, 0, 0, 0]))
    second = (mask([1, 1]), mask([0, 0]), mask([1, 1]))
    got = figures(first, second)
    # Sky: 3 hits, union 4 + 2; road: no hit.
    assert got.miou_engine == pytest.approx((3 / 6 + 0) / 2)
    assert (got.pixel_agreement, got.images) == (3 / 6, 2)


@pytest.mark.parametrize("fit", FITS)
def test_pixels_are_counted_at_the_images_size_and_padding_never(fit: Fit) -> None:
    """One of 30 x 50 labels is wrong; the engine disagrees with its reference everywhere in the padding."""
    fitted = fit_image(np.zeros((30, 50, 3), np.uint8), InputShape.static((32, 64)), model_info(3), fit)
    rows, columns = fitted.content_hw
    assert (rows * columns < 32 * 64) == (fit != "resize")
    reference, engine, label = np.zeros((32, 64), np.uint8), np.ones((32, 64), np.uint8), np.zeros((30, 50), np.uint8)
    engine[:rows, :columns], label[0, 0] = 0, 1
    comparator = Comparator(NAMES)
    one = Sample(image=fitted.image, restore=fitted.restore, label=label)
    comparator.add(Reference(mask=reference, near_tie=np.ones((32, 64), bool)), engine, one)
    got = comparator.result()
    assert got.per_class_iou == {"sky": pytest.approx(1499 / 1500), "road": 0.0, "car": None}
    assert (got.pixel_agreement, got.miou_between, got.tie_share) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("source", ["torch", "onnx"])
def test_stored_samples_are_compared_with_their_own_masks(source: str) -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 1, 2, 3), np.uint8)
    kept = StoredSamples(
        ReferenceSet(images=images, masks=images[..., 0], near_ties=np.ones((3, 1, 2), bool), source=source)
    )
    comparator = Comparator(NAMES)
    with kept.reference() as reference:
        for sample in kept:
            comparator.add(reference(sample), np.minimum(sample.image[..., 0], 1), sample)
    got = comparator.result()
    assert (len(kept), got.images, got.pixel_agreement) == (3, 3, pytest.approx(2 / 3))
    assert got.tie_share == (1.0 if source == "torch" else None)


def test_flips_are_told_apart_by_ties_and_classes() -> None:
    reference, engine = mask([0, 0, 1, 1, 2, 2]), mask([0, 1, 1, 0, 0, 0])
    ties = np.array([[True, True, True, False, True, False]])  # the first and the third did not flip
    got = figures((reference, engine, None), ties=ties)
    assert (got.flips.pixels, got.flips.near_tie, got.flips.far, got.tie_share) == (4, 2, 2, 0.5)
    assert (got.flips.share, got.flips.far_share) == (4 / 6, 2 / 6)
    pairs = [(pair.reference, pair.engine, pair.pixels, pair.far) for pair in got.flip_pairs]
    assert pairs == [("car", "sky", 2, 1), ("road", "sky", 1, 1), ("sky", "road", 1, 0)]
    assert figures((reference, reference, None), ties=ties).tie_share == 0.0
    unknown = figures((reference, engine, None))
    assert (unknown.flips.pixels, unknown.flips.share) == (4, 4 / 6)
    assert (unknown.flips.near_tie, unknown.flips.far, unknown.flips.far_share) == (None, None, None)
    assert {pair.far for pair in unknown.flip_pairs} == {None}
    comparator = Comparator(NAMES)
    for known in (ties, None):
        comparator.add(Reference(mask=reference, near_tie=known), engine, sample())
    assert comparator.result().tie_share is None, "one image does not know its ties"


def test_the_worst_images_are_named_and_kept() -> None:
    comparator = Comparator(NAMES, pictures=2)
    for index in range(20):
        engine = np.zeros((1, 40), np.uint8)
        engine[0, : (index * 7) % 20] = 1
        one = Sample(image=IMAGE, restore=np.asarray, name=f"scene {index}")
        comparator.add(Reference(mask=np.zeros((1, 40), np.uint8), near_tie=None), engine, one)
    got = comparator.result()
    assert [image.pixel_agreement for image in got.per_image[:3]] == [1.0, 1 - 7 / 40, 1 - 14 / 40]
    assert [image.flips for image in got.worst_images] == [19, 18, 17, 16, 15, 14]
    assert (got.worst_images[0].name, got.worst_images[0].index) == ("scene 17", 17)
    assert tuple(picture.figures for picture in got.pictures) == got.worst_images[:2]
    assert got.pictures[0].engine.sum() == 19


def test_rare_classes_are_not_judged_alone() -> None:
    reference = np.zeros((20, 50), np.uint8)
    reference[:, :20], reference[0, 49] = 1, 2
    engine, label = reference.copy(), reference.copy()
    engine[0, 49] = 0  # the only pixel of a class: 0.1 % of all
    engine[:2, :20] = 0  # a tenth of another
    got = figures((reference, engine, label))
    assert got.per_class_pixels == got.per_class_labelled == {"sky": 599, "road": 400, "car": 1}
    assert got.per_class_between["car"] == 0.0
    assert got.class_iou == ("road", 0.9)
    assert got.class_drop == ("road", pytest.approx(0.1))
    assert got.judged.border_agreement == got.border_agreement < 1
    unlabelled = figures((reference, reference, None))
    assert (unlabelled.class_iou, unlabelled.class_drop) == (("sky", 1.0), None)


def test_an_index_that_no_class_has_is_a_flip_and_no_error() -> None:
    got = figures((mask([0, 1, 2, 0]), mask([0, 3, 200, 0]), mask([0, 1, 2, 0])))
    assert (got.unknown_pixels, got.pixel_agreement, got.flips.pixels) == (2, 0.5, 2)
