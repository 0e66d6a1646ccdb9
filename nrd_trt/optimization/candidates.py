"""What a search found of each candidate, and the budget that decides among them. Records and rules, nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

from nrd_trt.errors import ConfigError
from nrd_trt.specs import Precision, Size, format_size

CandidatePrecision = Precision | Literal["mixed"]
"""``"mixed"``: int8 but for the layers that cost most agreement."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One network at one size in one precision.

    Attributes:
        name: ``SOURCE-HxW-PRECISION``, the name of its bundle without the ending.
        source: Name of the checkpoint's file, or of the recipe.
        size: Height and width of its input.
        precision: What its file is typed in.
        int8_layers: Number of layers in int8; None where no file was made.
        gmac: Multiply-adds of an image, in units of 10^9.
        latency_ms: Median from image to mask of native runs; None where there were none.
        runner: What ran them; None likewise.
        quick_ms: Fastest of a few native calls, which only rules out; None where there were none.
        miou: mIoU against labels, at the size of the images, 0-1; None of random weights and where it was not measured.
        images: Number of images that the mIoU is of: all for what was built, few for what was pruned.
        miou_drop: Loss of mIoU against PyTorch at this size; None likewise.
        pixel_agreement: Share of pixels that PyTorch draws alike at this size, 0-1.
        memory_mb: Largest memory, as `nrd_trt.benchmark` tells it of the bundle alone: of the device where the plan
            ran, else of the process. None where no budget asks for it.
        passed: Whether every gate of its bundle holds; None where none was built.
        onnx_sha256: Hash of the bundle's ONNX file; None likewise.
        rejected: Why it cannot be chosen: pruned, not timed, a gate, the budget. Empty where it could be.
    """

    name: str
    source: str
    size: Size
    precision: CandidatePrecision
    int8_layers: int | None = None
    gmac: float
    latency_ms: float | None = None
    runner: str | None = None
    quick_ms: float | None = None
    miou: float | None = None
    images: int = 0
    miou_drop: float | None = None
    pixel_agreement: float | None = None
    memory_mb: float | None = None
    passed: bool | None = None
    onnx_sha256: str | None = None
    rejected: tuple[str, ...] = ()

    @property
    def ranked(self) -> bool:
        """Whether it takes part in the comparison: its bundle passed, with labels, and was timed natively."""
        return bool(self.passed) and self.miou is not None and self.latency_ms is not None

    def figure(self, bound: str) -> float | None:
        """Return the figure that a bound of a budget is about."""
        return {"max_latency_ms": self.latency_ms, "max_memory_mb": self.memory_mb, "min_miou": self.miou}[bound]

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {**asdict(self), "size": format_size(self.size), "rejected": list(self.rejected)}

    def __str__(self) -> str:
        """Return its name with the figures that a budget is about."""
        figures = [f"{self.latency_ms:.2f} ms" if self.latency_ms is not None else "not timed"]
        figures += [f"mIoU {self.miou:.4f}"] if self.miou is not None else []
        figures += [f"{self.memory_mb:.0f} MB"] if self.memory_mb is not None else []
        return f"{self.name} ({', '.join(figures)})"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a candidate must keep to; None asks for nothing."""

    max_latency_ms: float | None = None
    max_memory_mb: float | None = None
    min_miou: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            largest = 1.0 if name == "min_miou" else math.inf
            if value is not None and not 0 < value <= largest:
                expected = "a fraction above 0, at most 1" if name == "min_miou" else "a number above 0"
                raise ConfigError(f"{name}={value}: expected {expected}.")

    @property
    def asked(self) -> dict[str, float]:
        """The bounds that there are, by name."""
        return {name: bound for name, bound in vars(self).items() if bound is not None}

    def misses(self, candidate: Candidate) -> dict[str, str]:
        """Return what a candidate does not keep to, in words, by the name of the bound."""
        found = {}
        for name, bound in self.asked.items():
            figure = candidate.figure(name)
            if figure is None:
                found[name] = f"{name}={bound:g}: not measured"
            elif figure < bound if name == "min_miou" else figure > bound:
                found[name] = f"{name}={bound:g}: it has {figure:.4g}"
        return found

    def choose(self, candidates: Iterable[Candidate]) -> Candidate | None:
        """Return the best that keeps to it: the highest mIoU, or the fastest where the mIoU alone has a bound."""
        fit = [one for one in candidates if one.ranked and not self.misses(one)]
        by_speed = self.max_latency_ms is None and self.min_miou is not None
        first, then = ("max_latency_ms", "min_miou") if by_speed else ("min_miou", "max_latency_ms")
        return min(fit, key=lambda one: (_cost(one, first), _cost(one, then)), default=None)

    def shortfall(self, candidates: Iterable[Candidate]) -> list[str]:
        """Say how close one can get where nothing keeps to it, and what would have to give."""
        ranked = [one for one in candidates if one.ranked]
        if not ranked:
            return ["no candidate can be chosen: none has native runs, labels and gates that hold; each says why"]
        lines = []
        for name, bound in self.asked.items():
            near = [one for one in ranked if self.misses(one).keys() <= {name}]
            alone = "" if near else " with no other bound"
            best = min(near or ranked, key=partial(_cost, bound=name))
            lines.append(f"{name}={bound:g}: the nearest{alone} is {best}; {_GIVE[name]}")
        return lines


_GIVE = {
    "max_latency_ms": "allow that much, or search smaller sizes=, other precisions= or a smaller network",
    "max_memory_mb": "allow that much, or search smaller sizes= or a smaller network",
    "min_miou": "accept that, or search larger sizes= or a better network",
}


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the ranked candidates that no other one beats in latency and mIoU at once, the fastest first."""
    kept: list[Candidate] = []
    ranked = (one for one in candidates if one.ranked)
    for one in sorted(ranked, key=lambda one: (_cost(one, "max_latency_ms"), _cost(one, "min_miou"))):
        if not kept or _cost(one, "min_miou") < _cost(kept[-1], "min_miou"):
            kept.append(one)
    return kept


def _cost(candidate: Candidate, bound: str) -> float:
    """Return the figure that a bound is about, so that less is better."""
    figure = candidate.figure(bound)
    return math.inf if figure is None else -figure if bound == "min_miou" else figure
