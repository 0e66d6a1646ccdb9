"""What bounds the decode, the speed that it is held to, and the line through its times. NumPy only.

The floors count what must be done at least: bytes that any kernel moves, and the instructions of the fused form without
pruning and without tensor cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nrd_trt.specs import STRIDE, DecodeSpec, Precision, format_size

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_LANES = 128
"""fp32 lanes of a multiprocessor."""
_HALO = 1.27
"""A tile of one patch decodes 9 x 9 pixels for its 8 x 8 cells."""
_ISSUES_PER_OUTPUT = 6
"""Instructions per class and full-resolution pixel: interpolation and comparison."""

LIMIT_SHARE = 1.6
TRAINED_SHARE = 2.0
LEAST_SPEEDUP = {19: {"authors": 20.0, "compiled": 5.0}, 150: {"authors": 10.0, "compiled": 3.0}}
"""By number of classes: how many times as fast as a baseline, at 1024 x 2048."""
LARGEST_RESIDUAL = 0.15


@dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """What is decoded.

    Attributes:
        size_hw: Of the mask.
        num_classes: K.
        batch: Images.
        precision: Of theta and guidance.
        theta: Random numbers, or what a trained network predicts.
    """

    size_hw: tuple[int, int]
    num_classes: int
    batch: int = 1
    precision: Precision = "fp16"
    theta: Literal["random", "trained"] = "random"

    @property
    def spec(self) -> DecodeSpec:
        """The constants of the released networks with this number of classes."""
        return DecodeSpec(num_classes=self.num_classes)

    @property
    def patches_hw(self) -> tuple[int, int]:
        """Rows and columns of theta."""
        return self.size_hw[0] // STRIDE, self.size_hw[1] // STRIDE

    @property
    def pixels(self) -> int:
        """Pixels of the masks."""
        return self.batch * self.size_hw[0] * self.size_hw[1]

    @property
    def moved_bytes(self) -> int:
        """Theta and guidance read once, the mask written once as bytes."""
        spec = self.spec
        h, w = self.patches_hw
        per_patch = spec.theta_channels + spec.guidance_channels * spec.patch**2
        return self.batch * h * w * per_patch * _BYTES[self.precision] + self.pixels

    def byte_floor_us(self, bandwidth: float) -> float:
        """Return microseconds for moving the bytes at `bandwidth` bytes per second, read and written."""
        return 1e6 * self.moved_bytes / bandwidth

    def instruction_floor_us(self, multiprocessors: int, clock_mhz: float) -> float:
        """Return microseconds for issuing the instructions of a fused kernel on every lane."""
        k, d, m, s = self.num_classes, self.spec.hidden, self.spec.guidance_channels, self.spec.upsample
        decode = (2 + m) * d + d * d + d * k
        per_logit = _HALO * decode + _ISSUES_PER_OUTPUT * s * s * k
        return self.pixels / (s * s) * per_logit / (_LANES * multiprocessors * clock_mhz)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "size": format_size(self.size_hw),
            "num_classes": self.num_classes,
            "batch": self.batch,
            "precision": self.precision,
            "theta": self.theta,
        }


@dataclass(frozen=True, kw_only=True)
class Floors:
    """What one case cannot be faster than, in microseconds.

    Attributes:
        byte_us: Its bytes at the bandwidth of a copy.
        instruction_us: Its instructions.
        empty_us: An empty kernel on the same grid.
    """

    byte_us: float
    instruction_us: float
    empty_us: float

    @property
    def limit_us(self) -> float:
        """What a mask kernel is held to on random theta."""
        return LIMIT_SHARE * max(self.byte_us, self.instruction_us) + self.empty_us

    @property
    def trained_limit_us(self) -> float:
        """What it aims at on the theta of a trained network."""
        return TRAINED_SHARE * self.byte_us + self.empty_us

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return {
            **vars(self),
            "limit_us": self.limit_us,
            "trained_limit_us": self.trained_limit_us,
        }


@dataclass(frozen=True, kw_only=True)
class Line:
    """Times as a + b·x, fitted so that the relative residuals' squares are least.

    Attributes:
        over: What x is.
        offset_us: a.
        slope_us: b, per unit of x.
        points: ``(x, measured microseconds)``.
    """

    over: str
    offset_us: float
    slope_us: float
    points: tuple[tuple[float, float], ...]

    @property
    def residuals(self) -> list[float]:
        """Of each point, relative to the measured time."""
        return [(self.offset_us + self.slope_us * x) / y - 1 for x, y in self.points]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        largest = max(abs(value) for value in self.residuals)
        return {**vars(self), "residuals": self.residuals, "largest_residual": largest}


def fit_line(over: str, points: Sequence[tuple[float, float]]) -> Line:
    """Fit at least two points ``(x, microseconds)`` of different x."""
    x, y = np.array(points, dtype=np.float64).T
    unit = np.abs(x).max()  # pixels are millions, the offset is a few
    offset, slope = np.linalg.lstsq(np.stack([1 / y, x / unit / y], axis=1), np.ones_like(y), rcond=None)[0]
    return Line(
        over=over,
        offset_us=float(offset),
        slope_us=float(slope / unit),
        points=tuple((float(a), float(b)) for a, b in points),
    )


def judge(cases: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Hold results against the speed that was asked for; cases that were not measured are left out.

    Args:
        cases: ``{size, num_classes, batch, precision, theta, fastest: {kernel, us}, floors, baselines: {name: {us}}}``.
        lines: `Line.to_dict` of each.

    Returns:
        Per target ``name, value, limit, met``; ``value`` and ``limit`` in the unit that the name ends with.
    """
    targets = []
    for case in cases:
        if (case["batch"], case["precision"]) != (1, "fp16") or case["fastest"] is None:
            continue
        name = f"{case['size']} K={case['num_classes']} {case['theta']} theta, {case['fastest']['kernel']}"
        us, floors = case["fastest"]["us"], case["floors"]
        if case["theta"] == "trained":
            targets.append(_target(f"{name}: 2 T_byte + t_empty, us", us, floors["trained_limit_us"]))
            continue
        targets.append(_target(f"{name}: 1.6 max(T_byte, T_instr) + t_empty, us", us, floors["limit_us"]))
        for baseline, least in LEAST_SPEEDUP.get(case["num_classes"], {}).items():
            other = case["baselines"].get(baseline, {}).get("us")
            if case["size"] == "1024x2048" and other is not None:
                targets.append(_target(f"{name}: against {baseline}, times", other / us, least, at_least=True))
    for line in lines:
        if line["over"] == "pixels":
            targets.append(_target("a + b pixels: largest residual, share", line["largest_residual"], LARGEST_RESIDUAL))
    return targets


def _target(name: str, value: float, limit: float, *, at_least: bool = False) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "met": value >= limit if at_least else value <= limit}
