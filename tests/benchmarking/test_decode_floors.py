"""The floors against figures worked out elsewhere, the fit, and what counts as fast enough."""

from __future__ import annotations

from typing import Any

import pytest

from nrd_trt.benchmarking.decode_floors import DecodeCase, Floors, fit_line, judge

H200 = {"multiprocessors": 132, "clock_mhz": 1980.0}
LARGE = (1024, 2048)


@pytest.mark.parametrize(
    ("size_hw", "num_classes", "wanted_us"), [(LARGE, 19, 11.4), (LARGE, 150, 71), ((512, 512), 150, 8.9)]
)
def test_instruction_floor(size_hw: tuple[int, int], num_classes: int, wanted_us: float) -> None:
    case = DecodeCase(size_hw=size_hw, num_classes=num_classes)
    assert case.instruction_floor_us(**H200) == pytest.approx(wanted_us, rel=0.01)
    assert DecodeCase(size_hw=size_hw, num_classes=num_classes, batch=8).instruction_floor_us(**H200) == pytest.approx(
        8 * wanted_us, rel=0.01
    )


def test_byte_floor() -> None:
    case = DecodeCase(size_hw=LARGE, num_classes=19)
    assert case.moved_bytes == 2048 * 899 * 2 + 16 * 131072 * 2 + 2048 * 1024
    assert case.byte_floor_us(4.3e12) == pytest.approx(2.3, rel=0.02)
    assert DecodeCase(size_hw=(512, 512), num_classes=150).byte_floor_us(4.3e12) == pytest.approx(0.55, rel=0.02)
    wide = DecodeCase(size_hw=LARGE, num_classes=19, precision="fp32")
    assert wide.moved_bytes - case.moved_bytes == 2048 * 899 * 2 + 16 * 131072 * 2
    assert DecodeCase(size_hw=LARGE, num_classes=19, batch=8).moved_bytes == 8 * case.moved_bytes


def test_limits() -> None:
    floors = Floors(byte_us=2.0, instruction_us=10.0, empty_us=1.5)
    assert (floors.limit_us, floors.trained_limit_us) == (17.5, 5.5)
    assert Floors(byte_us=20.0, instruction_us=10.0, empty_us=1.5).limit_us == 33.5
    assert floors.to_dict() == {
        "byte_us": 2.0, "instruction_us": 10.0, "empty_us": 1.5, "limit_us": 17.5, "trained_limit_us": 5.5,
    }  # fmt: skip


def test_line_through_points() -> None:
    exact = fit_line("pixels", [(x, 3.0 + 5e-6 * x) for x in (2e6, 4e6, 8e6)])
    assert (exact.offset_us, exact.slope_us) == (pytest.approx(3.0), pytest.approx(5e-6))
    assert exact.residuals == pytest.approx([0, 0, 0], abs=1e-12)
    bent = fit_line("classes", [(1, 10.0), (2, 20.0), (3, 60.0)])
    facts = bent.to_dict()
    assert facts["largest_residual"] == max(abs(value) for value in bent.residuals) > 0.15
    assert facts["points"] == ((1.0, 10.0), (2.0, 20.0), (3.0, 60.0))
    relative = [(bent.offset_us + bent.slope_us * x) / y - 1 for x, y in bent.points]
    assert bent.residuals == pytest.approx(relative)
    for change in (0.1, -0.1):  # no other line has smaller relative residuals
        for offset, slope in ((bent.offset_us + change, bent.slope_us), (bent.offset_us, bent.slope_us + change)):
            other = [(offset + slope * x) / y - 1 for x, y in bent.points]
            assert sum(r * r for r in other) > sum(r * r for r in bent.residuals)


def row(us: float = 15.0, **changes: Any) -> dict[str, Any]:
    floors = Floors(byte_us=2.0, instruction_us=10.0, empty_us=1.5).to_dict()
    plain: dict[str, Any] = {
        **DecodeCase(size_hw=LARGE, num_classes=19).to_dict(),
        "fastest": {"kernel": "simt", "us": us},
        "floors": floors,
        "baselines": {"authors": {"us": 20 * us + 1}, "matmul": {"us": 1.0}, "compiled": {"us": 5 * us - 1}},
    }
    return {**plain, **changes}


def test_speed_is_judged() -> None:
    targets = judge(
        [row()], [{"over": "pixels", "largest_residual": 0.16}, {"over": "classes", "largest_residual": 9.0}]
    )
    assert [(target["limit"], target["met"]) for target in targets] == [
        (17.5, True),
        (20, True),
        (5, False),
        (0.15, False),
    ]
    assert [target["value"] for target in targets] == [15.0, pytest.approx(301 / 15), pytest.approx(74 / 15), 0.16]
    assert "1024x2048 K=19 random theta, simt" in targets[0]["name"]
    assert not judge([row(us=17.6)], [])[0]["met"]


def test_large_numbers_of_classes_have_their_own_ratios() -> None:
    targets = judge([row(num_classes=150)], [])
    assert [target["limit"] for target in targets] == [17.5, 10, 3]


def test_what_is_not_judged() -> None:
    for changes in ({"batch": 8}, {"precision": "bf16"}, {"fastest": None}):
        assert judge([row(**changes)], []) == []
    assert len(judge([row(size="512x1024")], [])) == 1
    assert len(judge([row(baselines={"authors": {"skipped": "too large"}})], [])) == 1


def test_trained_theta_aims_at_the_bytes() -> None:
    (target,) = judge([row(us=5.4, theta="trained", num_classes=11)], [])
    assert (target["limit"], target["met"]) == (5.5, True)
    assert "2 T_byte" in target["name"]
