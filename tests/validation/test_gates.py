"""The default gates of CLI.md, and what holds them."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from nrd_trt.errors import ConfigError
from nrd_trt.figures import Gates

DEFAULTS = {"fp32": (0.9999, 0.002), "fp16": (0.995, 0.002), "bf16": (0.98, 0.005), "int8": (0.97, 0.01)}


@pytest.mark.parametrize("precision", DEFAULTS)
def test_what_is_asked_for_replaces_its_default_only(precision: str) -> None:
    agreement, drop = DEFAULTS[precision]
    for asked, expected in (((), (agreement, drop)), ((0.25,), (0.25, drop)), ((None, 0.5), (agreement, 0.5))):
        assert astuple(Gates.of(precision, *asked)) == expected
    assert astuple(Gates.of(precision, 0.0, 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize("value", [1.0001, 99.5, -0.01, float("nan")])
def test_gate_outside_the_fractions_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"min_agreement=.*fraction in 0-1"):
        Gates.of("fp16", value)
    with pytest.raises(ConfigError, match=r"max_miou_drop=.*fraction in 0-1"):
        Gates.of("fp16", None, value)


@pytest.mark.parametrize(
    ("agreement", "drop", "failed"),
    [
        (0.99, 0.01, []),
        (1.0, None, []),
        (1.0, -0.5, []),  # an engine better than its reference
        (0.9899999, None, ["pixel agreement 0.990000, at least 0.99 needed"]),
        (0.99, 0.0100001, ["mIoU drop 0.010000, at most 0.01 allowed"]),
        (0.5, 0.5, ["pixel agreement 0.5", "mIoU drop 0.5"]),
        (None, None, ["pixel agreement not measured, at least 0.99 needed"]),
        (float("nan"), float("nan"), ["pixel agreement nan", "mIoU drop nan"]),
    ],
)
def test_failures_name_each_gate_that_does_not_hold(
    agreement: float | None, drop: float | None, failed: list[str]
) -> None:
    lines = Gates(min_agreement=0.99, max_miou_drop=0.01).failures(agreement=agreement, miou_drop=drop)
    assert len(lines) == len(failed)
    assert all(line.startswith(start) for line, start in zip(lines, failed, strict=True))
