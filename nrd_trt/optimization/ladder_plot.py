"""The picture of a ladder: how far each rung is from PyTorch, and which layers count. Matplotlib on use."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nrd_trt.files import atomic_file
from nrd_trt.optional import require

_HELD, _REJECTED, _GATE, _INK, _PALE = "#1b6ca8", "#b8b8b8", "#d1495b", "#222222", "#e4e4e4"
_LAYERS = 15


def can_plot() -> bool:
    """Whether Matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_ladder(
    path: Path,
    rungs: Sequence[tuple[str, float, float | None]],
    sensitivity: Mapping[str, float],
    *,
    winner: str | None,
    allowed: float,
    warnings: Sequence[str] = (),
) -> None:
    """Draw the rungs that were tried, and below them the most sensitive layers where layers were measured.

    Args:
        path: ``.png``; replaced.
        rungs: Name, share of the pixels that differ from PyTorch, and loss of mIoU, from the bottom of the ladder up.
        sensitivity: Share of the pixels that a layer alone changes, 0-1; may be empty.
        winner: Name of the rung that won.
        allowed: Share of differing pixels that the gate allows.
        warnings: Why agreement proves nothing, which stands above all.
    """
    require("matplotlib", extra="plot", purpose="the picture of the ladder")
    from matplotlib.figure import Figure

    layers = sorted(sensitivity.items(), key=lambda entry: -entry[1])[:_LAYERS]
    heights = [len(entries) + 1.5 for entries in (rungs, layers) if entries]
    figure = Figure(figsize=(9, 0.9 + 0.3 * sum(heights)), dpi=110, layout="constrained")
    above, *below = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_rungs(above, rungs, winner, allowed)
    for axes in below:
        _bars(axes, [(name.removesuffix("/Conv"), share, _HELD, f"{share:.5f}") for name, share in layers])
        axes.set_title("Share of the pixels that change with one layer in int8", loc="left", fontsize=10)
    if warnings:
        told = "\n".join(f"WARNING: {warning}" for warning in warnings)
        figure.suptitle(told, color=_GATE, fontsize=9)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_rungs(
    axes: Any, rungs: Sequence[tuple[str, float, float | None]], winner: str | None, allowed: float
) -> None:
    bars = []
    for name, differing, miou_drop in rungs:
        drop = "" if miou_drop is None else f", mIoU {-miou_drop:+.4f}"
        bars.append((name, differing, _HELD if name == winner else _REJECTED, f"{differing:.5f}{drop}"))
    _bars(axes, bars)
    axes.axvline(allowed, color=_GATE, linewidth=1.2, linestyle="--")
    axes.text(allowed, -0.75, " gate", color=_GATE, fontsize=8, va="center")
    axes.set_xlim(0, 1.45 * max([allowed, *(bar[1] for bar in bars)]) + 1e-6)
    axes.set_title("Share of the pixels that differ from PyTorch, by rung", loc="left", fontsize=10)


def _bars(axes: Any, bars: Sequence[tuple[str, float, str, str]]) -> None:
    """Draw ``(name, length, colour, text)`` from top to bottom."""
    places = range(len(bars))
    axes.barh(places, [length for _, length, _, _ in bars], height=0.68, color=[colour for _, _, colour, _ in bars])
    for place, (_, length, _, text) in zip(places, bars, strict=True):
        axes.text(length, place, f" {text}", va="center", color=_INK, fontsize=8)
    axes.set_yticks(places, [name for name, _, _, _ in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.3, -1.1)
    axes.set_xlim(0, 1.2 * max([length for _, length, _, _ in bars], default=0.0) + 1e-6)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color=_PALE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
