"""Engine masks against reference masks and labels, image by image. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nrd_trt.data.samples import Sample
from nrd_trt.figures import FlipPair, Flips, ImageFigures, MaskFigures
from nrd_trt.validation.metrics import (
    BorderAgreement,
    BoundaryScore,
    chance_miou,
    confusion_matrix,
    mean_iou,
    named_iou,
    named_values,
    pixel_agreement,
)
from nrd_trt.validation.triviality import Theta, trivial

TIE_MARGIN = 1e-2
"""A pixel is near a tie where the reference's two best logits differ by less than this share of the logits' standard
deviation: rounding to 16 bits (2^-11 per operation, some tens of operations) moves logits by about that much."""

WORST_KEPT = 6
"""Number of images with the lowest agreement that are named, and of which a report shows pictures."""

PAIRS_KEPT = 10
"""Number of pairs of classes that are named, those with most flips."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the engine is compared with, for one image at the engine's size.

    Attributes:
        mask: ``(h, w) uint8``.
        near_tie: ``(h, w) bool``, or None where the logits are not known.
        theta: What the decode's weights are like, where they were looked at.
        confidence: ``(h, w) uint8``, or None where it is not known.
    """

    mask: np.ndarray
    near_tie: np.ndarray | None
    theta: Theta | None = None
    confidence: np.ndarray | None = None


ReferenceFn = Callable[[Sample], Reference]
"""Gives the mask that the engine should draw of a sample."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image that is kept whole, with its masks at the engine's size.

    Attributes:
        figures: How the image compares.
        sample: The image.
        reference: The reference's mask.
        engine: ``(h, w) uint8``, the engine's mask.
    """

    figures: ImageFigures
    sample: Sample
    reference: Reference
    engine: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Comparison(MaskFigures):
    """The figures over all images, and what only a report shows.

    Attributes:
        per_image: Figures of every image, in order.
        pictures: The worst images whole, the worst first; as many as were asked for.
    """

    per_image: tuple[ImageFigures, ...]
    pictures: tuple[Picture, ...]


class Comparator:
    """Accumulates confusion matrices; one per pair of sides, so that every mIoU is over the whole data set.

    Args:
        class_names: One per class.
        pictures: Number of the worst images to keep whole.
    """

    def __init__(self, class_names: Sequence[str], *, pictures: int = 0) -> None:
        self._names = class_names
        count = len(class_names)
        self._between, self._reference, self._engine, self._tied = (np.zeros((count, count), np.int64) for _ in "1234")
        self._outlines = [BoundaryScore(count) for _ in range(3)]  # between, reference, engine
        self._borders = BorderAgreement()
        self._ties_known = True
        self._unknown = self._levels_off = self._levels_of = 0
        self._theta: Theta | None = None
        self._per_image: list[ImageFigures] = []
        self._keep, self._pictures = pictures, list[Picture]()

    def add(
        self, reference: Reference, engine_mask: np.ndarray, sample: Sample, confidence: np.ndarray | None = None
    ) -> None:
        """Add one image, and the engine's confidence where it gives that; all is brought to the image's size first."""
        count = len(self._names)
        self._theta = self._theta or reference.theta
        expected, got = sample.restore(reference.mask), sample.restore(engine_mask)
        unknown = got >= count
        if unknown.any():  # an index too high is no class; it counts as one that is wrong
            self._unknown += int(unknown.sum())
            got = np.where(unknown, (expected + 1) % count, got)
        between = confusion_matrix(expected, got, count)
        self._between += between
        self._outlines[0].add(expected, got)
        self._borders.add(expected, got)
        if confidence is not None and reference.confidence is not None:
            due, found = (sample.restore(plane).astype(np.int16) for plane in (reference.confidence, confidence))
            self._levels_off += int(np.abs(found - due).sum())
            self._levels_of += due.size
        far: int | None = None
        if reference.near_tie is None:
            self._ties_known = False
        else:
            tied = (sample.restore(reference.near_tie.astype(np.uint8)) > 0) & (expected != got)
            self._tied += confusion_matrix(expected[tied], got[tied], count)
            far = int((expected != got).sum() - tied.sum())
        if sample.label is not None:
            self._reference += confusion_matrix(sample.label, expected, count)
            self._engine += confusion_matrix(sample.label, got, count)
            self._outlines[1].add(sample.label, expected)
            self._outlines[2].add(sample.label, got)
        figures = ImageFigures(
            name=sample.name,
            index=len(self._per_image),
            pixel_agreement=pixel_agreement(between),
            flips=int((expected != got).sum()),
            far=far,
        )
        self._per_image.append(figures)
        picture = Picture(figures=figures, sample=sample, reference=reference, engine=engine_mask)
        self._pictures = sorted([*self._pictures, picture], key=lambda one: _badness(one.figures))[: self._keep]

    def result(self) -> Comparison:
        """Return the figures over everything added so far."""
        tied, names = self._tied if self._ties_known else None, self._names
        flips = _count_flips(self._between, tied)
        boundary_between, boundary_reference, boundary_engine = (score.mean() for score in self._outlines)
        labelled = bool(self._engine.any())
        differing = sorted((figures for figures in self._per_image if figures.flips), key=_badness)
        return Comparison(
            pixel_agreement=pixel_agreement(self._between),
            miou_between=mean_iou(self._between),
            miou_reference=mean_iou(self._reference),
            miou_engine=mean_iou(self._engine),
            tie_share=None if flips.near_tie is None else flips.near_tie / flips.pixels if flips.pixels else 0.0,
            per_class_iou=named_iou(self._engine, names) if labelled else None,
            images=len(self._per_image),
            per_class_between=named_iou(self._between, names),
            per_class_reference=named_iou(self._reference, names) if labelled else None,
            boundary_between=boundary_between,
            boundary_reference=boundary_reference,
            boundary_engine=boundary_engine,
            per_class_boundary=named_values(self._outlines[0].per_class(), names),
            boundary_tolerance_px=self._outlines[0].tolerance_px,
            flips=flips,
            flip_pairs=_flip_pairs(self._between, tied, names),
            worst_images=tuple(differing[:WORST_KEPT]),
            border_agreement=self._borders.share(),
            border_pixels=self._borders.pixels,
            per_class_pixels=_pixels(self._between, names),
            per_class_labelled=_pixels(self._engine, names) if labelled else None,
            unknown_pixels=self._unknown,
            confidence_difference=self._levels_off / self._levels_of / 255 if self._levels_of else None,
            warnings=tuple(
                trivial(
                    _pixels(self._between, names),
                    miou=mean_iou(self._reference),
                    chance=chance_miou(self._reference),
                    theta=self._theta,
                )
            ),
            per_image=tuple(self._per_image),
            pictures=tuple(self._pictures),
        )


def _pixels(matrix: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Return the pixels of each class on the first side of a confusion matrix."""
    return dict(zip(names, matrix.sum(1).tolist(), strict=True))


