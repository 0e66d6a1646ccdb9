"""Engine masks against reference masks and labels, image by image. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nrd_trt.figures import FlipPair, Flips, ImageFigures, MaskFigures
from nrd_trt.validation.boundary import TOLERANCE_PX, BoundaryScore
from nrd_trt.validation.flips import count_flips, flip_pairs
from nrd_trt.validation.masks import IGNORE, confusion_matrix, mean_iou, named_iou, named_values, pixel_agreement

TIE_MARGIN = 1e-2
"""A pixel is near a tie where the reference's two best logits differ by less than this share of the logits' standard
deviation: rounding to 16 bits (2^-11 per operation, some tens of operations) moves logits by about that much."""

WORST_KEPT = 6
"""Images with the lowest agreement that are named, and of which a report shows pictures."""

Restore = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image to compare on.

    Attributes:
        image: ``(h, w, 3) uint8`` at the engine's size.
        restore: Brings an engine-sized map back to the image's own size; padding is cut off.
        label: ``(H, W) uint8`` with 255 for ignored pixels, or None.
        name: For people: the file's name, or what else the image is.
    """

    image: np.ndarray
    restore: Restore
    label: np.ndarray | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the engine is compared with, for one image at the engine's size.

    Attributes:
        mask: ``(h, w) uint8``.
        near_tie: ``(h, w) bool``, or None where the logits are not known.
    """

    mask: np.ndarray
    near_tie: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a report shows of an image, all at the engine's size.

    Attributes:
        figures: Of the image.
        image: ``(h, w, 3) uint8 RGB``.
        reference: The reference's mask.
        engine: ``(h, w) uint8``, the engine's mask.
    """

    figures: ImageFigures
    image: np.ndarray
    reference: Reference
    engine: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures over all images, fractions in 0-1; None where they cannot be computed.

    Attributes:
        pixel_agreement: Share of pixels with the same class.
        miou_between: mIoU of the engine's masks against the reference's.
        miou_reference: mIoU of the reference against the labels.
        miou_engine: mIoU of the engine against the labels.
        tie_share: Share of the disagreeing pixels that are near a tie in the reference.
        per_class_iou: Of the engine against the labels, by class name.
        images: Number of images compared.
        per_class_between: IoU of the engine's masks against the reference's, by class name.
        per_class_reference: IoU of the reference against the labels, by class name.
        boundary_between: Boundary F-score of the engine's masks against the reference's, mean over classes.
        boundary_reference: Of the reference against the labels.
        boundary_engine: Of the engine against the labels.
        per_class_boundary: Boundary F-score of the engine's masks against the reference's, by class name.
        boundary_tolerance_px: Distance up to which two outlines are the same.
        flips: Pixels that differ, and how many of them no near tie excuses.
        flip_pairs: Classes between which most pixels flipped.
        per_image: Of every image, in order.
        pictures: Of the worst images, the worst first; as many as were asked for.
    """

    pixel_agreement: float | None
    miou_between: float | None
    miou_reference: float | None
    miou_engine: float | None
    tie_share: float | None
    per_class_iou: dict[str, float | None] | None
    images: int
    per_class_between: dict[str, float | None]
    per_class_reference: dict[str, float | None] | None
    boundary_between: float | None
    boundary_reference: float | None
    boundary_engine: float | None
    per_class_boundary: dict[str, float | None]
    boundary_tolerance_px: int
    flips: Flips
    flip_pairs: tuple[FlipPair, ...]
    per_image: tuple[ImageFigures, ...]
    pictures: tuple[Picture, ...]

    @property
    def miou_drop(self) -> float | None:
        """Loss of mIoU against the labels, or None without labels."""
        if self.miou_reference is None or self.miou_engine is None:
            return None
        return self.miou_reference - self.miou_engine

    @property
    def worst_images(self) -> list[ImageFigures]:
        """The images with the lowest agreement, the worst first; those without a flip are not among them."""
        return sorted((figures for figures in self.per_image if figures.flips), key=_badness)[:WORST_KEPT]

    def figures(self) -> MaskFigures:
        """Return what a record keeps: the worst images instead of all, and no pictures."""
        kept = {name: value for name, value in vars(self).items() if name not in ("per_image", "pictures")}
        return MaskFigures(**kept, worst_images=tuple(self.worst_images))


class Comparator:
    """Accumulates confusion matrices; one per pair of sides, so that every mIoU is over the whole data set.

    Args:
        class_names: One per class.
        pictures: How many of the worst images to keep whole.
        tolerance_px: Of the boundary F-score.
    """

    def __init__(self, class_names: Sequence[str], *, pictures: int = 0, tolerance_px: int = TOLERANCE_PX) -> None:
        self._names = class_names
        count = len(class_names)
        self._between, self._reference, self._engine, self._tied = (np.zeros((count, count), np.int64) for _ in "1234")
        self._outlines = [BoundaryScore(count, tolerance_px) for _ in range(3)]  # between, reference, engine
        self._ties_known = True
        self._labelled = False
        self._per_image: list[ImageFigures] = []
        self._keep, self._pictures = pictures, list[Picture]()

    def add(self, reference: Reference, engine_mask: np.ndarray, sample: Sample) -> None:
        """Add one image; everything is brought to the image's own size first."""
        count = len(self._names)
        expected, got = sample.restore(reference.mask), sample.restore(engine_mask)
        between = confusion_matrix(expected, got, count)
        self._between += between
        self._outlines[0].add(expected, got)
        far: int | None = None
        if reference.near_tie is None:
            self._ties_known = False
        else:
            tied = (sample.restore(reference.near_tie.astype(np.uint8)) > 0) & (expected != got)
            self._tied += confusion_matrix(expected[tied], got[tied], count)
            far = int((expected != got).sum() - tied.sum())
        if sample.label is not None:
            self._labelled |= bool((sample.label != IGNORE).any())
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
        self._keep_picture(Picture(figures=figures, image=sample.image, reference=reference, engine=engine_mask))

    def _keep_picture(self, picture: Picture) -> None:
        self._pictures = sorted([*self._pictures, picture], key=lambda one: _badness(one.figures))[: self._keep]

    def result(self) -> Comparison:
        """Return the figures over everything added so far."""
        tied, names = self._tied if self._ties_known else None, self._names
        flips = count_flips(self._between, tied)
        outlines = [score.mean() for score in self._outlines]
        boundary = self._outlines[0].per_class()
        return Comparison(
            pixel_agreement=pixel_agreement(self._between),
            miou_between=mean_iou(self._between),
            miou_reference=mean_iou(self._reference) if self._labelled else None,
            miou_engine=mean_iou(self._engine) if self._labelled else None,
            tie_share=None if flips.near_tie is None else flips.near_tie / flips.pixels if flips.pixels else 0.0,
            per_class_iou=named_iou(self._engine, names) if self._labelled else None,
            images=len(self._per_image),
            per_class_between=named_iou(self._between, names),
            per_class_reference=named_iou(self._reference, names) if self._labelled else None,
            boundary_between=outlines[0],
            boundary_reference=outlines[1] if self._labelled else None,
            boundary_engine=outlines[2] if self._labelled else None,
            per_class_boundary=named_values(boundary, names),
            boundary_tolerance_px=self._outlines[0].tolerance_px,
            flips=flips,
            flip_pairs=flip_pairs(self._between, tied, names),
            per_image=tuple(self._per_image),
            pictures=tuple(self._pictures),
        )


def compare(
    samples: Iterable[Sample],
    reference: Callable[[Sample], Reference],
    engine: Callable[[np.ndarray], np.ndarray],
    class_names: Sequence[str],
    *,
    pictures: int = 0,
) -> Comparison:
    """Compare an engine with a reference over samples.

    Args:
        samples: Images at the engine's size.
        reference: Gives the mask that the engine should draw.
        engine: Draws the mask ``(h, w) uint8`` of an image ``(h, w, 3) uint8``.
        class_names: One per class.
        pictures: How many of the worst images to keep whole.
    """
    comparator = Comparator(class_names, pictures=pictures)
    for sample in samples:
        comparator.add(reference(sample), engine(sample.image), sample)
    return comparator.result()


def _badness(figures: ImageFigures) -> tuple[float, int]:
    """Sort the lowest agreement first, and equal ones in order."""
    return (1.0 if figures.pixel_agreement is None else figures.pixel_agreement, figures.index)
