"""The search: cheap figures of every candidate, bundles of those that are left, their latencies and memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nrd_trt.engine.bundle import ONNX_FILE, Bundle
from nrd_trt.errors import BuildError, CalibrationError, ExportError, RunnerError
from nrd_trt.optimization.candidates import Budget, Candidate
from nrd_trt.optimization.ladder import climb, list_steps, lowest
from nrd_trt.optimization.latencies import Clock
from nrd_trt.optimization.rungs import Rung, Step
from nrd_trt.optimization.sieve import Sketch, rule_out
from nrd_trt.optimization.variants import Variants
from nrd_trt.specs import Precision

if TYPE_CHECKING:
    from nrd_trt.training.complexity import Cost

SMALL_SET = 8
"""Images that a candidate is looked at on before its bundle is built."""
_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
OnCandidate = Callable[[Candidate], object]


@dataclass(kw_only=True)
class Entry:
    """A candidate on its way through the search.

    Attributes:
        candidate: What is known of it.
        variants: Its network at its size.
        cost: What an image costs.
        trained: Whether its weights are more than random.
        rung: What the small set showed; None before, and where a mix was not needed or not found.
        bundle: Its bundle; None before it was built.
    """

    candidate: Candidate
    variants: Variants
    cost: Cost
    trained: bool
    rung: Rung | None = None
    bundle: Bundle | None = None

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.candidate.name

    def reject(self, *reasons: str) -> None:
        """Say why it cannot be chosen."""
        self.candidate = replace(self.candidate, rejected=(*self.candidate.rejected, *reasons))


class Search:
    """One search over all entries.

    Args:
        entries: The space, in any order.
        budget: What the winner must keep to.
        clock: Where latencies come from.
        folder: Where bundles are built.
        trials: Build at most this many bundles; None builds all that are left.
        progress: Show bars on stderr.
        on_candidate: Receives every candidate when something was decided about it.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        budget: Budget,
        clock: Clock,
        folder: Path,
        *,
        trials: int | None,
        progress: bool,
        on_candidate: OnCandidate,
    ) -> None:
        self._entries = sorted(entries, key=lambda entry: entry.cost.total)
        self._budget, self._clock, self._folder = budget, clock, folder
        self._trials, self._progress, self._on_candidate = trials, progress, on_candidate

    def run(self) -> list[Entry]:
        """Return the entries with all that was found, the one with fewest multiply-adds first."""
        while True:
            for entry in self._entries:
                self._sketch(entry)
            out = self._ruled_out()
            waiting = [
                entry
                for entry in self._entries
                if entry.rung and not entry.bundle and not entry.candidate.rejected and entry.name not in out
            ]
            if not waiting:
                break
            for entry in sorted(waiting, key=self._promise):  # one that does not hold may have ruled others out
                self._build(entry)
        for entry in self._entries:
            self._conclude(entry, out.get(entry.name))
        self._time()
        for entry in self._entries:
            if entry.candidate.ranked:
                entry.reject(*self._budget.misses(entry.candidate).values())
        return self._entries

    def _sketch(self, entry: Entry) -> None:
        """Look at a candidate on the small set."""
        candidate, variants = entry.candidate, entry.variants
        if entry.rung or candidate.rejected or (candidate.precision == "mixed" and not self._needs_mix(entry)):
            return
        with _quiet(unless=entry.trained):
            rung = self._mixed(entry) if candidate.precision == "mixed" else _tried(candidate.precision, variants)
        if rung is None:
            entry.reject(f"no mix of layers holds its gates on {variants.image_count} images")
        else:
            entry.rung = rung
            quick_ms = rung.latency_ms if self._clock.kind == "cpu" else None
            entry.candidate = replace(candidate, quick_ms=quick_ms)
            if entry.trained:
                entry.candidate = replace(
                    entry.candidate,
                    int8_layers=rung.int8_layers,
                    miou=rung.miou_engine,
                    miou_drop=rung.miou_drop,
                    pixel_agreement=rung.pixel_agreement,
                    images=variants.image_count,
                )
            if (why := self._clock.obstacle(candidate.name, rung)) is not None:
                entry.reject(why)
        self._on_candidate(entry.candidate)

    def _needs_mix(self, entry: Entry) -> bool:
        """Whether int8 everywhere is not in the space, or did not hold."""
        twin = self._twin(entry)
        return twin is None or (twin.rung is not None and not _holds(twin))

    def _twin(self, entry: Entry) -> Entry | None:
        """Return the entry with int8 everywhere of the same network and size."""
        same = (other for other in self._entries if other.variants is entry.variants)
        return next((other for other in same if other.candidate.precision == "int8"), None)

    def _mixed(self, entry: Entry) -> Rung | None:
        """Return the first rung of the ladder that holds its gates on the small set."""
        variants = entry.variants
        gates = variants.request.gates
        rungs: list[Rung] = []
        if self._twin(entry) is None:
            rungs = climb(variants, [lowest(variants.layers)], gates, faster_than=[None])
        if not rungs or rungs[-1].rejected:
            steps = list_steps(variants.layers, variants.sensitivity(), variants.calibrator.target)
            mixes = [step for step in steps[1:] if step.precision == "int8"]
            rungs = climb(variants, mixes, gates, faster_than=[None] * len(mixes))
        return rungs[-1] if rungs and not rungs[-1].rejected else None

    def _ruled_out(self) -> dict[str, str]:
        sketches = [
            self._drawn(entry, entry.rung) for entry in self._entries if entry.rung and not entry.candidate.rejected
        ]
        return rule_out(sketches, self._budget)

    def _drawn(self, entry: Entry, rung: Rung) -> Sketch:
        """Return what cheap figures tell of an entry."""
        precision = entry.candidate.precision
        return Sketch(
            name=entry.name,
            source=entry.candidate.source,
            precision=precision,
            macs=entry.cost.total,
            weight_bytes=entry.cost.parameters * _WEIGHT_BYTES.get(precision, 1),
            activation_bytes=entry.cost.activation_bytes,
            latency_ms=self._clock.guess(entry.name, rung),
            exact=self._clock.kind == "device",
            miou=rung.miou_engine if entry.trained else None,
            holds=_holds(entry),
        )

    def _promise(self, entry: Entry) -> tuple[bool, float]:
        """Sort what may keep to the budget and draws well first."""
        latency_ms = entry.rung and self._clock.guess(entry.name, entry.rung)
        bound = self._budget.max_latency_ms
        return (bool(bound and latency_ms and latency_ms > bound), -(entry.candidate.miou or 0.0))

    def _build(self, entry: Entry) -> None:
        """Build the bundle of an entry, or take the one that an earlier run built; a gate may not hold."""
        if self._trials is not None and sum(other.bundle is not None for other in self._entries) >= self._trials:
            entry.reject(f"trials={self._trials}: others looked better on a few images")
            return
        try:
            with _quiet(unless=entry.trained):
                entry.bundle = _built(entry, self._folder / f"{entry.name}.nrd")
        except (BuildError, CalibrationError, ExportError, RunnerError) as exc:
            entry.reject(f"it cannot be built: {exc}")
            return
        record = entry.bundle.record
        entry.candidate = replace(
            entry.candidate,
            int8_layers=len(record.precision.int8_layers),
            passed=entry.bundle.passed,
            onnx_sha256=record.files[ONNX_FILE],
        )
        if entry.trained:
            entry.candidate = replace(
                entry.candidate,
                miou=record.validation.miou_engine,
                miou_drop=record.validation.miou_drop,
                pixel_agreement=record.validation.pixel_agreement,
                images=record.validation.images,
            )
            entry.reject(*entry.bundle.failures)
        self._on_candidate(entry.candidate)

    def _conclude(self, entry: Entry, ruled_out: str | None) -> None:
        """Say why an entry was not built, or cannot be chosen."""
        twin = self._twin(entry)
        if ruled_out is not None and entry.bundle is None:
            entry.reject(ruled_out)
        elif entry.rung is None and not entry.candidate.rejected and twin is not None:
            whole = "int8 everywhere holds its gates, which leaves nothing to mix"
            entry.reject(whole if _holds(twin) else f"as {twin.name}: {'; '.join(twin.candidate.rejected)}")
        if not entry.trained:
            entry.reject(f"random weights: train it first: nrd_trt.train({entry.candidate.source!r}, 'DATA', 'RUN')")

    def _time(self) -> None:
        """Take the latencies of the bundles that can be ranked, and of random weights; memory where it has a bound."""
        timed = [entry for entry in self._entries if entry.bundle and (entry.candidate.passed or not entry.trained)]
        bundles = {entry.name: entry.bundle for entry in timed if entry.bundle}
        rows = self._clock.rows(bundles, progress=self._progress)
        for entry in timed:
            row = rows.get(entry.name)
            if row is None or row.obstacle is not None:
                entry.reject(*([row.obstacle] if row and row.obstacle else []))
                continue
            latency_ms = row.latency_ms["p50"]
            entry.candidate = replace(entry.candidate, latency_ms=latency_ms, runner=row.runner)
            if self._budget.max_memory_mb is not None:
                memory_mb = self._clock.memory_mb(bundles[entry.name], row)
                entry.candidate = replace(entry.candidate, memory_mb=memory_mb)


def _tried(precision: Precision, variants: Variants) -> Rung:
    """Measure the variant of a precision, unless it was measured before."""
    known = variants.known(precision)
    if known is not None:
        return known
    return variants.tried(lowest(variants.layers) if precision == "int8" else Step(name=precision, precision=precision))


def _holds(entry: Entry) -> bool:
    """Whether an entry holds its gates, as far as they were judged."""
    if entry.rung is None or entry.bundle is not None:
        return entry.bundle is not None and entry.bundle.passed
    return not entry.variants.request.gates(entry.rung.precision).failures(entry.rung.judged)


def _built(entry: Entry, path: Path) -> Bundle:
    if entry.rung is None:
        raise ValueError(f"{entry.name}: expected an entry that was looked at")
    earlier = entry.variants.built(entry.rung, path)
    if earlier is not None:
        return earlier
    entry.variants.request.on_stage(f"building {entry.name}")
    return entry.variants.build(entry.rung, path)


@contextmanager
def _quiet(*, unless: bool) -> Iterator[None]:
    """Let nothing warn of masks that mean nothing anyway."""
    if unless:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
