"""What cheap figures rule out before a bundle is built: multiply-adds, weights, a few images, a few calls.

The margins are wide: a few images do not tell candidates apart whose mIoU is close, nor a few calls their latencies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nrd_trt.optimization.candidates import Budget, CandidatePrecision

LATENCY_MARGIN = 1.5
"""Between the fastest of a few calls, as a factor."""
MIOU_MARGIN = 0.03
"""Between figures of a few images."""
_OTHER_NETWORK = 2
"""Multiply-adds of another network count for more or for less time, by less than this factor."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What is known of a candidate before its bundle is built.

    Attributes:
        name: The candidate's name.
        source: The checkpoint or recipe of its network.
        precision: What its file is typed in.
        macs: Multiply-adds of an image.
        weight_bytes: What its weights take at least.
        activation_bytes: What its layers write, in fp32.
        latency_ms: The fastest of a few calls, or the median on a device; None where it is not known yet.
        exact: Whether that is the latency by which it will be ranked.
        miou: Against the labels of a few images; None of random weights.
        holds: Whether it holds its gates as far as they were judged, so that it may stand for others.
    """

    name: str
    source: str
    precision: CandidatePrecision
    macs: int
    weight_bytes: int
    activation_bytes: int
    latency_ms: float | None
    exact: bool
    miou: float | None
    holds: bool


def rule_out(sketches: Sequence[Sketch], budget: Budget) -> dict[str, str]:
    """Return the candidates that need not be built, each with the reason.

    Where none can keep to the budget the nearest ones stay, so that it is known how near they are.
    """
    out = {one.name: why for one in sketches if (why := _beyond(one, budget)) is not None}
    trained = [one for one in sketches if one.miou is not None]
    if all(one.name in out for one in trained):
        for name in {one.name for one in _nearest(trained, budget)}:
            del out[name]
    standing = [one for one in trained if one.name not in out and one.holds]
    for one in trained:
        better = next((other for other in standing if _dominates(other, one, budget)), None)
        if better is not None and one.name not in out:
            out[one.name] = f"dominated by {better.name}: {_compared(better, one)}"
    return out


def _beyond(one: Sketch, budget: Budget) -> str | None:
    """Say why a candidate cannot keep to the budget, or None where it may."""
    margin = 1.0 if one.exact else LATENCY_MARGIN
    if budget.max_latency_ms is not None and (one.latency_ms or 0.0) > margin * budget.max_latency_ms:
        how = "on the device" if one.exact else f"at best in a few calls, more than {margin:g} times the budget"
        return f"max_latency_ms={budget.max_latency_ms:g}: {one.latency_ms:.1f} ms {how}"
    if budget.min_miou is not None and one.miou is not None and one.miou < budget.min_miou - MIOU_MARGIN:
        return f"min_miou={budget.min_miou:g}: mIoU {one.miou:.4f} on a few images, more than {MIOU_MARGIN:g} below"
    if budget.max_memory_mb is not None and one.weight_bytes > 1e6 * budget.max_memory_mb:
        return f"max_memory_mb={budget.max_memory_mb:g}: its weights alone take {one.weight_bytes / 1e6:.1f} MB"
    return None


def _nearest(trained: Iterable[Sketch], budget: Budget) -> list[Sketch]:
    """Return for each bound the candidate that comes nearest to it."""
    figures = {
        "max_latency_ms": lambda one: one.latency_ms or 0.0,
        "min_miou": lambda one: -(one.miou or 0.0),
        "max_memory_mb": lambda one: one.weight_bytes + one.activation_bytes,
    }
    return [min(trained, key=figures[name]) for name in budget.asked if trained]


def _dominates(other: Sketch, one: Sketch, budget: Budget) -> bool:
    """Whether one candidate is beaten by another in latency and mIoU at once, by far."""
    if other.miou is None or one.miou is None or other.miou < one.miou + MIOU_MARGIN:
        return False
    larger = other.weight_bytes > one.weight_bytes or other.activation_bytes > one.activation_bytes
    if budget.max_memory_mb is not None and larger:
        return False
    if other.latency_ms is not None and one.latency_ms is not None:
        return other.latency_ms * (1.0 if other.exact else LATENCY_MARGIN) <= one.latency_ms
    factor = 1 if other.source == one.source else _OTHER_NETWORK
    return other.precision == one.precision and factor * other.macs <= one.macs


def _compared(better: Sketch, one: Sketch) -> str:
    speed = f"{better.macs / 1e9:.2f} and {one.macs / 1e9:.2f} GMAC"
    if better.latency_ms is not None and one.latency_ms is not None:
        speed = f"{better.latency_ms:.1f} and {one.latency_ms:.1f} ms"
    return f"{speed}, mIoU {better.miou:.4f} and {one.miou:.4f} on a few images"
