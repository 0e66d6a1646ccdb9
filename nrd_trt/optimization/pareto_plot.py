"""The picture of a search: latency against mIoU, the budget, and what is dominated. Matplotlib on use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nrd_trt.files import atomic_file
from nrd_trt.optimization.candidates import Budget, Candidate
from nrd_trt.optional import require
from nrd_trt.specs import format_size

_FRONT, _CHOSEN, _DOMINATED, _BUDGET, _INK, _PALE = "#1b6ca8", "#2a9d54", "#b8b8b8", "#d1495b", "#222222", "#e4e4e4"
_MARKERS = "osD^vPX*"
"""One for each source."""


def write_pareto(
    path: Path, candidates: Sequence[Candidate], front: Sequence[str], chosen: str | None, budget: Budget
) -> None:
    """Draw the ranked candidates.

    Args:
        path: ``.png``; replaced.
        candidates: All; those without an mIoU, or without native runs, are left out.
        front: Names of those that no other one beats, the fastest first.
        chosen: Name of the winner.
        budget: Its bounds become lines.
    """
    figure = require("matplotlib.figure", extra="plot", purpose="the picture of the search").Figure(
        figsize=(9, 5.5), dpi=110, layout="constrained"
    )
    axes = figure.add_subplot()
    ranked = {one.name: one for one in candidates if one.ranked}
    looked_at = [one for one in candidates if one.passed is None and one.quick_ms is not None and one.miou is not None]
    axes.plot(
        [ranked[name].latency_ms for name in front], [ranked[name].miou for name in front], color=_FRONT, linewidth=1
    )
    for index, source in enumerate(dict.fromkeys(one.source for one in (*ranked.values(), *looked_at))):
        marker = _MARKERS[index % len(_MARKERS)]
        axes.scatter([], [], marker=marker, color=_INK, label=source)
        hollow = [(one.quick_ms, one.miou) for one in looked_at if one.source == source]
        for place in hollow:
            axes.scatter(*place, marker=marker, facecolors="none", edgecolors=_DOMINATED, s=30)
        for one in ranked.values():
            if one.source == source:
                colour = _CHOSEN if one.name == chosen else _FRONT if one.name in front else _DOMINATED
                size = 90 if one.name == chosen else 45
                axes.scatter(one.latency_ms, one.miou, marker=marker, color=colour, s=size, zorder=3)
    for name in front:
        one = ranked[name]
        text = f"{format_size(one.size)} {one.precision}"
        place = (one.latency_ms, one.miou)
        axes.annotate(text, place, (6, -11), textcoords="offset points", fontsize=8, color=_INK)
    if budget.max_latency_ms is not None:
        axes.axvline(budget.max_latency_ms, color=_BUDGET, linestyle="--", linewidth=1.2, label="budget")
    if budget.min_miou is not None:
        axes.axhline(budget.min_miou, color=_BUDGET, linestyle=":", linewidth=1.2, label="lowest mIoU")
    axes.set_xlabel("latency from image to mask, ms (median)")
    axes.set_ylabel("mIoU against labels, at the images' size")
    axes.set_title(
        "green: chosen; blue: no other one is faster and more accurate; grey: dominated; hollow: ruled out by a few "
        "calls and images",
        loc="left",
        fontsize=8,
    )
    axes.margins(x=0.12, y=0.1)
    axes.grid(color=_PALE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
