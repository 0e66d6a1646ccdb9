"""What a ladder has measured: its steps and rungs, the state that a run goes on from, and the files that tell of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from nrd_trt.building.ladder_plot import can_plot, write_ladder
from nrd_trt.engine.bundle import Bundle
from nrd_trt.errors import ConfigError
from nrd_trt.files import atomic_file
from nrd_trt.gates import Gates, Judged, NamedFigure
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


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came of a ladder.

    Attributes:
        rungs: Every rung that was tried, from the bottom up.
        sensitivity: Share of the pixels that change with one layer alone in int8, by layer; empty where that was not
            measured, because int8 everywhere holds.
        winner: Name of the rung that won, or None.
        gates: What the rungs in int8 had to hold; those in fp16 and fp32 hold the gates of their precision where these
            are stricter.
        calibrated_on_data: Whether ranges were measured on the images that the rungs were judged on.
        files: The record, and its picture where Matplotlib is installed.
        bundle: Bundle of the winner, or None.
    """

    rungs: tuple[Rung, ...]
    sensitivity: dict[str, float]
    winner: str | None
    gates: Gates
    calibrated_on_data: bool
    files: tuple[Path, ...] = ()
    bundle: Bundle | None = field(default=None, repr=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why agreement proves nothing here, each sign once; empty for a network that draws something."""
        return tuple(dict.fromkeys(line for rung in self.rungs for line in rung.warnings))

    @property
    def failures(self) -> list[str]:
        """What did not hold, in words; empty where the winner's bundle passed."""
        if self.bundle is None:
            return ["no rung of the ladder holds the gates; the record says why"]
        found = "; ".join(self.bundle.failures)
        return [f"{self.winner} holds the gates of the ladder, its bundle does not: {found}"] if found else []

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.bundle.path) if self.bundle else None,
            "files": [str(file) for file in self.files],
            "warnings": list(self.warnings),
            "rungs": [asdict(rung) for rung in self.rungs],
            "sensitivity": self.sensitivity,
            "winner": self.winner,
            "gates": asdict(self.gates),
            "calibrated_on_data": self.calibrated_on_data,
            "passed": not self.failures,
            "failures": self.failures,
        }


def record_paths(output: Path) -> tuple[Path, ...]:
    """Return ``NAME.tune.json`` beside a bundle, and ``NAME.tune.png`` where Matplotlib is installed."""
    return tuple(output.with_suffix(f".tune.{kind}") for kind in (("json", "png") if can_plot() else ("json",)))


def write_tuned(tuned: Tuned) -> None:
    """Write the files of a run, replacing what is there."""
    record, *pictures = tuned.files
    content = {name: value for name, value in tuned.to_dict().items() if name not in ("path", "files")}  # no places
    with atomic_file(record) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for picture in pictures:
        differing = [(rung.name, 1.0 - (rung.pixel_agreement or 0.0), rung.miou_drop) for rung in tuned.rungs]
        allowed = 1.0 - tuned.gates.min_agreement
        write_ladder(
            picture,
            differing,
            tuned.sensitivity,
            winner=tuned.winner,
            allowed=allowed,
            warnings=tuned.warnings,
        )


@dataclass(kw_only=True)
class TuneState:
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


def state_path(output: Path) -> Path:
    """Return where the state of a run lies that writes `output`."""
    return output.with_name(output.name + ".tune-state.json")


def open_state(path: Path, key: str, *, resume: bool) -> TuneState:
    """Start a state, or go on from the one that is there.

    Raises:
        ConfigError: The file to go on from is damaged or belongs to another network, other images or options.
    """
    if not resume or not path.exists():
        return TuneState(key=key)
    try:
        state = read_json(path, TuneState)
    except ValueError as exc:
        raise ConfigError(f"{path}: not a state of nrd_trt.tune ({exc}); start again without resume=True.") from exc
    if state.key != key:
        raise ConfigError(
            f"{path}: expected the state of this checkpoint, these images and options, got that of others; "
            "give the same ones, or start again without resume=True."
        )
    return state
