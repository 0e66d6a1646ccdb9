"""Engine masks against reference masks and labels, image by image. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nrd_trt.validate.masks import IGNORE, confusion_matrix, mean_iou, named_iou, pixel_agreement

TIE_MARGIN = 1e-2
"""A pixel is near a tie where the reference's two best logits differ by less than this share of the logits' standard
deviation: rounding to 16 bits (2^-11 per operation, some tens of operations) moves logits by about that much."""

Restore = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image to compare on.

    Attributes:
        image: ``(h, w, 3) uint8`` at the engine's size.
        restore: Brings an engine-sized map back to the image's own size; padding is cut off.
        label: ``(H, W) uint8`` with 255 for ignored pixels, or None.
    """

    image: np.ndarray
    restore: Restore
    label: np.ndarray | None = None


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
    """

    pixel_agreement: float | None
    miou_between: float | None
    miou_reference: float | None
    miou_engine: float | None
    tie_share: float | None
    per_class_iou: dict[str, float | None] | None
    images: int

    @property
    def miou_drop(self) -> float | None:
        """Loss of mIoU against the labels, or None without labels."""
        if self.miou_reference is None or self.miou_engine is None:
            return None
        return self.miou_reference - self.miou_engine


class Comparator:
    """Accumulates confusion matrices; one per pair of sides, so that every mIoU is over the whole data set."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = class_names
        count = len(class_names)
        self._between, self._reference, self._engine = (np.zeros((count, count), np.int64) for _ in range(3))
        self._flips = self._tied_flips = self._images = 0
        self._ties_known = True
        self._labelled = False

    def add(self, reference: Reference, engine_mask: np.ndarray, sample: Sample) -> None:
        """Add one image; everything is brought to the image's own size first."""
        count = len(self._names)
        expected, got = sample.restore(reference.mask), sample.restore(engine_mask)
        self._between += confusion_matrix(expected, got, count)
        flipped = expected != got
        self._flips += int(flipped.sum())
        self._images += 1
        if reference.near_tie is None:
            self._ties_known = False
        else:
            tied = sample.restore(reference.near_tie.astype(np.uint8)) > 0
            self._tied_flips += int((flipped & tied).sum())
        if sample.label is not None:
            self._labelled |= bool((sample.label != IGNORE).any())
            self._reference += confusion_matrix(sample.label, expected, count)
            self._engine += confusion_matrix(sample.label, got, count)

    def result(self) -> Comparison:
        """Return the figures over everything added so far."""
        tie_share = (self._tied_flips / self._flips if self._flips else 0.0) if self._ties_known else None
        return Comparison(
            pixel_agreement=pixel_agreement(self._between),
            miou_between=mean_iou(self._between),
            miou_reference=mean_iou(self._reference) if self._labelled else None,
            miou_engine=mean_iou(self._engine) if self._labelled else None,
            tie_share=tie_share,
            per_class_iou=named_iou(self._engine, self._names) if self._labelled else None,
            images=self._images,
        )


def compare(
    samples: Iterable[Sample],
    reference: Callable[[Sample], Reference],
    engine: Callable[[np.ndarray], np.ndarray],
    class_names: Sequence[str],
) -> Comparison:
    """Compare an engine with a reference over samples.

    Args:
        samples: Images at the engine's size.
        reference: Gives the mask that the engine should draw.
        engine: Draws the mask ``(h, w) uint8`` of an image ``(h, w, 3) uint8``.
        class_names: One per class.
    """
    comparator = Comparator(class_names)
    for sample in samples:
        comparator.add(reference(sample), engine(sample.image), sample)
    return comparator.result()
