"""The output of a job and what it keeps there to go on after any end: ``_nrd_batch/`` beside the masks.

A batch is done when its marker in ``commits/`` stands; masks come before it. ``job.json`` names the run that may write:
the workers of an earlier one, which may outlive a killed program for a while, find another name there and stop.
"""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from nrd_trt.batch.sources import is_tree
from nrd_trt.errors import BatchError, ConfigError
from nrd_trt.files import atomic_file, sha256_bytes
from nrd_trt.json_files import read_json
from nrd_trt.optional import require

Kind = TypeVar("Kind")

STATE, FAILURES, CONFIDENCE = "_nrd_batch", "_failures.jsonl", "_confidence.jsonl"
"""Readers of Parquet folders pass over names with this first letter."""


class Confidence(msgspec.Struct, frozen=True, array_like=True):
    """How sure the network is of the mask of an image, in 0-1.

    Attributes:
        mean: Mean over the pixels.
        low_share: Share of the pixels below `Terms.low_confidence`.
    """

    mean: float
    low_share: float


class _Mark(msgspec.Struct, frozen=True, array_like=True):
    """What a marker keeps of an outcome; earlier ones have no confidence."""

    path: str
    error: str | None
    confidence: Confidence | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one image.

    Attributes:
        path: What the source calls it.
        name: Path of its mask in a tree, without the suffix.
        mask_png: The mask as an index PNG; None where it failed.
        error: Why it failed; None where it did not.
        class_share: Share of the pixels of each class, in 0-1; None where it failed.
        confidence: How sure the network is; None where it failed, and where the bundle does not tell.
    """

    path: str
    name: str
    mask_png: bytes | None = None
    error: str | None = None
    class_share: tuple[float, ...] | None = None
    confidence: Confidence | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What must be the same where a job goes on.

    Attributes:
        sources: As they were given, paths absolute.
        bundle_sha256: SHA-256 of ``bundle.json``, which holds the hashes of all other files.
        low_confidence: Below it, in 0-1, a pixel's confidence is low; None where the bundle gives no confidence.
    """

    sources: tuple[str, ...]
    bundle_sha256: str
    low_confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image without a mask, and why."""

    path: str
    error: str


@dataclass(frozen=True, kw_only=True)
class _Record:
    terms: Terms
    run: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of a job; workers on other machines have it as well, and see `output` under the same path.

    Attributes:
        output: Folder of masks, or of Parquet parts where its name ends with ``.parquet``.
        terms: What it began with.
        run: Random name of this run.
    """

    output: Path
    terms: Terms
    run: str

    def commit(self, outcomes: Sequence[Outcome]) -> None:
        """Write the masks of a batch and mark it as done; a batch that is marked already is left as it is.

        Raises:
            BatchError: Nothing can be written, e.g. for lack of space, or a later run has taken over.
        """
        marker = self._marker([outcome.path for outcome in outcomes])
        with _writing(self.output), _locked(self.output, fcntl.LOCK_SH):
            if _recorded(self.output).run != self.run:
                raise BatchError(f"{self.output}: another run of this job has taken over; this one stops.")
            if marker.exists():
                return
            if is_tree(self.output):
                for outcome in outcomes:
                    self._write_mask(outcome)
            else:
                self._write_part(f"part-{marker.stem}.parquet", outcomes)
            marks = [_Mark(outcome.path, outcome.error, outcome.confidence) for outcome in outcomes]
            self._write(marker, msgspec.json.encode(marks))

    def is_marked(self, paths: Sequence[str]) -> bool:
        """Whether the batch of these images is done."""
        return self._marker(paths).exists()

    def finish(self) -> tuple[int, tuple[Failure, ...]]:
        """Return how many images are done in all, and those that failed.

        These go to ``_failures.jsonl``, and how sure the network is of the others to ``_confidence.jsonl``.
        """
        done = {mark.path: mark for mark in _marks(self.output)}
        marks = [done[path] for path in sorted(done)]
        failed = tuple(Failure(path=mark.path, error=mark.error) for mark in marks if mark.error is not None)
        with _writing(self.output):
            self._write_lines(FAILURES, failed)
            if self.terms.low_confidence is not None:
                sure = [(mark.confidence, mark.path) for mark in marks if mark.confidence is not None]
                sure.sort(key=lambda one: one[0].mean)
                rows = [{"path": path, "mean": each.mean, "low_share": each.low_share} for each, path in sure]
                self._write_lines(CONFIDENCE, rows)
        return len(done), failed

    def _write_lines(self, name: str, rows: Sequence[object]) -> None:
        self._write(self.output / name, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))

    def _marker(self, paths: Sequence[str]) -> Path:
        return _commits(self.output) / f"{sha256_bytes(msgspec.json.encode(paths))[:32]}.json"

    def _write_mask(self, outcome: Outcome) -> None:
        if outcome.mask_png is not None:
            target = self.output / f"{outcome.name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            self._write(target, outcome.mask_png)

    def _write_part(self, name: str, outcomes: Sequence[Outcome]) -> None:
        arrow = require("pyarrow", extra="batch", purpose="writing Parquet")
        parquet = require("pyarrow.parquet", extra="batch", purpose="writing Parquet")
        text = arrow.string()
        columns = {
            "path": arrow.array([outcome.path for outcome in outcomes], text),
            "mask_png": arrow.array([outcome.mask_png for outcome in outcomes], arrow.binary()),
            "error": arrow.array([outcome.error for outcome in outcomes], text),
            "bundle_sha256": arrow.array([self.terms.bundle_sha256] * len(outcomes), text),
            "class_share": arrow.array([outcome.class_share for outcome in outcomes], arrow.list_(arrow.float32())),
        }
        if self.terms.low_confidence is not None:
            sure = [outcome.confidence for outcome in outcomes]
            columns["confidence_mean"] = arrow.array([one and one.mean for one in sure], arrow.float32())
            columns["low_confidence_share"] = arrow.array([one and one.low_share for one in sure], arrow.float32())
        with atomic_file(self.output / name, beside=_beside(self.output)) as temporary:
            # PNG is compressed already.
            parquet.write_table(arrow.table(columns), str(temporary), compression="NONE")

    def _write(self, path: Path, data: bytes) -> None:
        with atomic_file(path, beside=_beside(self.output)) as temporary:
            temporary.write_bytes(data)


