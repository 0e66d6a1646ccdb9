"""What is measured of one network at one size: steps, those that were tried, and the state that keeps both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from nrd_trt.errors import ConfigError
from nrd_trt.files import atomic_file
from nrd_trt.gates import Judged, NamedFigure
from nrd_trt.json_files import read_json
from nrd_trt.specs import Precision


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the ladder, before it was tried.

    Attributes:
        name: ``int8``, ``int8 without N layers``, ``fp16`` or ``fp32``.
        precision: Precision of the file.
        layers: Layers in int8.
    """

    name: str
    precision: Precision
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rung(Step):
    """A step that was tried.

    Attributes:
        int8_layers: Number of layers in int8.
        pixel_agreement: Share of pixels that PyTorch draws alike, 0-1; None where no pixel was compared.
        miou_engine: mIoU against the labels; None without labels.
        miou_drop: Loss of mIoU against PyTorch; None without labels.
        latency_ms: Median milliseconds of a call; None where nothing was timed.
        rejected: Why it does not hold; empty for the winner.
        class_iou: The class with the lowest IoU with PyTorch's masks, and that IoU; None where all are rare.
        class_drop: The class that loses most IoU against the labels, and how much; None without labels.
        border_agreement: Share of equal pixels near the borders of PyTorch's masks; None where there are none.
        boundary_f: Boundary F-score with PyTorch's masks; None likewise.
        warnings: Why agreement proves nothing here: signs that PyTorch's masks show nothing.
    """

    int8_layers: int
    pixel_agreement: float | None
    miou_engine: float | None
    miou_drop: float | None
    latency_ms: float | None
    rejected: tuple[str, ...] = ()
    class_iou: NamedFigure | None = None
    class_drop: NamedFigure | None = None
    border_agreement: float | None = None
    boundary_f: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def judged(self) -> Judged:
        """The figures that gates judge."""
        return Judged(
            agreement=self.pixel_agreement,
            miou_drop=self.miou_drop,
            class_iou=self.class_iou,
            class_drop=self.class_drop,
            border_agreement=self.border_agreement,
            boundary_f=self.boundary_f,
        )

    def __str__(self) -> str:
        """Return one line with the figures, and why it was rejected."""
        parts = ["agreement not measured" if self.pixel_agreement is None else f"agreement {self.pixel_agreement:.6f}"]
        if self.miou_drop is not None:
            parts.append(f"mIoU {self.miou_engine:.4f} (drop {self.miou_drop:+.4f})")
        if self.latency_ms is not None:
            parts.append(f"{self.latency_ms:.3f} ms")
        verdict = f"rejected: {'; '.join(self.rejected)}" if self.rejected else "holds"
        verdict += f"; WARNING: {'; '.join(self.warnings)}" if self.warnings else ""
        return f"{self.name}: {', '.join(parts)}: {verdict}"


@dataclass(kw_only=True)
class RungState:
    """What a run has measured so far; every addition is on disk before it is used.

    Attributes:
        key: What the figures belong to.
        sensitivity: Share of the pixels that change, by layer.
        rungs: Rungs that were tried, by name, before they were judged.
    """

    key: str
    sensitivity: dict[str, float] = field(default_factory=dict)
    rungs: dict[str, Rung] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the state."""
        with atomic_file(path) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))


def open_state(path: Path, key: str, *, resume: bool) -> RungState:
    """Start a state, or go on from the one that is there.

    Raises:
        ConfigError: The file to go on from is damaged or belongs to another network, other images or options.
    """
    if not resume or not path.exists():
        return RungState(key=key)
    try:
        state = read_json(path, RungState)
    except ValueError as exc:
        raise ConfigError(f"{path}: not a state of a search ({exc}); start again without resume=True.") from exc
    if state.key != key:
        raise ConfigError(
            f"{path}: expected the state of this checkpoint, these images and options, got that of others; "
            "give the same ones, or start again without resume=True."
        )
    return state
