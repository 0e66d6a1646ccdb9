"""The default gates of CLI.md, and what holds them."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import pytest

from nrd_trt.errors import ConfigError
from nrd_trt.gates import GATES, Gates, Judged

DEFAULTS = {"fp32": (0.9999, 0.002), "fp16": (0.995, 0.002), "bf16": (0.98, 0.005), "int8": (0.97, 0.01)}


@pytest.mark.parametrize("precision", DEFAULTS)
def test_what_is_asked_for_replaces_its_default_only(precision: str) -> None:
    agreement, drop = DEFAULTS[precision]
    for asked, expected in (((), (agreement, drop)), ((0.25,), (0.25, drop)), ((None, 0.5), (agreement, 0.5))):
        assert astuple(Gates.of(precision, *asked))[:2] == expected
    assert astuple(Gates.of(precision, 0.0, 1.0))[:2] == (0.0, 1.0)
    others = {name: value for name, value in vars(Gates.of(precision)).items() if name not in GATES[:2]}
    assert len(others) == 5 and all(0 < value < 1 for value in others.values())
    for name in others:
        asked_for = Gates.of(precision, **{name: 0.125, "min_agreement": None})
        assert vars(asked_for) == {**vars(Gates.of(precision)), name: 0.125}


def test_who_asks_for_less_agreement_gets_the_finer_gates_looser() -> None:
    default, looser = Gates.of("int8"), Gates.of("int8", 0.94, min_boundary_f=0.8)
    assert looser.min_class_iou == pytest.approx(1 - 2 * (1 - (default.min_class_iou or 0)))
    assert looser.max_class_drop == pytest.approx(2 * (default.max_class_drop or 0))
    assert (looser.min_boundary_f, looser.max_miou_drop) == (0.8, default.max_miou_drop)
    assert Gates.of("int8", 0.99) == replace(default, min_agreement=0.99)
    loosest = vars(Gates.of("fp32", 0.5))
    assert loosest == {**dict(zip(GATES, (0.5, 0.002, 0, 1, 0, 0), strict=True)), "max_confidence_difference": 1}


@pytest.mark.parametrize("value", [1.0001, 99.5, -0.01, float("nan")])
def test_gate_outside_the_fractions_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"min_agreement=.*fraction in 0-1"):
        Gates.of("fp16", value)
    with pytest.raises(ConfigError, match=r"max_miou_drop=.*fraction in 0-1"):
        Gates.of("fp16", None, value)
    with pytest.raises(ConfigError, match=r"min_boundary_f=.*fraction in 0-1"):
        Gates.of("fp16", min_boundary_f=value)


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
    lines = Gates(min_agreement=0.99, max_miou_drop=0.01).failures(Judged(agreement=agreement, miou_drop=drop))
    assert len(lines) == len(failed)
    assert all(line.startswith(start) for line, start in zip(lines, failed, strict=True))


OPEN = Gates(min_agreement=0, max_miou_drop=1)
FINER = replace(
    OPEN,
    min_class_iou=0.9,
    max_class_drop=0.1,
    min_border_agreement=0.8,
    min_boundary_f=0.7,
    max_confidence_difference=0.2,
)


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        ({"class_iou": ("car", 0.89)}, "IoU of class car with the reference's 0.890000, at least 0.9 needed"),
        ({"class_drop": ("car", 0.11)}, "drop of the IoU of class car 0.110000, at most 0.1 allowed"),
        ({"border_agreement": 0.79}, "agreement near borders 0.790000, at least 0.8 needed"),
        ({"boundary_f": 0.69}, "boundary F-score with the reference's outlines 0.690000, at least 0.7 needed"),
        ({"boundary_f": float("nan")}, "boundary F-score with the reference's outlines nan, at least 0.7 needed"),
        ({"confidence_difference": 0.21}, "confidence off by 0.210000 in the mean, at most 0.2 allowed"),
        ({"confidence_difference": float("nan")}, "confidence off by nan in the mean, at most 0.2 allowed"),
        ({"class_iou": ("car", 0.9), "class_drop": ("car", 0.1), "border_agreement": 0.8, "boundary_f": 0.7}, None),
        ({"class_iou": None, "class_drop": None, "border_agreement": None, "boundary_f": None}, None),
    ],
)
def test_each_finer_gate_goes_red_alone(figure: dict[str, Any], line: str | None) -> None:
    assert FINER.failures(Judged(agreement=1.0, **figure)) == ([line] if line else [])
    assert OPEN.failures(Judged(agreement=1.0, **figure)) == []  # as records of before were judged
