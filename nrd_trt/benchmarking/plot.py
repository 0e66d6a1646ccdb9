"""The picture of a run: how large a share of the calls was done within which latency. Matplotlib on use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nrd_trt.errors import ConfigError
from nrd_trt.files import PNG, atomic_file, check_file
from nrd_trt.optional import require

if TYPE_CHECKING:
    from nrd_trt.benchmarking.record import BenchmarkRow
    from nrd_trt.benchmarking.timing import Latency

_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8a5cb8", "#c77d0a", "#2b9eb3", "#9c4a1a", "#b0508c")
_MARKED = ((50, "o"), (90, "s"), (99, "D"))
_INK, _PALE = "#222222", "#d9d9d9"
_NAME_LETTERS, _FOOTNOTES = 36, 8
_WIDE = 8.0
"""From this ratio of the slowest to the fastest median on, a linear axis would press curves into a line."""


def check_plot(path: Path, *, force: bool) -> None:
    """Find out before the run whether the picture can be written.

    Raises:
        ConfigError: It is no ``.png``, it exists and `force` is off, or its folder does not exist.
        MissingDependencyError: Matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"plot={path}: expected a name that ends in .png.")
    check_file(path, force=force, marks=[PNG])
    require("matplotlib", extra="plot", purpose="plotting")


def write_plot(
    path: Path, rows: Sequence[BenchmarkRow], *, title: str, subtitle: str, footnotes: Sequence[str]
) -> None:
    """Draw the share of calls over latency, a line per target with p50, p90 and p99 marked.

    Args:
        path: ``.png``; replaced.
        rows: What was measured, at least one; doubtful ones are dashed, long names are cut.
        title: First line.
        subtitle: Second line, smaller: the machine.
        footnotes: Below the axes, e.g. why figures are doubtful.
    """
    figure = require("matplotlib.figure", extra="plot", purpose="plotting").Figure(figsize=(10.5, 5.2), dpi=150)
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        _draw(axes, row, _COLOURS[index % len(_COLOURS)])
    _dress(axes, rows)
    figure.text(0.068, 0.955, _plain(title), fontsize=13, fontweight="bold", color=_INK, va="center")
    figure.text(0.068, 0.907, _plain(subtitle), fontsize=9, color="#555555", va="center")
    footnotes = footnotes[:_FOOTNOTES]
    for index, line in enumerate(reversed(footnotes)):
        figure.text(0.068, 0.022 + 0.033 * index, _plain(line), fontsize=8, color="#a02c2c", va="center")
    bottom = 0.125 + 0.033 * len(footnotes)
    figure.subplots_adjust(left=0.068, right=0.70, top=0.86, bottom=bottom)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axes: Any, row: BenchmarkRow, colour: str) -> None:
    """Draw one staircase and its three marks, and the dotted one of the GPU alone where there is one."""
    marks = {share: row.latency.percentile(share) for share, _ in _MARKED}
    figures = "   ".join(f"p{share} {_short(ms)}" for share, ms in marks.items())
    style = "--" if row.doubtful else "-"
    name = row.target if len(row.target) <= _NAME_LETTERS else f"{row.target[: _NAME_LETTERS - 1]}…"
    simulated = ", simulated" if row.arithmetic == "simulated" else ""
    gpu_compute = row.timing.gpu_compute
    alone = f"\ndotted: GPU compute, p50 {_short(gpu_compute.p50)} ms" if gpu_compute else ""
    label = _plain(f"{name}\n{row.runner}, {row.precision}{simulated}\n{figures} ms{alone}")
    axes.step(*_stairs(row.latency), where="post", color=colour, linewidth=1.8, linestyle=style, label=label)
    if gpu_compute:
        axes.step(*_stairs(gpu_compute), where="post", color=colour, linewidth=1.2, linestyle=":")
    for share, marker in _MARKED:
        axes.plot(marks[share], share, marker, color=colour, markersize=7, markeredgecolor="white", zorder=3)


def _stairs(latency: Latency) -> tuple[np.ndarray, np.ndarray]:
    """Return milliseconds in rising order and the share of calls, in %, that were done by then."""
    samples = np.sort(np.array(latency.samples_ms))
    shares = np.arange(1, len(samples) + 1) / len(samples) * 100
    return np.concatenate([samples[:1], samples]), np.concatenate([[0.0], shares])


def _short(ms: float) -> str:
    """Write milliseconds with about three digits in all."""
    return f"{ms:.{0 if ms >= 100 else 1 if ms >= 10 else 2}f}"


def _plain(text: str) -> str:
    """Keep dollar signs from starting formulas, and an underscore from hiding the entry."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _dress(axes: Any, rows: Sequence[BenchmarkRow]) -> None:
    """Set axes, grid and legend."""
    medians = [part.p50 for row in rows for part in (row.latency, row.timing.gpu_compute) if part]
    if max(medians) > _WIDE * min(medians):
        ticker = require("matplotlib.ticker", extra="plot", purpose="plotting")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlabel("latency of one call, ms (logarithmic)", color=_INK)
    else:
        axes.set_xlabel("latency of one call, ms", color=_INK)
    axes.margins(x=0.06)
    axes.set_ylabel("share of the calls done by then, %", color=_INK)
    axes.set_ylim(0, 104)
    axes.set_yticks([0, 25, *(share for share, _ in _MARKED)], ["0", "25", *(f"p{share}" for share, _ in _MARKED)])
    axes.grid(color=_PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0.0,
        fontsize=8.5,
        frameon=False,
        labelspacing=1.1,
        handlelength=1.6,
    )
