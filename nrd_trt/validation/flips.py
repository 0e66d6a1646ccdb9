"""Pixels on which two masks differ: between which classes, and whether a near tie excuses them. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PAIRS_KEPT = 10


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Pixels that the engine draws otherwise than the reference; shares are of all pixels compared.

    Attributes:
        pixels: Number of flipped pixels.
        share: Their share.
        near_tie: Those where the reference's two best logits are nearly equal; None where its logits are not known.
        far: The others, which rounding does not explain; None likewise.
        far_share: Their share; None likewise.
    """

    pixels: int
    share: float | None
    near_tie: int | None
    far: int | None
    far_share: float | None


@dataclass(frozen=True, kw_only=True)
class FlipPair:
    """Flips from one class to another.

    Attributes:
        reference: Class of the reference's mask.
        engine: Class of the engine's mask.
        pixels: Number of flipped pixels.
        far: Those not near a tie; None where the reference's logits are not known.
    """

    reference: str
    engine: str
    pixels: int
    far: int | None


def count_flips(between: np.ndarray, near_tie: np.ndarray | None) -> Flips:
    """Sum up the flips.

    Args:
        between: ``(K, K)`` pixels by class of the reference and of the engine.
        near_tie: The same of the pixels near a tie, or None.
    """
    total, pixels = int(between.sum()), _off_diagonal(between)
    tied = None if near_tie is None else _off_diagonal(near_tie)
    far = None if tied is None else pixels - tied
    return Flips(
        pixels=pixels,
        share=pixels / total if total else None,
        near_tie=tied,
        far=far,
        far_share=far / total if far is not None and total else None,
    )


def flip_pairs(between: np.ndarray, near_tie: np.ndarray | None, names: Sequence[str]) -> tuple[FlipPair, ...]:
    """Return the pairs of classes with most flips, those not near a tie first; arguments as for `count_flips`."""
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


def _off_diagonal(matrix: np.ndarray) -> int:
    return int(matrix.sum() - np.trace(matrix))
