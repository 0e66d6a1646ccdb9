"""The figures that an engine must reach before it is called done. Imports errors only."""

from __future__ import annotations

from dataclasses import dataclass

from nrd_trt.errors import ConfigError

_MIN_AGREEMENT = {"fp32": 0.9999, "fp16": 0.995, "bf16": 0.98, "int8": 0.97}
_MAX_MIOU_DROP = {"fp32": 0.002, "fp16": 0.002, "bf16": 0.005, "int8": 0.01}


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Fractions in 0-1.

    Attributes:
        min_agreement: Smallest share of pixels on which engine and reference agree.
        max_miou_drop: Largest loss of mIoU against labels; checked where labels are given.
    """

    min_agreement: float
    max_miou_drop: float

    def __post_init__(self) -> None:
        for name, value in (("--min-agreement", self.min_agreement), ("--max-miou-drop", self.max_miou_drop)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} {value}: expected a fraction in 0-1, e.g. 0.995 for 99.5 %.")

    @classmethod
    def of(cls, precision: str, min_agreement: float | None = None, max_miou_drop: float | None = None) -> Gates:
        """Return the default gates of a precision, or what the user asks for."""
        return cls(
            min_agreement=_MIN_AGREEMENT[precision] if min_agreement is None else min_agreement,
            max_miou_drop=_MAX_MIOU_DROP[precision] if max_miou_drop is None else max_miou_drop,
        )

    def failures(self, *, agreement: float | None, miou_drop: float | None) -> list[str]:
        """Return one line per gate that does not hold; an agreement that could not be measured does not."""
        lines = []
        if agreement is None or not agreement >= self.min_agreement:  # NaN holds no gate
            shown = "not measured" if agreement is None else f"{agreement:.6f}"
            lines.append(f"pixel agreement {shown}, at least {self.min_agreement} needed")
        if miou_drop is not None and not miou_drop <= self.max_miou_drop:
            lines.append(f"mIoU drop {miou_drop:.6f}, at most {self.max_miou_drop} allowed")
        return lines
