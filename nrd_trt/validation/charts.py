"""Charts of a report as inline SVG, coloured by the page's style. No third parties."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nrd_trt.validation.html import Html, tag

_WIDTH, _HEIGHT = 960, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 12, 30
_DECADES = 4  # an error bar reaches from this many decades below its tolerance to as many above


def bars(values: Sequence[tuple[float | None, str]]) -> Html:
    """Return horizontal bars in 0-1, one below the other.

    Args:
        values: Each with the name of its colour, ``"ref"`` or ``"eng"``; None draws the track only.
    """
    thick, gap, wide = 7, 3, 150
    parts = []
    for row, (value, colour) in enumerate(values):
        y = row * (thick + gap)
        parts.append(tag("rect", x=0, y=y, width=wide, height=thick, rx=2, fill="var(--track)"))
        if value is not None:
            length = round(max(0.0, min(1.0, value)) * wide, 2)
            parts.append(tag("rect", x=0, y=y, width=length, height=thick, rx=2, fill=f"var(--{colour})"))
    height = len(values) * (thick + gap) - gap
    return tag("svg", parts, viewBox=f"0 0 {wide} {height}", role="img", style="max-width:220px;min-width:110px")


def error_bar(error: float | None, tolerance: float) -> Html:
    """Return an error on a logarithmic scale around its tolerance, which is the line in the middle.

    Args:
        error: None for one that is not finite.
        tolerance: Above 0; at 0 everything above it is drawn in full.
    """
    wide, high = 150, 10
    if error is None or tolerance <= 0:
        share = 0.0 if error == 0 else 1.0
    elif error <= 0:
        share = 0.0
    else:
        share = 0.5 + math.log10(error / tolerance) / (2 * _DECADES)
    beyond = error is None or error > tolerance
    length = round(max(0.0, min(1.0, share)) * wide, 2)
    return tag(
        "svg",
        tag("rect", x=0, y=0, width=wide, height=high, rx=2, fill="var(--track)"),
        tag("rect", x=0, y=0, width=length, height=high, rx=2, fill=f"var(--{'bad' if beyond else 'good'})"),
        tag("line", x1=wide / 2, x2=wide / 2, y1=-1, y2=high + 1, stroke="var(--ink)", stroke_width=1.5),
        viewBox=f"0 -1 {wide} {high + 2}",
        role="img",
        style="max-width:220px;min-width:110px",
    )


def agreement_plot(values: Sequence[tuple[str, float]], gate: float) -> Html:
    """Return one dot per image over its share of equal pixels, with the gate as a line.

    Args:
        values: Name and agreement per image, in order.
        gate: In 0-1.
    """
    low = min([gate, *(value for _, value in values)])
    low = max(0.0, low - 0.15 * (1 - low) - 1e-6)

    def y(value: float) -> float:
        return round(_TOP + (1 - (value - low) / (1 - low)) * (_HEIGHT - _TOP - _BOTTOM), 2)

    span = (_WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    parts = []
    for value, shown in _ticks(low):
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(value), y2=y(value), stroke="var(--line)"))
        parts.append(tag("text", shown, x=_LEFT - 8, y=y(value) + 4, text_anchor="end"))
    parts.append(
        tag(
            "line",
            x1=_LEFT,
            x2=_WIDTH - _RIGHT,
            y1=y(gate),
            y2=y(gate),
            stroke="var(--bad)",
            stroke_width=1.5,
            stroke_dasharray="6 4",
        )
    )
    for index, (name, value) in enumerate(values):
        colour = "bad" if value < gate else "eng"
        title = tag("title", f"{name}: {value:.6f}")
        x = round(_LEFT + span * (index + 0.5), 2)
        parts.append(Html(f'<circle cx="{x}" cy="{y(value)}" r="4" fill="var(--{colour})">{title}</circle>'))
    parts.append(
        tag("text", f"images, 1 to {len(values)}", x=(_LEFT + _WIDTH) / 2, y=_HEIGHT - 8, text_anchor="middle")
    )
    return tag("svg", parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img")


def _ticks(low: float) -> list[tuple[float, str]]:
    """Return round values from 1 down to `low`, six at most, with their text."""
    decade = 10.0 ** math.floor(math.log10((1 - low) / 5))
    step = next(factor * decade for factor in (1, 2, 5, 10) if (1 - low) / (factor * decade) <= 5)
    digits = max(1, -math.floor(math.log10(step) + 1e-9))
    return [(1 - place * step, f"{1 - place * step:.{digits}f}") for place in range(int((1 - low) / step + 1e-9) + 1)]
