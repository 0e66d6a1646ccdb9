"""What a comparison of masks found: plain records that a bundle keeps. Leaf module."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import msgspec

from nrd_trt.gates import CLASS_PIXELS, CLASS_SHARE, Gates, Judged, NamedFigure

_SHOWN_DIFFERENCES, _KEPT_DIFFERENCES = 8, 50


def json_values(record: object) -> Any:
    """Return a dataclass as JSON gives it back: lists in place of tuples."""
    return json.loads(json.dumps(msgspec.to_builtins(record)))


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Pixels that the engine draws otherwise than the reference; shares are of all pixels compared.

    Attributes:
        pixels: Number of flipped pixels.
        share: Their share.
        near_tie: Those where the reference's two best logits are nearly equal; None where its logits are not known.
        far: The others, which rounding does not explain; None likewise.
        far_share: Their share; None likewise.
    """

    pixels: int
    share: float | None
    near_tie: int | None
    far: int | None
    far_share: float | None


@dataclass(frozen=True, kw_only=True)
class FlipPair:
    """Flips from one class to another.

    Attributes:
        reference: Class in the reference's mask.
        engine: Class in the engine's mask.
        pixels: Number of flipped pixels.
        far: Those not near a tie; None where the reference's logits are not known.
    """

    reference: str
    engine: str
    pixels: int
    far: int | None


@dataclass(frozen=True, kw_only=True)
class ImageFigures:
    """How one image compares; fractions in 0-1.

    Attributes:
        name: Name of the sample.
        index: Its place among the samples, from 0.
        pixel_agreement: Share of pixels with the same class; None where no pixel was compared.
        flips: Pixels with another class.
        far: Those not near a tie; None where the reference's logits are not known.
    """

    name: str
    index: int
    pixel_agreement: float | None
    flips: int
    far: int | None


@dataclass(frozen=True, kw_only=True)
class MaskFigures:
    """Figures over all images, fractions in 0-1; None where they cannot be computed.

    Attributes:
        pixel_agreement: Share of pixels with the same class.
        miou_between: mIoU of the engine's masks against the reference's.
        miou_reference: mIoU of the reference against the labels.
        miou_engine: mIoU of the engine against the labels.
        tie_share: Share of the disagreeing pixels that are near a tie in the reference.
        per_class_iou: IoU of the engine against the labels, by class name.
        images: Number of images compared.
        per_class_between: IoU of the engine's masks against the reference's, by class name.
        per_class_reference: IoU of the reference against the labels, by class name.
        boundary_between: Boundary F-score of the engine's masks against the reference's, mean over classes.
        boundary_reference: Boundary F-score of the reference against the labels.
        boundary_engine: Boundary F-score of the engine against the labels.
        per_class_boundary: Boundary F-score of the engine's masks against the reference's, by class name.
        boundary_tolerance_px: Distance up to which two outlines are the same.
        flips: Pixels that differ, and how many of them no near tie excuses.
        flip_pairs: Classes between which most pixels flipped.
        worst_images: The images with the lowest agreement, the worst first; none without a flip.
        border_agreement: Share of equal pixels within `boundary_tolerance_px` of the reference's borders.
        border_pixels: Number of those pixels.
        per_class_pixels: Pixels that the reference's masks give each class, by class name; None in records of before.
        per_class_labelled: Labelled pixels of each class, by class name; None without labels.
        unknown_pixels: Pixels to which the engine gives an index that no class has; they count as flips.
        confidence_difference: Mean difference of the engine's confidence from the reference's, 0-1; None where the
            engine does not give it, or the reference does not know it.
        warnings: What speaks against these figures and fails no gate: signs that the reference itself draws nothing,
            and what was warned of the images that were calibrated on.
    """

    pixel_agreement: float | None
    miou_between: float | None
    miou_reference: float | None
    miou_engine: float | None
    tie_share: float | None
    per_class_iou: dict[str, float | None] | None
    images: int
    per_class_between: dict[str, float | None]
    per_class_reference: dict[str, float | None] | None
    boundary_between: float | None
    boundary_reference: float | None
    boundary_engine: float | None
    per_class_boundary: dict[str, float | None]
    boundary_tolerance_px: int
    flips: Flips
    flip_pairs: tuple[FlipPair, ...]
    worst_images: tuple[ImageFigures, ...]
    border_agreement: float | None = None
    border_pixels: int = 0
    per_class_pixels: dict[str, int] | None = None
    per_class_labelled: dict[str, int] | None = None
    unknown_pixels: int = 0
    confidence_difference: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def miou_drop(self) -> float | None:
        """Loss of mIoU against the labels, or None without labels."""
        if self.miou_reference is None or self.miou_engine is None:
            return None
        return self.miou_reference - self.miou_engine

    @property
    def class_iou(self) -> NamedFigure | None:
        """The lowest IoU between engine and reference of a class that is judged alone; None where there is none."""
        between = {name: iou for name, iou in self.per_class_between.items() if iou is not None}
        return min(_judged_alone(between, self.per_class_pixels or {}), key=itemgetter(1), default=None)

    @property
    def class_drop(self) -> NamedFigure | None:
        """The largest loss of IoU against labels of a class that is judged alone; None without labels."""
        before, after = self.per_class_reference or {}, self.per_class_iou or {}
        drops = {
            name: old - new for name, old in before.items() if old is not None and (new := after.get(name)) is not None
        }
        return max(_judged_alone(drops, self.per_class_labelled or {}), key=itemgetter(1), default=None)

    @property
    def judged(self) -> Judged:
        """The figures that gates judge."""
        return Judged(
            agreement=self.pixel_agreement,
            miou_drop=self.miou_drop,
            class_iou=self.class_iou,
            class_drop=self.class_drop,
            border_agreement=self.border_agreement,
            boundary_f=self.boundary_between,
            confidence_difference=self.confidence_difference,
        )


