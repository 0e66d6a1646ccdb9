"""What came of a ladder, and the files that tell of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nrd_trt.engine.bundle import Bundle
from nrd_trt.files import atomic_file
from nrd_trt.gates import Gates
from nrd_trt.optimization.ladder_plot import can_plot, write_ladder
from nrd_trt.optimization.rungs import Rung


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


def state_path(output: Path) -> Path:
    """Return where the state of a run lies that writes `output`."""
    return output.with_name(output.name + ".tune-state.json")
