"""The picture of a run exists, shows what it was given, and refuses before the run what cannot be written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nrd_trt.benchmarking import plot
from nrd_trt.benchmarking.plot import check_plot, write_plot
from nrd_trt.benchmarking.timing import Latency
from nrd_trt.errors import ConfigError, MissingDependencyError

TEXTS = {"title": "Latency at 64x96, batch 1", "subtitle": "AMD EPYC, 2 cores; $20 calls$", "footnotes": ["other work"]}


def _row(median_ms: float, **given: Any) -> Any:
    samples_ms = np.random.default_rng(0).normal(median_ms, median_ms / 50, 40)
    values = {"target": "a.nrd", "runner": "torch", "precision": "fp32", "arithmetic": "native", "doubtful": False}
    values["timing"] = SimpleNamespace(gpu_compute=None)
    return SimpleNamespace(**{**values, "latency": Latency(samples_ms=tuple(samples_ms)), **given})


def _colours(path: Path) -> set[tuple[int, int, int]]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        found = image.convert("RGB").getcolors(1 << 24)
    return {colour for count, colour in found or [] if count > 20}  # type: ignore[misc]


@pytest.mark.parametrize("medians", [(5.0,), (5.0, 7.0), (5.0, 500.0, 2.0), tuple(range(1, 11))])
def test_each_target_has_its_colour(medians: tuple[float, ...], tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    rows = [_row(median, target=f"_{median}$b$") for median in medians]
    rows[0].latency = Latency(samples_ms=(1.0,))
    write_plot(path, rows, **TEXTS)
    shown = _colours(path)
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in plot._COLOURS]
    assert set(colours) & shown == set(colours[: len(medians)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.png"]


def test_axis_is_logarithmic_only_where_targets_lie_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def scale(*medians: float) -> str:
        axes: Any = Figure().add_subplot()
        for median in medians:
            plot._draw(axes, _row(median), "#000000")
        plot._dress(axes, [_row(median) for median in medians])
        return str(axes.get_xscale())

    assert (scale(5.0, 30.0), scale(5.0, 60.0)) == ("linear", "log")


def test_marks_and_legend_tell_the_percentiles() -> None:
    axes: Any = Figure().add_subplot()
    latency = Latency(samples_ms=(10.0, 20.0, 200.0))
    plot._draw(axes, _row(5.0, target="n" * 50, latency=latency, doubtful=True, arithmetic="simulated"), "#000000")
    stairs, *marks = axes.lines
    assert [(float(mark.get_xdata()[0]), mark.get_ydata()[0]) for mark in marks] == [
        (pytest.approx(latency.percentile(share)), share) for share in (50, 90, 99)
    ]
    plot._draw(axes, _row(5.0), "#000000")
    assert (stairs.get_linestyle(), axes.lines[4].get_linestyle()) == ("--", "-")
    name, runner, figures = stairs.get_label().split("\n")
    assert (len(name), runner) == (36, "torch, fp32, simulated")
    assert figures == "p50 20.0   p90 164   p99 196 ms"


def test_gpu_compute_is_a_dotted_line_beside_the_latency() -> None:
    axes: Any = Figure().add_subplot()
    alone = Latency(samples_ms=(3.0, 2.0))
    plot._draw(axes, _row(5.0, timing=SimpleNamespace(gpu_compute=alone)), "#123456")
    stairs, dotted, *marks = axes.lines
    assert (dotted.get_linestyle(), dotted.get_color(), len(marks)) == (":", "#123456", 3)
    assert (list(dotted.get_xdata()), list(dotted.get_ydata())) == ([2.0, 2.0, 3.0], [0.0, 50.0, 100.0])
    assert stairs.get_label().split("\n")[-1] == "dotted: GPU compute, p50 2.50 ms"


def test_what_cannot_be_written_is_found_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.png").touch()
    for name, match in (("a.jpg", r"ends in \.png"), ("old.png", "force=True"), ("absent/a.png", "does not exist")):
        with pytest.raises(ConfigError, match=match):
            check_plot(tmp_path / name, force=False)
    check_plot(tmp_path / "old.png", force=True)
    check_plot(tmp_path / "new.png", force=False)

    def absent(*_: Any, **__: Any) -> Any:
        raise MissingDependencyError("pip install nrd-trt[plot]")

    monkeypatch.setattr(plot, "require", absent)
    with pytest.raises(MissingDependencyError, match=r"nrd-trt\[plot\]"):
        check_plot(tmp_path / "new.png", force=False)
