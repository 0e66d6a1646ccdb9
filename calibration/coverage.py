"""Which classes a calibration set shows, by the model's own prediction. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Classes of the predicted masks.

    Attributes:
        pixel_share: Share of all pixels per class name, 0-1; padding is not counted.
        images: Number of images per class name that show it.
    """

    pixel_share: Mapping[str, float]
    images: Mapping[str, int]

    @property
    def never_seen(self) -> list[str]:
        """Classes that no image shows."""
        return [name for name, count in self.images.items() if count == 0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"pixel_share": dict(self.pixel_share), "images": dict(self.images), "never_seen": self.never_seen}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Coverage:
        """Inverse of `to_dict`."""
        return cls(pixel_share=dict(data["pixel_share"]), images=dict(data["images"]))


class ClassCounter:
    """Counts the classes of masks.

    Args:
        class_names: One per index.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = tuple(class_names)
        self._pixels = np.zeros(len(self._names), np.int64)
        self._images = np.zeros(len(self._names), np.int64)

    def add(self, mask: np.ndarray) -> None:
        """Count one mask ``(h, w)`` of class indices, padding cut off."""
        counts = np.bincount(mask.reshape(-1), minlength=len(self._names))
        self._pixels += counts
        self._images += counts > 0

    def coverage(self) -> Coverage | None:
        """Return what was counted; None where no mask was."""
        if not self._pixels.any():
            return None
        shares = self._pixels / self._pixels.sum()
        return Coverage(
            pixel_share=dict(zip(self._names, shares.tolist(), strict=True)),
            images=dict(zip(self._names, self._images.tolist(), strict=True)),
        )