def begin(output: Path, terms: Terms, *, resume: bool) -> Job:
    """Begin a job, or a further run of it; workers of earlier runs write nothing from here on.

    Raises:
        ConfigError: `output` is not empty and `resume` is off, or it holds something else than a job.
        BatchError: The job began with another bundle or other sources, or nothing can be written.
    """
    check_target(output, terms, resume=resume)
    job = Job(output=output, terms=terms, run=secrets.token_hex(8))
    with _writing(output):
        for folder in (_commits(output), _beside(output).parent):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(output, fcntl.LOCK_EX):
            job._write(output / STATE / "job.json", msgspec.json.encode(_Record(terms=terms, run=job.run)))
        marked = {path.stem for path in _commits(output).iterdir()}
        for part in output.glob("part-*.parquet"):  # of a run that was killed before the marker
            if part.stem.removeprefix("part-") not in marked:
                part.unlink()
    return job


def committed(output: Path) -> dict[str, str | None]:
    """Return the images that are done, by path, each with the error that it ended with, or None.

    Raises:
        BatchError: A marker is damaged.
    """
    return {mark.path: mark.error for mark in _marks(output)}


def _marks(output: Path) -> Iterator[_Mark]:
    for marker in _commits(output).glob("*.json"):
        yield from _decoded(marker, list[_Mark])


def check_target(output: Path, terms: Terms, *, resume: bool) -> None:
    """Raise what `begin` raises without writing anything."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: expected a folder or a new name, got a file; choose another name.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / STATE).is_dir():
        raise ConfigError(f"{output}: exists and is no output of a job; choose another name.")
    if not resume:
        raise ConfigError(f"{output}: already exists; give resume=True to go on with it, or choose another name.")
    if (output / STATE / "job.json").exists():
        _check_same(output, _recorded(output).terms, terms)


def _check_same(output: Path, began: Terms, now: Terms) -> None:
    if began.bundle_sha256 != now.bundle_sha256:
        raise BatchError(
            f"{output}: the job began with the bundle {began.bundle_sha256[:12]}…, got {now.bundle_sha256[:12]}…; "
            "give that one, or another output."
        )
    if began.sources != now.sources:
        raise BatchError(
            f"{output}: the job began with the sources {', '.join(began.sources)}, got {', '.join(now.sources)}; "
            "give those, or another output."
        )
    if began.low_confidence != now.low_confidence:
        raise BatchError(
            f"{output}: the job began with low_confidence={began.low_confidence}, got {now.low_confidence}; give that, "
            "or another output."
        )


def _commits(output: Path) -> Path:
    return output / STATE / "commits"


def _beside(output: Path) -> Path:
    """Return where temporary files lie: in a folder of their own, which is quickly searched for those of the dead."""
    return output / STATE / "writing" / "file"


def _recorded(output: Path) -> _Record:
    return _decoded(output / STATE / "job.json", _Record)


def _decoded(path: Path, kind: type[Kind]) -> Kind:
    try:
        return read_json(path, kind)
    except (OSError, ValueError) as exc:
        raise BatchError(f"{path}: cannot be read ({exc}); remove it, and what it marks is done again.") from exc


@contextmanager
def _locked(output: Path, how: int) -> Iterator[None]:
    with (output / STATE / "lock").open("a+b") as file:
        fcntl.flock(file, how)
        yield


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Raise what the file system says against writing as `BatchError`."""
    try:
        yield
    except OSError as exc:
        raise BatchError(
            f"{output}: cannot be written ({exc}); free some space or check the permissions, and go on with "
            "resume=True. What is written stays."
        ) from exc