def _judged_alone(figures: Mapping[str, float], pixels: Mapping[str, int]) -> Iterator[NamedFigure]:
    """Yield the figures of the classes that have enough pixels."""
    least = max(CLASS_PIXELS, CLASS_SHARE * sum(pixels.values()))
    return ((name, figure) for name, figure in figures.items() if pixels.get(name, 0) >= least)


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """How one stage of a network compares with the same stage of the checkpoint.

    Attributes:
        stage: Name of the stage.
        error: Error of the whole tensor as a share; of the mask the share of pixels that differ; None where a value is
            not finite.
        tolerance: Largest error allowed.
        worst_channel: Channel with the largest error; None for the mask.
        worst_channel_error: Its error.
        channel_tolerance: Largest error allowed of a channel.
        max_abs: Largest difference of a value; None for the mask.
        not_finite: Number of values that are NaN or infinite.
        within: Whether every tolerance holds.
    """

    stage: str
    error: float | None
    tolerance: float
    worst_channel: int | None = None
    worst_channel_error: float | None = None
    channel_tolerance: float | None = None
    max_abs: float | None = None
    not_finite: int = 0
    within: bool


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """The stages in order, and where the first goes wrong.

    Attributes:
        first_beyond: The first stage beyond its tolerance; ``"plan"`` where only the plan's masks are; None where all
            are within.
        hints: What the difference looks like, where that is known.
        arithmetic: Arithmetic of the file's run: ``"native"``, ``"simulated"`` or ``"tf32"``.
        note: What was run, as a sentence.
        images: Names of the images compared.
        stages: Figures of every stage that the network has.
    """

    first_beyond: str | None
    hints: tuple[str, ...]
    arithmetic: str
    note: str
    images: tuple[str, ...]
    stages: tuple[StageFigures, ...]


@dataclass(frozen=True, kw_only=True)
class RangeFigures:
    """How well a range of a file holds an activation, beside the one that loses least on the images compared.

    Attributes:
        tensor: Name of the activation.
        held: Range that the file holds.
        measured: Range that was measured anew.
        loss: What the range held loses, as a multiple of what the one measured does.
        allowed: Largest multiple allowed.
    """

    tensor: str
    held: float
    measured: float
    loss: float
    allowed: float


@dataclass(frozen=True, kw_only=True)
class SoundComparison:
    """A bundle's file and files derived anew from its checkpoint; every stage with the largest error allowed there.

    Attributes:
        images: Names of the images compared; in 8 bits those that excite the network, where there are any.
        exported: The fp32 file exported anew, against PyTorch: whether this installation is right.
        sound: A file of the bundle's precision derived anew, in 8 bits with ranges measured on these images, likewise.
        bundle: The bundle's file against PyTorch; what is allowed is a multiple of what the sound file shows. It and
            `sound` are empty where no image excites the network enough to judge 8 bits.
        twin: The bundle's file against one derived anew with its own ranges; empty where none can be derived.
        ranges: Those of the file that lose most beside ranges measured anew; empty where nothing is in 8 bits.
        note: What could not be compared or judged, and why; empty where everything was.
        failures: One line per comparison that is beyond what is allowed.
    """

    images: tuple[str, ...]
    exported: tuple[StageFigures, ...]
    sound: tuple[StageFigures, ...]
    bundle: tuple[StageFigures, ...]
    twin: tuple[StageFigures, ...]
    ranges: tuple[RangeFigures, ...]
    note: str
    failures: tuple[str, ...]

    @property
    def mask_allowed(self) -> float | None:
        """Largest share of pixels that may differ in the bundle's masks of these images; None where it is not known."""
        return next((figures.tolerance for figures in self.bundle if figures.stage == "mask"), None)