def _badness(figures: ImageFigures) -> tuple[float, int]:
    """Sort the lowest agreement first, and equal ones in order."""
    return (1.0 if figures.pixel_agreement is None else figures.pixel_agreement, figures.index)


def _count_flips(between: np.ndarray, near_tie: np.ndarray | None) -> Flips:
    """Sum up the flips.

    Args:
        between: ``(K, K)`` pixels by class of the reference and of the engine.
        near_tie: The same of the pixels near a tie, or None.
    """
    total, pixels = int(between.sum()), int(between.sum() - np.trace(between))
    tied = None if near_tie is None else int(near_tie.sum() - np.trace(near_tie))
    far = None if tied is None else pixels - tied
    return Flips(
        pixels=pixels,
        share=pixels / total if total else None,
        near_tie=tied,
        far=far,
        far_share=far / total if far is not None and total else None,
    )


def _flip_pairs(between: np.ndarray, near_tie: np.ndarray | None, names: Sequence[str]) -> tuple[FlipPair, ...]:
    """Return the pairs of classes with most flips, those not near a tie first; arguments as for `_count_flips`."""
    pixels = between.copy()
    np.fill_diagonal(pixels, 0)
    far = pixels if near_tie is None else pixels - near_tie * ~np.eye(len(pixels), dtype=bool)
    found = sorted(np.argwhere(pixels).tolist(), key=lambda pair: (-far[tuple(pair)], -pixels[tuple(pair)], pair))
    return tuple(
        FlipPair(
            reference=names[row],
            engine=names[column],
            pixels=int(pixels[row, column]),
            far=None if near_tie is None else int(far[row, column]),
        )
        for row, column in found[:PAIRS_KEPT]
    )
