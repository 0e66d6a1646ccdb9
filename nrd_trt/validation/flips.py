"""Pixels on which two masks differ: between which classes, and whether a near tie excuses them. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrd_trt.figures import FlipPair, Flips

PAIRS_KEPT = 10


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
