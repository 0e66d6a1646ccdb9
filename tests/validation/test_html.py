"""Pages are escaped and load nothing."""

from __future__ import annotations

import pytest

from nrd_trt.validation.charts import agreement_plot, bars, error_bar
from nrd_trt.validation.html import Html, join, page, table, tag

EVIL = '<script>alert("x")</script>&\'"'


def test_every_text_and_attribute_is_escaped() -> None:
    made = page(
        EVIL, tag("p", EVIL, title=EVIL), table([EVIL], [[EVIL]]), [EVIL, None], agreement_plot([(EVIL, 0.5)], 0.9)
    )
    assert "<script" not in made
    assert 'alert("x")' not in made
    assert made.count("&lt;script&gt;") == 7
    assert made.startswith("<!DOCTYPE html>")


def test_what_is_html_already_stays() -> None:
    assert tag("p", Html("<b>x</b>"), "<") == "<p><b>x</b>&lt;</p>"
    assert join("a", None, ["b", Html("<i>")]) == "ab<i>"
    assert tag("img", src="x", alt=None, class_="y") == '<img src="x" class="y">'
    assert tag("td", "1", data_row=3) == '<td data-row="3">1</td>'


@pytest.mark.parametrize(("error", "width"), [(0.0, 0.0), (0.01, 75.0), (1.0, 112.5), (1e9, 150.0), (None, 150.0)])
def test_an_error_is_drawn_around_its_tolerance(error: float | None, width: float) -> None:
    drawn = error_bar(error, 0.01)
    assert f'width="{width}"' in drawn
    assert ("--bad" in drawn) is (error is None or error > 0.01)


def test_bars_and_dots_are_where_their_values_are() -> None:
    drawn = bars([(0.5, "ref"), (None, "eng"), (2.0, "eng")])
    assert drawn.count('width="75.0"') == 1
    assert drawn.count("<rect") == 5
    plot = agreement_plot([("good", 1.0), ("bad", 0.2)], 0.9)
    assert plot.count("<circle") == 2
    assert plot.count("<circle") == plot.count("<title>")
    heights = [float(part.split('"')[0]) for part in plot.split('cy="')[1:]]
    assert heights[0] < heights[1]
    assert "--eng" in plot and "--bad" in plot


@pytest.mark.parametrize("value", [1.0, 0.999999, 0.5, 0.0])
def test_the_plot_is_drawn_for_any_agreement_and_gate(value: float) -> None:
    for gate in (0.0, 0.995, 1.0):
        drawn = agreement_plot([("one", value)], gate)
        assert "nan" not in drawn and "inf" not in drawn
        assert drawn.count("<text") >= 3
