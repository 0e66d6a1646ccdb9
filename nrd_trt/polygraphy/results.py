"""The figures of two masks and their gates, in the shape that Polygraphy averages, saves and loads.

Every `polygraphy` command imports this with the extension, so that `polygraphy check accuracy` knows saved results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polygraphy.comparator.compare import CompareResult, Threshold
from polygraphy.json import Decoder, Encoder

FIELDS = ["agreement", "miou_between", "clear_flips"]


class NrdMaskThreshold(Threshold):
    """The gates of one pair of masks; all figures are fractions in 0-1.

    Args:
        min_agreement: Smallest share of pixels with the same class.
        min_miou: Smallest mIoU of one mask against the other; None leaves it open.
        max_clear_flips: Largest share of pixels that differ and are not near a tie; None leaves it open.
    """

    def __init__(
        self, min_agreement: float, min_miou: float | None = None, max_clear_flips: float | None = None
    ) -> None:
        self.min_agreement, self.min_miou, self.max_clear_flips = min_agreement, min_miou, max_clear_flips

    @classmethod
    def metric_fields(cls) -> list[str]:
        """Return the names of the figures that this checks."""
        return list(FIELDS)

    def failures(self, metric_values: Mapping[str, float]) -> list[str]:
        """Return one line per gate that does not hold; NaN holds none."""
        agreement, miou, flips = (metric_values[field] for field in FIELDS)
        lines = []
        if not agreement >= self.min_agreement:
            lines.append(f"pixel agreement {agreement:.6f}, at least {self.min_agreement} needed")
        if self.min_miou is not None and not miou >= self.min_miou:
            lines.append(f"mIoU between the masks {miou:.6f}, at least {self.min_miou} needed")
        if self.max_clear_flips is not None and not flips <= self.max_clear_flips:
            lines.append(f"clear flips {flips:.6f} of the pixels, at most {self.max_clear_flips} allowed")
        return lines

    def passed(self, metric_values: Mapping[str, float]) -> bool:
        """Whether every gate holds."""
        return not self.failures(metric_values)

    def describe(self, metric_values: Mapping[str, float]) -> tuple[str, bool]:
        """Return the verdict as a line, and whether it is a good one."""
        failures = self.failures(metric_values)
        agreement, miou, flips = (metric_values[field] for field in FIELDS)
        shown = f"pixel agreement {agreement:.6f}, mIoU between {miou:.4f}, clear flips {flips:.6f}"
        return f"{shown} | {'FAILED: ' + '; '.join(failures) if failures else 'PASSED'}", not failures


class NrdMaskResult(CompareResult):
    """The figures of one output.

    Args:
        agreement: Share of pixels with the same class, 0-1.
        miou_between: mIoU of one mask against the other, 0-1.
        clear_flips: Share of pixels that differ and are not near a tie of the reference, 0-1; without logits of the
            reference every differing pixel counts.
        thresholds: Gates that the figures must hold.
    """

    _THRESHOLD_CLASS = NrdMaskThreshold

    def __init__(
        self, agreement: float, miou_between: float, clear_flips: float, thresholds: NrdMaskThreshold | None = None
    ) -> None:
        super().__init__(thresholds=thresholds)
        self.agreement, self.miou_between, self.clear_flips = agreement, miou_between, clear_flips


@Encoder.register(NrdMaskThreshold)
def _encode_threshold(threshold: NrdMaskThreshold) -> dict[str, Any]:
    return dict(vars(threshold))


@Decoder.register(NrdMaskThreshold)
def _decode_threshold(values: Mapping[str, Any]) -> NrdMaskThreshold:
    return NrdMaskThreshold(**values)


@Encoder.register(NrdMaskResult)
def _encode_result(result: NrdMaskResult) -> dict[str, Any]:
    return {**{field: getattr(result, field) for field in FIELDS}, "thresholds": result.thresholds}


@Decoder.register(NrdMaskResult)
def _decode_result(values: Mapping[str, Any]) -> NrdMaskResult:
    return NrdMaskResult(**values)
