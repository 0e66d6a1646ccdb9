"""The figures that masks must reach, by precision: one table. Leaf module."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from nrd_trt.errors import ConfigError

NamedFigure = tuple[str, float]
"""A class and its figure."""

CLASS_SHARE = 0.01
"""A class is judged alone where it has at least this share of the pixels: a smaller one is little more than an outline,
which rounding moves in any sound file."""
CLASS_PIXELS = 400
"""And at least so many pixels: of fewer, a handful of ties is a large share."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The figures that gates judge, fractions in 0-1; None where a figure cannot be computed.

    Attributes:
        agreement: Share of pixels on which engine and reference agree; one that could not be measured holds no gate.
        miou_drop: Loss of mIoU against labels.
        class_iou: The class with the lowest IoU between engine and reference, and that IoU.
        class_drop: The class that loses most IoU against labels, and how much.
        border_agreement: Share of equal pixels near the reference's borders.
        boundary_f: Boundary F-score between engine and reference.
        confidence_difference: Mean difference of the confidence from the reference's.
    """

    agreement: float | None
    miou_drop: float | None = None
    class_iou: NamedFigure | None = None
    class_drop: NamedFigure | None = None
    border_agreement: float | None = None
    boundary_f: float | None = None
    confidence_difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The figures that an engine must reach before it is called done, fractions in 0-1.

    Attributes:
        min_agreement: Smallest share of pixels on which engine and reference agree.
        max_miou_drop: Largest loss of mIoU against labels; checked where labels are given.
        min_class_iou: Smallest IoU between engine and reference of any class that has `CLASS_SHARE` of the reference's
            pixels; None in records of before, which did not judge it. The same holds for the following.
        max_class_drop: Largest loss of IoU against labels of any class that has `CLASS_SHARE` of the labelled pixels.
        min_border_agreement: Smallest share of pixels near the reference's borders on which both agree.
        min_boundary_f: Smallest boundary F-score between engine and reference, mean over classes.
        max_confidence_difference: Largest mean difference of the confidence from the reference's; checked where the
            engine gives the confidence. It cannot be asked for, and is looser for who asks for less agreement.
    """

    min_agreement: float
    max_miou_drop: float
    min_class_iou: float | None = None
    max_class_drop: float | None = None
    min_border_agreement: float | None = None
    min_boundary_f: float | None = None
    max_confidence_difference: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name}={value}: expected a fraction in 0-1, e.g. 0.995 for 99.5 %.")

    @classmethod
    def of(
        cls,
        precision: str,
        min_agreement: float | None = None,
        max_miou_drop: float | None = None,
        **asked: float | None,
    ) -> Gates:
        """Return the default gates of a precision, or what the user asks for; None asks for nothing.

        Who asks for less agreement than the default gets the finer gates looser in proportion, where not given.
        """
        given = {"min_agreement": min_agreement, "max_miou_drop": max_miou_drop, **asked}
        default = _DEFAULTS[precision]
        loosened = default if min_agreement is None else default._loosened(min_agreement)
        return replace(loosened, **{name: value for name, value in given.items() if value is not None})

    def _loosened(self, min_agreement: float) -> Gates:
        times = max(1.0, (1 - min_agreement) / max(1 - self.min_agreement, 1e-6))
        finer = {name: value for name, value in vars(self).items() if name not in ("min_agreement", "max_miou_drop")}
        return replace(
            self,
            **{
                name: min(1.0, times * value) if name.startswith("max") else max(0.0, 1 - times * (1 - value))
                for name, value in finer.items()
            },
        )

    def failures(self, found: Judged) -> list[str]:
        """Return one line per gate that does not hold."""
        lines, agreement, miou_drop = [], found.agreement, found.miou_drop
        class_iou, class_drop = found.class_iou, found.class_drop
        if agreement is None or not agreement >= self.min_agreement:  # NaN holds no gate
            shown = "not measured" if agreement is None else f"{agreement:.6f}"
            lines.append(f"pixel agreement {shown}, at least {self.min_agreement} needed")
        if miou_drop is not None and not miou_drop <= self.max_miou_drop:
            lines.append(f"mIoU drop {miou_drop:.6f}, at most {self.max_miou_drop} allowed")
        for what, figure, least in (
            (
                f"IoU of class {class_iou and class_iou[0]} with the reference's",
                class_iou and class_iou[1],
                self.min_class_iou,
            ),
            ("agreement near borders", found.border_agreement, self.min_border_agreement),
            ("boundary F-score with the reference's outlines", found.boundary_f, self.min_boundary_f),
        ):
            if figure is not None and least is not None and not figure >= least:
                lines.append(f"{what} {figure:.6f}, at least {least} needed")
        if class_drop is not None and self.max_class_drop is not None and not class_drop[1] <= self.max_class_drop:
            lines.append(
                f"drop of the IoU of class {class_drop[0]} {class_drop[1]:.6f}, at most {self.max_class_drop} allowed"
            )
        off, most = found.confidence_difference, self.max_confidence_difference
        if off is not None and most is not None and not off <= most:
            lines.append(f"confidence off by {off:.6f} in the mean, at most {most} allowed")
        return lines


GATES = tuple(entry.name for entry in fields(Gates) if entry.name != "max_confidence_difference")
"""Names of those that can be asked for, which are those of the arguments of `nrd_trt.build`, `validate` and `tune`."""

_EIGHT_BITS = Gates(
    min_agreement=0.97,
    max_miou_drop=0.01,
    min_class_iou=0.65,
    max_class_drop=0.08,
    min_border_agreement=0.85,
    min_boundary_f=0.85,
    max_confidence_difference=0.04,
)
_DEFAULTS = {
    "fp32": Gates(
        min_agreement=0.9999,
        max_miou_drop=0.002,
        min_class_iou=0.99,
        max_class_drop=0.005,
        min_border_agreement=0.995,
        min_boundary_f=0.995,
        max_confidence_difference=0.001,
    ),
    "fp16": Gates(
        min_agreement=0.995,
        max_miou_drop=0.002,
        min_class_iou=0.96,
        max_class_drop=0.01,
        min_border_agreement=0.985,
        min_boundary_f=0.98,
        max_confidence_difference=0.003,
    ),
    "bf16": Gates(
        min_agreement=0.98,
        max_miou_drop=0.005,
        min_class_iou=0.9,
        max_class_drop=0.02,
        min_border_agreement=0.92,
        min_boundary_f=0.9,
        max_confidence_difference=0.015,
    ),
    "int8": _EIGHT_BITS,
    "fp8": _EIGHT_BITS,
}
"""The first two are given; the others leave sound files a margin. One figure covers every runner, so that a bundle is
judged alike wherever it runs; it lets the worst pass that sound files of the zoo showed in each runner that was
measured:

    precision  runner        agreement  class IoU  class drop  near borders  boundary F
    fp32       ONNX Runtime  1.0000     1.000      0.0000      0.9999        1.0000
    fp16       ONNX Runtime  0.9986     0.980      0.0015      0.9942        0.9910
    fp16       PyTorch       0.9986     0.980      0.0013      0.9935        0.9892
    bf16       ONNX Runtime  0.9921     0.961      0.0061      0.9682        0.9569
    bf16       PyTorch       0.9859     0.934      0.0097      0.9476        0.9339
    int8       ONNX Runtime  0.9816     0.838      0.0501      0.9252        0.9333   from 128x192 up

In fp32 PyTorch is the reference, int8 it does not run, and no plan has run. docs/validation.md has the sizes and
blocks; `scripts/dev/measure_gates.py` measures them."""
