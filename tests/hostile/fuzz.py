"""Runs hostile files through every loader; `python -m tests.hostile` does so for long. Nothing here asserts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.hostile.loaders import LOADERS, Read
from tests.hostile.sandbox import SECONDS, Outcome, run

_OF_LIBRARIES = ("Microsoft", ".ses")
"""Files that ONNX Runtime writes into the folder for temporary ones, whatever it is given."""


@dataclass(kw_only=True)
class Score:
    """What came of the cases of one loader.

    Attributes:
        endings: Number of cases by how they ended.
        peak_mib: The most memory that one took.
        found: How those ended that failed.
    """

    endings: Counter[str] = field(default_factory=Counter)
    peak_mib: int = 0
    found: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one case."""
        self.endings[outcome.ending] += 1
        self.peak_mib = max(self.peak_mib, outcome.peak_mib)
        if outcome.defect:
            self.found.append(outcome)

    def merge(self, other: Score) -> None:
        """Add the cases of another process."""
        self.endings += other.endings
        self.peak_mib = max(self.peak_mib, other.peak_mib)
        self.found += other.found


def attempt(content: bytes, read: Read, *, seconds: float = SECONDS) -> Outcome:
    """Read content in a process and a folder of its own, and look at what it leaves there."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        (folder / "tmp").mkdir()
        (folder / "in").mkdir()

        def action() -> None:
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
            os.chdir(folder / "tmp")
            read(folder / "in", content)

        outcome = run(action, seconds=seconds)
        left = [path.name for path in (folder / "tmp").iterdir() if path.name not in _OF_LIBRARIES]
        left += [path.name for path in (folder / "in").iterdir() if path.name.startswith(".")]
        if outcome.ending == "refused" and (folder / "in" / "out").exists():
            left.append("out")
        if left and not outcome.defect:
            outcome = replace(outcome, ending="file left", said=f"{left}: {outcome.said}")
        return outcome
    finally:
        shutil.rmtree(folder)


def way_of(name: str, read: Read) -> int:
    """Return the number of a way of a loader."""
    return LOADERS[name].ways.index(read)
