"""The default gates of CLI.md, and what holds them."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from nrd_trt.errors import ConfigError
from nrd_trt.figures import Gates
from nrd_trt.specs import PRECISIONS

DEFAULTS = {"fp32": (0.9999, 0.002), "fp16": (0.995, 0.002), "bf16": (0.98, 0.005), "int8": (0.97, 0.01)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_defaults_are_those_of_the_contract(precision: str) -> None:
    assert tuple(asdict(Gates.of(precision)).values()) == DEFAULTS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_asked_for_replaces_its_default_only(precision: str) -> None:
    assert Gates.of(precision, 0.25) == Gates(min_agreement=0.25, max_miou_drop=DEFAULTS[precision][1])
    assert Gates.of(precision, None, 0.5) == Gates(min_agreement=DEFAULTS[precision][0], max_miou_drop=0.5)
    assert Gates.of(precision, 0.0, 0.0) == Gates(min_agreement=0.0, max_miou_drop=0.0)


@pytest.mark.parametrize("value", [1.0001, 99.5, -0.01, float("nan")])
def test_gate_outside_the_fractions_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"--min-agreement .*fraction in 0-1"):
        Gates.of("fp16", value)
    with pytest.raises(ConfigError, match=r"--max-miou-drop .*fraction in 0-1"):
        Gates.of("fp16", None, value)


def test_bounds_themselves_are_allowed() -> None:
    assert asdict(Gates.of("fp32", 1.0, 0.0)) == {"min_agreement": 1.0, "max_miou_drop": 0.0}


@pytest.mark.parametrize(
    ("agreement", "drop", "failed"),
    [
        (0.99, 0.01, []),
        (1.0, None, []),
        (1.0, -0.5, []),  # an engine better than its reference
        (0.9899999, None, ["pixel agreement"]),
        (0.99, 0.0100001, ["mIoU drop"]),
        (0.5, 0.5, ["pixel agreement", "mIoU drop"]),
        (None, None, ["pixel agreement"]),
    ],
)
def test_failures_name_each_gate_that_does_not_hold(
    agreement: float | None, drop: float | None, failed: list[str]
) -> None:
    lines = Gates(min_agreement=0.99, max_miou_drop=0.01).failures(agreement=agreement, miou_drop=drop)
    assert len(lines) == len(failed)
    assert all(line.startswith(name) for line, name in zip(lines, failed, strict=True))


def test_agreement_not_measured_is_said() -> None:
    (line,) = Gates.of("fp32").failures(agreement=None, miou_drop=None)
    assert line == "pixel agreement not measured, at least 0.9999 needed"


def test_agreement_that_is_no_number_does_not_pass() -> None:
    gates = Gates.of("fp32")
    assert gates.failures(agreement=float("nan"), miou_drop=None)
    assert gates.failures(agreement=1.0, miou_drop=float("nan"))
