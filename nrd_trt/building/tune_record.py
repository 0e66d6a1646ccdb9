"""What came of a run of `nrd-trt tune`, and the files that tell of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nrd_trt.building.ladder_plot import can_plot, write_ladder
from nrd_trt.engine.bundle import Bundle
from nrd_trt.figures import Gates
from nrd_trt.files import atomic_file


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came of it.

    Attributes:
        rungs: Every rung that was tried: ``{name, precision, int8_layers, pixel_agreement, miou_engine, miou_drop,
            latency_ms, rejected}``; `rejected` lists the reasons and is empty for the winner.
        sensitivity: ``{layer: share of the pixels that change with this layer alone in int8}``.
        winner: Name of the rung that won, or None.
        gates: What the rungs had to hold.
        calibrated_on_data: Whether ranges were measured on the very images that the rungs were judged on.
        bundle: Of the winner.
    """

    rungs: list[dict[str, Any]]
    sensitivity: dict[str, float]
    winner: str | None
    gates: Gates
    calibrated_on_data: bool = False
    bundle: Bundle | None = field(default=None, repr=False)

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
            "rungs": self.rungs,
            "sensitivity": self.sensitivity,
            "winner": self.winner,
            "gates": asdict(self.gates),
            "calibrated_on_data": self.calibrated_on_data,
            "passed": not self.failures,
            "failures": self.failures,
        }


def record_paths(output: Path) -> list[Path]:
    """Return ``NAME.tune.json`` beside a bundle, and ``NAME.tune.png`` where Matplotlib is installed."""
    return [output.with_suffix(f".tune.{kind}") for kind in (("json", "png") if can_plot() else ("json",))]


def write_record(tuned: Tuned, output: Path) -> list[str]:
    """Write the files of `record_paths`, replacing what is there; return their paths."""
    record, *pictures = record_paths(output)
    with atomic_file(record) as temporary:
        temporary.write_text(json.dumps(tuned.to_dict(), indent=1) + "\n", encoding="utf-8")
    for picture in pictures:
        write_ladder(
            picture, tuned.rungs, tuned.sensitivity, winner=tuned.winner, min_agreement=tuned.gates.min_agreement
        )
    return [str(record), *map(str, pictures)]


def describe(record: Mapping[str, Any]) -> str:
    """Return one line on a rung: its figures, and why it was rejected."""
    parts = [f"agreement {record['pixel_agreement']:.6f}"]
    if record["miou_drop"] is not None:
        parts.append(f"mIoU {record['miou_engine']:.4f} (drop {record['miou_drop']:+.4f})")
    if record["latency_ms"] is not None:
        parts.append(f"{record['latency_ms']:.3f} ms")
    verdict = "; ".join(record["rejected"])
    return f"{record['name']}: {', '.join(parts)}: {'rejected: ' + verdict if verdict else 'holds'}"
