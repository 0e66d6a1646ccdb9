"""What runs in every worker of the pool: one engine, opened once, and batch after batch from bytes to masks."""

from __future__ import annotations

import io
import itertools
import pickle
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nrd_trt.batch.job import Confidence, Job, Outcome
from nrd_trt.batch.sources import Chunk, Item
from nrd_trt.data.images import read_image
from nrd_trt.data.overlay import index_image
from nrd_trt.engine.bundle import RECORD_FILE
from nrd_trt.errors import BatchError, ConfigError, NrdTrtError, ShapeError
from nrd_trt.files import sha256_file
from nrd_trt.runtime.engine import Engine, open_engine
from nrd_trt.runtime.select import RunOptions


@dataclass(frozen=True, kw_only=True)
class RanBy:
    """What drew masks: see the properties of these names of `Engine`."""

    runner: str
    arithmetic: str
    plan_ran: bool | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker tells of a batch that is done: how many images it had, and what drew their masks."""

    images: int
    ran_by: RanBy


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every worker is given.

    Attributes:
        job: Where masks go.
        bundle: The folder, absolute.
        run: How it is run.
        verify_key: See `nrd_trt.open_bundle`.
        batch: Images between two markers.
    """

    job: Job
    bundle: Path
    run: RunOptions
    verify_key: Path | None
    batch: int


class Worker:
    """An actor of Ray Data: rows with pickled chunks in, rows with pickled reports out."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._engine: Engine | None = None

    def __call__(self, rows: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """Segment chunks and report each batch."""
        for report in self._reports(map(pickle.loads, rows["chunk"])):
            yield {"report": [pickle.dumps(report)]}

    def _reports(self, chunks: Iterator[Chunk]) -> Iterator[Report | NrdTrtError]:
        """Yield an error as well, because Ray would wrap it and begin the chunk again."""
        try:
            for count in (count for chunk in chunks for count in self._commits(chunk)):
                yield Report(images=count, ran_by=self._ran_by())
        except NrdTrtError as exc:
            yield exc

    def _ran_by(self) -> RanBy:
        engine = self._opened()
        return RanBy(runner=engine.runner_name, arithmetic=engine.arithmetic, plan_ran=engine.plan_ran)

    def _commits(self, chunk: Chunk) -> Iterator[int]:
        """Yield the number of images of each batch when it is done.

        Ray begins a chunk again whose worker died, and expects the same number of results: what is marked counts.
        """
        contents, size = chunk.contents(), self._task.batch
        for first in range(0, len(chunk.items), size):
            items = chunk.items[first : first + size]
            read = itertools.islice(contents, len(items))
            if self._task.job.is_marked([item.path for item in items]):
                deque(read, maxlen=0)
            else:
                self._task.job.commit([self._segment(item, content) for item, content in read])
            yield len(items)

    def _segment(self, item: Item, content: bytes | str) -> Outcome:
        """Return the mask of an image, or why it has none; what ends the job is raised."""
        engine = self._opened()
        try:
            if isinstance(content, str):
                return Outcome(path=item.path, name=item.name, error=content)
            drawn = engine.segment(read_image(content))
        except (ConfigError, ShapeError) as exc:
            return Outcome(path=item.path, name=item.name, error=str(exc))
        png = io.BytesIO()
        index_image(drawn.mask, engine.info.palette).save(png, format="PNG")
        counts = np.bincount(drawn.mask.ravel(), minlength=len(engine.info.class_names))
        share = tuple((counts / drawn.mask.size).tolist())
        sure, low = drawn.confidence, self._task.job.terms.low_confidence
        confidence = None
        if sure is not None and low is not None:
            confidence = Confidence(
                mean=round(float(sure.mean()) / 255, 6), low_share=round(float((sure < low * 255).mean()), 6)
            )
        return Outcome(
            path=item.path, name=item.name, mask_png=png.getvalue(), class_share=share, confidence=confidence
        )

    def _opened(self) -> Engine:
        if self._engine is None:
            task = self._task
            engine = open_engine(task.bundle, task.run, verify_key=task.verify_key)
            if sha256_file(task.bundle / RECORD_FILE) != task.job.terms.bundle_sha256:
                raise BatchError(f"{task.bundle}: was replaced after the job began with it; begin anew.")
            self._engine = engine.__enter__()
        return self._engine
