"""What came of a search, and the files that tell of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nrd_trt.engine.bundle import Bundle
from nrd_trt.files import atomic_file
from nrd_trt.optimization.candidates import Budget, Candidate
from nrd_trt.optimization.ladder_plot import can_plot
from nrd_trt.optimization.pareto_plot import write_pareto
from nrd_trt.optimization.search_folder import SearchFolder
from nrd_trt.specs import Target


@dataclass(frozen=True, kw_only=True)
class Optimized:
    """What came of a search.

    Attributes:
        candidates: All of them, the one with fewest multiply-adds first.
        front: Names of those that no other one beats in latency and mIoU at once, the fastest first.
        chosen: Name of the winner; None where nothing keeps to the budget.
        budget: What the winner had to keep to.
        timed: Where latencies come from: ``"cpu"`` and ``"plans"`` are runs on this machine, ``"device"`` a file;
            ``"none"`` where candidates were exported to be timed.
        target: What int8 files are made for.
        calibrated_on_data: Whether ranges were measured on the images that candidates were judged on.
        bundle: The winner's bundle, or None.
        exported: Folder of the bundles to time, or None.
        files: The record, and its picture where there is something to show and Matplotlib is installed.
    """

    candidates: tuple[Candidate, ...]
    front: tuple[str, ...]
    chosen: str | None
    budget: Budget
    timed: str
    target: Target
    calibrated_on_data: bool
    bundle: Bundle | None = field(default=None, repr=False)
    exported: Path | None = None
    files: tuple[Path, ...] = ()

    @property
    def failures(self) -> list[str]:
        """Why nothing was chosen, how close one can get and what would have to give; empty where something was."""
        done = self.chosen is not None or self.exported is not None
        return [] if done else self.budget.shortfall(self.candidates)

    @property
    def bundles(self) -> list[str]:
        """Names of the candidates whose bundle was built."""
        return [one.name for one in self.candidates if one.onnx_sha256 is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.bundle.path) if self.bundle else None,
            "files": [str(file) for file in self.files],
            "exported": None if self.exported is None else str(self.exported),
            **self._content(),
        }

    def _content(self) -> dict[str, Any]:
        """Return what does not tell places."""
        return {
            "candidates": [one.to_dict() for one in self.candidates],
            "front": list(self.front),
            "chosen": self.chosen,
            "budget": dict(vars(self.budget)),
            "timed": self.timed,
            "target": self.target,
            "calibrated_on_data": self.calibrated_on_data,
            "passed": not self.failures,
            "failures": self.failures,
        }

    def write(self, folder: SearchFolder) -> None:
        """Write the record and the picture, replacing what is there."""
        content: Mapping[str, Any] = self._content()
        with atomic_file(folder.record) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        folder.picture.unlink(missing_ok=True)
        for picture in self.files[1:]:
            write_pareto(picture, self.candidates, self.front, self.chosen, self.budget)


def record_files(folder: SearchFolder, candidates: Iterable[Candidate]) -> tuple[Path, ...]:
    """Return the files that `Optimized.write` writes: no picture where none could be ranked, or without Matplotlib."""
    shown = can_plot() and any(one.ranked for one in candidates)
    return (folder.record, *([folder.picture] if shown else []))
