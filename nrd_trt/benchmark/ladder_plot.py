"""The picture of `nrd-trt tune`: each rung's agreement, and the most sensitive layers. Matplotlib on use."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nrd_trt.files import atomic_file
from nrd_trt.optional import require

_HELD, _REJECTED, _INK, _PALE = "#1b6ca8", "#b8b8b8", "#222222", "#e4e4e4"
_LAYERS = 15


def can_plot() -> bool:
    """Whether Matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_ladder(
    path: Path, rungs: Sequence[Mapping[str, Any]], sensitivity: Mapping[str, float], *, winner: str | None
) -> None:
    """Draw the ladder.

    Args:
        path: ``.png``; replaced.
        rungs: `nrd_trt.pipeline.tune.Tuned.rungs`, from the bottom up.
        sensitivity: Share of the pixels that a layer alone changes, 0-1.
        winner: Name of the rung that won.
    """
    require("matplotlib", extra="plot", purpose="the picture of the ladder")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.34 * max(len(rungs), min(len(sensitivity), _LAYERS))), dpi=110)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.05, "width_ratios": (1, 1)})
    _draw_rungs(left, rungs, winner)
    _draw_layers(right, sensitivity)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_rungs(axes: Any, rungs: Sequence[Mapping[str, Any]], winner: str | None) -> None:
    names = [rung["name"] for rung in rungs]
    differing = [1.0 - rung["pixel_agreement"] for rung in rungs]
    colours = [_HELD if name == winner else _REJECTED for name in names]
    axes.barh(range(len(rungs)), differing, color=colours)
    for index, rung in enumerate(rungs):
        drop = "" if rung["miou_drop"] is None else f"  mIoU {rung['miou_drop']:+.4f} lost"
        axes.text(differing[index], index, f" {differing[index]:.4f}{drop}", va="center", color=_INK, fontsize=8)
    axes.set_yticks(range(len(rungs)), names)
    axes.set_title("Rungs: share of the pixels that differ from PyTorch", loc="left", fontsize=10)
    axes.set_xlim(0, max(differing, default=0.0) * 1.7 + 1e-6)
    _finish(axes)


def _draw_layers(axes: Any, sensitivity: Mapping[str, float]) -> None:
    worst = sorted(sensitivity.items(), key=lambda entry: -entry[1])[:_LAYERS][::-1]
    axes.barh(range(len(worst)), [share for _, share in worst], color=_HELD)
    axes.set_yticks(range(len(worst)), [name.removesuffix("/Conv") for name, _ in worst], fontsize=8)
    axes.set_title("Layers: share that changes with one in int8", loc="left", fontsize=10)
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.grid(axis="x", color=_PALE)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
