"""Where a network and another form of it part: the errors of their tensors, stage by stage. NumPy only.

The error of a stage is the root mean square of the difference over the standard deviation of the reference: a share,
whatever the stage's unit. It is taken of the whole tensor, and of every channel against that channel's own spread, so
that one wrong channel among hundreds is not averaged away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nrd_trt.figures import StageFigures
from nrd_trt.specs import Precision

STAGES = ("preprocessing", "c1", "c4", "theta", "guidance", "logits", "mask")
"""In the order of the data; a network without per-patch decode has neither theta nor guidance."""
TITLES = {"c1": "encoder C1", "c4": "encoder C4"}
"""What people read where that is not the stage's name."""
CLEARLY = 4
"""A cause is named where it leaves at most a fourth of the error that no cause, and that every other one, leaves."""
_TINY = float(np.finfo(np.float32).tiny)  # where the reference is constant
_QUIET = 0.1  # a channel that varies less than this share of the tensor is compared with that share of it


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A cause, or what else is known of a difference, with its evidence.

    Attributes:
        stage: Where it acts first.
        text: What it is, one line.
    """

    stage: str
    text: str


@dataclass(frozen=True, kw_only=True)
class StageTolerance:
    """Largest errors allowed in a precision: of a whole tensor, and of its worst channel."""

    tensor: float
    channel: float


PREPROCESSING = StageTolerance(tensor=1e-5, channel=1e-5)
"""In fp32 in every file, one subtraction and one division per value: equal, or a few units in the last place apart."""

TOLERANCES: Mapping[Precision, StageTolerance] = {
    "fp32": StageTolerance(tensor=1e-4, channel=1e-3),
    "fp16": StageTolerance(tensor=0.015, channel=0.07),
    "bf16": StageTolerance(tensor=0.07, channel=0.65),
    "int8": StageTolerance(tensor=0.4, channel=0.7),
    "fp8": StageTolerance(tensor=0.4, channel=0.7),
}
"""Four times and more of what sound files show (the zoo's checkpoints on street scenes, R101 with random weights).

Their worst stage is off by 2e-6 in fp32 (order of summation), 3.6e-3 in fp16 and 1.8e-2 in bf16 (rounding by up to
2^-11 and 2^-8 per layer), their worst channel by 1e-5, 1.7e-2 and 0.16. Another checkpoint, a scale of 2 or a wrong
layout are off by more than 0.1, and their worst channel by about its own spread. In int8 with ranges from min to max
the zoo's checkpoints are off by 0.18, their worst channel by 0.24; twice and more of that is allowed."""


class StageMeter:
    """Accumulates the difference of one stage over images."""

    def __init__(self, channels: int) -> None:
        self._squares, self._sum, self._sum_of_squares = (np.zeros(channels) for _ in range(3))
        self._values = self._not_finite = 0
        self._max_abs = 0.0

    def add(self, reference: np.ndarray, got: np.ndarray) -> None:
        """Add one image.

        Args:
            reference: ``(C, h, w)``.
            got: The same shape.
        """
        want = reference.reshape(len(reference), -1).astype(np.float64)
        found = got.reshape(len(got), -1).astype(np.float64)
        finite = np.isfinite(found)
        self._not_finite += int((~finite).sum())
        difference = np.where(finite, found, want) - want
        self._squares += (difference**2).sum(1)
        self._sum += want.sum(1)
        self._sum_of_squares += (want**2).sum(1)
        self._values += want.shape[1]
        self._max_abs = max(self._max_abs, float(np.abs(difference).max(initial=0.0)))

    def figures(self, stage: str, tolerance: StageTolerance) -> StageFigures:
        """Return the figures over all images."""
        channels, values = len(self._squares), max(self._values, 1)
        mean = self._sum / values
        spread = np.sqrt(np.maximum(self._sum_of_squares / values - mean**2, 0))
        total = math.sqrt(max(float(self._sum_of_squares.sum() / values / channels - mean.mean() ** 2), 0.0))
        scale = np.maximum(spread, max(_QUIET * total, _TINY))
        by_channel = np.sqrt(self._squares / values) / scale
        worst = int(by_channel.argmax())
        worst_error = float(by_channel[worst])
        error = math.sqrt(self._squares.sum() / values / channels) / max(total, _TINY)
        return StageFigures(
            stage=stage,
            error=None if self._not_finite else error,
            tolerance=tolerance.tensor,
            worst_channel=worst,
            worst_channel_error=worst_error,
            channel_tolerance=tolerance.channel,
            max_abs=self._max_abs,
            not_finite=self._not_finite,
            within=not self._not_finite and error <= tolerance.tensor and worst_error <= tolerance.channel,
        )


def first_beyond(figures: Mapping[str, StageFigures]) -> str | None:
    """Return the first stage that is beyond its tolerance, in the order of `STAGES`; None where all are within."""
    return next((stage for stage in STAGES if stage in figures and not figures[stage].within), None)