@dataclass(frozen=True, kw_only=True)
class Rebuilds:
    """How alike several builds of one file are.

    Attributes:
        builder: What built them; for ``"onnxruntime"`` a build is a session and there is no plan.
        version: Version of the builder.
        builds: Number of builds.
        plans: SHA-256 of each plan; empty without plans.
        same_as_bundle: How many of the plans are the bundle's, byte for byte; None without plans.
        types_found: Layers by type of each build; empty without plans.
        images: How many images the masks were drawn of; 0 where the plans cannot run here.
        agreement: Smallest share of equal pixels between the first build and another; None likewise.
        note: What was and was not run, as a sentence.
        distinct_plans: Number of different plans.
    """

    builder: str
    version: str | None
    builds: int
    plans: tuple[str, ...]
    same_as_bundle: int | None
    types_found: tuple[dict[str, int], ...]
    images: int
    agreement: float | None
    note: str
    distinct_plans: int

    def failure(self, min_agreement: float) -> str | None:
        """Return one line where two builds draw different masks, or do not have the same types."""
        if self.agreement is not None and not self.agreement >= min_agreement:
            return f"builds of one file agree on {self.agreement:.6f} of the pixels, at least {min_agreement} needed"
        if any(found != self.types_found[0] for found in self.types_found):
            return "builds of one file have layers of different types"
        return None


@dataclass(frozen=True, kw_only=True)
class StructureRecord:
    """A bundle's file compared with its checkpoint and the recorded choices, before any image is looked at.

    Attributes:
        compared: ``"whole"``: node by node with a file derived anew; ``"layers"``: with PyTorch's network alone, where
            another version of the exporter or of its libraries wrote the file.
        checked: How many things of each kind were compared.
        differences: One line per difference, named after the layer, at most 50; empty for a sound file.
        not_provable: What could not be compared, each with the reason.
        found: Number of differences, also of those beyond the 50.
    """

    compared: str
    checked: dict[str, int]
    differences: tuple[str, ...]
    not_provable: tuple[str, ...]
    found: int

    @classmethod
    def of(
        cls, compared: str, checked: dict[str, int], differences: Iterable[str], not_provable: Iterable[str]
    ) -> StructureRecord:
        """Return the record of all differences, each once; those of another network flood."""
        lines = tuple(dict.fromkeys(differences))
        return cls(
            compared=compared,
            checked=checked,
            differences=lines[:_KEPT_DIFFERENCES],
            not_provable=tuple(not_provable),
            found=len(lines),
        )

    def failures(self) -> list[str]:
        """Return the first differences, one line each, and how many more there are."""
        lines = [f"structure: {line}" for line in self.differences[:_SHOWN_DIFFERENCES]]
        more = self.found - _SHOWN_DIFFERENCES
        return [*lines, *([f"structure: {more} more differences"] if more > 0 else [])]


@dataclass(frozen=True, kw_only=True)
class ValidationRecord(MaskFigures):
    """The comparison of an engine with its reference, and the verdict.

    Attributes:
        runner: Backend that drew the engine's masks.
        arithmetic: ``"native"``, ``"simulated"`` or ``"tf32"``.
        reference: What drew the reference: ``"torch"``, ``"onnx"`` or ``"stored"``.
        samples: What was compared on, in words.
        plan_ran: Whether the plan itself ran; `runner` says what did where it was built and did not.
        checkpoint_matches: Whether the checkpoint compared with is the bundle's; None without a checkpoint.
        precision_asked: What the file says that it is typed in; None where that was not looked at.
        precision_found: Number of convolutions by the type of their weights in the file; None likewise.
        gates: What the figures must reach.
        failures: One line per gate that does not hold.
        passed: Whether every gate holds for the masks of `runner`.
        localisation: Where the stages part from the checkpoint's, where that was asked for; None in a bundle.
        rebuilds: Builds of the same file, likewise.
        structure: The file compared with the checkpoint; None without a checkpoint, and where it was not asked for. A
            bundle has that of its own export.
        soundness: The file beside sound ones, where a checkpoint was given to `nrd_trt.validate`; None in a bundle.
    """

    runner: str
    arithmetic: str
    reference: str
    samples: str
    plan_ran: bool
    checkpoint_matches: bool | None
    precision_asked: str | None
    precision_found: dict[str, int] | None
    gates: Gates
    failures: tuple[str, ...]
    passed: bool
    localisation: Localisation | None = None
    rebuilds: Rebuilds | None = None
    structure: StructureRecord | None = None
    soundness: SoundComparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        values: dict[str, Any] = json_values(self)
        values |= {"class_iou": json_values(self.class_iou), "class_drop": json_values(self.class_drop)}
        return values


@dataclass(frozen=True, kw_only=True)
class Parity:
    """An exported file against PyTorch in fp32.

    Attributes:
        max_abs: Largest difference of a logit; its last digits depend on the number of threads. None where one is not
            finite, and in bundles since 0.2, which do not record it.
        agreement: Share of mask pixels that agree, 0-1.
        arithmetic: ``"native"``, ``"simulated"`` or ``"tf32"``.
        failures: Gates that do not hold; empty when the file passed.
    """

    max_abs: float | None
    agreement: float
    arithmetic: str
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return not self.failures
