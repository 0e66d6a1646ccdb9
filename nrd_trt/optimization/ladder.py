"""The ladder of one network at one size: int8 everywhere, then without the most sensitive layers, then fp16, then fp32.

Where the lowest rung does not hold its gates, sensitivity is measured with one layer at a time in int8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from nrd_trt.gates import Gates
from nrd_trt.optimization.rungs import Rung, Step
from nrd_trt.optimization.variants import Variants
from nrd_trt.specs import Precision, Target

_ABOVE_INT8: Mapping[Target, tuple[Precision, ...]] = {"gpu": ("fp16", "fp32"), "cpu": ("fp32",)}
"""Rungs without int8. int8 everywhere must be faster than the first; the rungs between them are known once the layers
were measured."""


def climb(
    variants: Variants,
    steps: Sequence[Step],
    gates: Callable[[Precision], Gates],
    *,
    faster_than: Sequence[Step | None],
    on_rung: Callable[[Rung], None] = lambda rung: None,
) -> list[Rung]:
    """Try steps from the bottom, up to the first that holds.

    Args:
        variants: The network.
        steps: From the bottom up.
        gates: What a rung of a precision must hold.
        faster_than: For each step another one that it must be faster than, where both are timed; None for nothing.
        on_rung: Receives every rung that was tried.
    """
    rungs: list[Rung] = []
    for step, other in zip(steps, faster_than, strict=True):
        rung = variants.tried(step)
        reasons = gates(rung.precision).failures(rung.judged)
        if not reasons and other is not None and rung.latency_ms is not None:
            other_ms = variants.tried(other).latency_ms
            if other_ms is not None and not rung.latency_ms < other_ms:
                reasons.append(f"not faster than {other.name}: {rung.latency_ms:.3f} ms and {other_ms:.3f} ms")
        rungs.append(replace(rung, rejected=tuple(reasons)))
        on_rung(rungs[-1])
        if not reasons:
            break
    return rungs


def list_steps(layers: Sequence[str], sensitivity: Mapping[str, float], target: Target = "gpu") -> list[Step]:
    """Return the ladder: each mixed step leaves twice as many of the most sensitive layers out as the one before."""
    worst_first = sorted(layers, key=lambda layer: (-sensitivity[layer], layer))
    steps = [lowest(layers)]
    dropped = 1
    while dropped < len(layers):
        left = set(worst_first[dropped:])
        name = f"int8 without {dropped} layer{'s' * (dropped > 1)}"
        steps.append(Step(name=name, precision="int8", layers=tuple(layer for layer in layers if layer in left)))
        dropped *= 2
    return [*steps, *higher(target)]


def higher(target: Target) -> list[Step]:
    """Return the steps without int8."""
    return [Step(name=name, precision=name) for name in _ABOVE_INT8[target]]


def lowest(layers: Sequence[str]) -> Step:
    """Return the step with these layers in int8."""
    return Step(name="int8", precision="int8", layers=tuple(layers))
