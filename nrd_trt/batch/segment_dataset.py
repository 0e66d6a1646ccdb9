"""Masks of a whole data set: what is left of it goes to a pool of workers, and comes back counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nrd_trt.batch.job import CONFIDENCE, FAILURES, Failure, Terms, begin, check_target, committed
from nrd_trt.batch.pool import Pool, Wish, pool_of, run, session
from nrd_trt.batch.sources import Chunk, absolute, left_of, list_chunks
from nrd_trt.batch.worker import RanBy, Task
from nrd_trt.engine.bundle import RECORD_FILE, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.progress import bar
from nrd_trt.runtime.graph_io import check_confidence
from nrd_trt.runtime.select import RunOptions
from nrd_trt.specs import Provider, RunnerName, as_path, check_number, optional_path

_LOW_CONFIDENCE = 0.5
"""The classes together hold no more than this beside it: any other may well be the right one."""


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """How a job went.

    Attributes:
        output: Folder of masks or of Parquet parts.
        images: Images that are done, in all runs of the job.
        skipped: How many of them an earlier run had done.
        failures: Images without a mask, each with the reason, of all runs.
        images_per_s: Images of this run by its time, the start of the workers in it; None where nothing was left.
        ran_by: What ran, usually one; see `nrd_trt.runtime.engine.Engine`.
        max_error_share: The largest share of failures with which the job counts as passed, in 0-1.
        confidence_file: How sure the network is of each mask, one JSON object a line, the least sure first; None where
            the bundle does not tell.
    """

    output: Path
    images: int
    skipped: int
    failures: tuple[Failure, ...]
    images_per_s: float | None
    ran_by: tuple[RanBy, ...]
    max_error_share: float
    confidence_file: Path | None

    @property
    def failures_file(self) -> Path:
        """The same failures, one JSON object a line."""
        return self.output / FAILURES

    @property
    def passed(self) -> bool:
        """Whether no more images failed than may."""
        return len(self.failures) <= self.max_error_share * self.images

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        return {
            "images": self.images,
            "segmented": self.images - len(self.failures),
            "failed": len(self.failures),
            "skipped": self.skipped,
            "images_per_s": self.images_per_s,
            "output": str(self.output),
            "passed": self.passed,
            "confidence_file": self.confidence_file and str(self.confidence_file),
            "ran_by": [asdict(one) for one in self.ran_by],
            "failures": [asdict(failure) for failure in self.failures],
        }


def segment_dataset(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    bundle: str | Path,
    *,
    concurrency: tuple[int, int] | None = None,
    batch: int = 8,
    address: str | None = None,
    gpus_per_worker: float | None = None,
    resume: bool = False,
    max_error_share: float = 0.01,
    low_confidence: float | None = None,
    runner: RunnerName = "auto",
    plugin: str | Path | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    verify_key: str | Path | None = None,
    progress: bool = True,
) -> BatchResult:
    """Segment all images of a data set with a pool of workers of Ray, each of which holds one engine.

    The output may be that of a run that ended in whatever way: with `resume` every image of the sources is done once,
    and at most the batch that each worker was at is done again.

    Args:
        sources: One or several: a folder (with its subfolders; of one that has ``images/`` that), an image, a glob, or
            Parquet with a column ``path`` and, where the images are in it, ``bytes``. Paths, or URIs of filesystems
            that pyarrow opens, such as ``s3://``.
        output: A folder, which gets an index PNG for each image at its path in the source; or ``NAME.parquet``, a
            folder of parts with the columns ``path, mask_png, error, bundle_sha256, class_share``, and of a bundle that
            gives the confidence ``confidence_mean, low_confidence_share``. Workers of a cluster write it themselves, so
            it must lie on a disk that they share.
        bundle: A ``NAME.nrd`` folder; in a cluster on that disk as well.
        concurrency: The fewest and the most workers; None takes one for each core, or what the GPUs take.
        batch: Images between two marks of what is done. The engine runs one after the other.
        address: ``HOST:PORT`` of a Ray cluster, or ``"auto"`` for the one of this machine; None runs here.
        gpus_per_worker: GPUs of each worker, which a fraction shares; None takes one where Ray finds GPUs and the
            bundle has a plan, else none.
        resume: Go on with the job of an earlier run, or begin one where there is none.
        max_error_share: The largest share of failures with which the result counts as passed, in 0-1.
        low_confidence: Pixels of a lower confidence, in 0-1, are counted as low; None is 0.5 where the bundle gives the
            confidence.
        runner: See `nrd_trt.open_bundle`.
        plugin: See `nrd_trt.open_bundle`.
        threads: CPU threads of each worker; None divides the cores among the most workers.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: See `nrd_trt.open_bundle`.
        device: See `nrd_trt.open_bundle`; among the GPUs that Ray gives a worker.
        verify_key: See `nrd_trt.open_bundle`.
        progress: Whether a bar on stderr shows images per second and the time left.

    Returns:
        How it went. An image that cannot be read is a failure in it, not an error.

    Raises:
        ConfigError: An argument is invalid, a source is empty or cannot be opened, or the output exists.
        BundleError: The bundle is damaged or not signed by the key.
        MissingDependencyError: Ray is not installed.
        BatchError: The job began with another bundle or other sources, the output cannot be written, a source is gone,
            the cluster does not answer or its workers died.
        RunnerError: The engine cannot be started or failed.
    """
    check_number("batch", batch, low=1)
    check_number("max_error_share", max_error_share, low=0, whole=False)
    wish = Wish(concurrency=concurrency, threads=threads, gpus_per_worker=gpus_per_worker)
    plugin, verify_key = optional_path("plugin", plugin), optional_path("verify_key", verify_key)
    verify_key = verify_key and verify_key.absolute()
    how = RunOptions(
        runner=runner,
        plugin=plugin and plugin.absolute(),
        threads=threads,
        cuda=cuda,
        cuda_graph=cuda_graph,
        device=device,
    )
    made = read_bundle(as_path("bundle", bundle).absolute(), verify_key=verify_key)
    target, given = as_path("output", output).absolute(), _texts(sources)
    terms = Terms(
        sources=given,
        bundle_sha256=sha256_file(made.path / RECORD_FILE),
        low_confidence=_low_confidence(low_confidence, made.graph),
    )
    check_target(target, terms, resume=resume)
    chunks = list_chunks(given, output=target)
    ran = _Ran(images=0, seconds=0.0, by=set())
    if left_of(chunks, committed(target).keys(), batch):
        with session(address) as (cores, gpus):
            pool = pool_of(wish, cores=cores, gpus=gpus, has_plan=made.plan_path is not None)
            job = begin(target, terms, resume=resume)
            how = replace(how, threads=pool.threads)
            task = Task(job=job, bundle=made.path, run=how, verify_key=verify_key, batch=batch)
            _run(task, chunks, pool, ran, progress=progress)
    else:
        job = begin(target, terms, resume=resume)
    images, failures = job.finish()
    return BatchResult(
        output=as_path("output", output),
        images=images,
        skipped=images - ran.images,
        failures=failures,
        images_per_s=ran.images / ran.seconds if ran.images else None,
        ran_by=tuple(ran.by),
        max_error_share=max_error_share,
        confidence_file=None if terms.low_confidence is None else as_path("output", output) / CONFIDENCE,
    )


def _low_confidence(asked: float | None, graph: GraphFacts) -> float | None:
    """Return what a pixel's confidence is compared with; None where the graph does not give it."""
    if asked is None:
        return _LOW_CONFIDENCE if "confidence" in graph.outputs else None
    check_number("low_confidence", asked, low=0, whole=False)
    if asked > 1:
        raise ConfigError(f"low_confidence={asked}: expected a fraction in 0-1, e.g. {_LOW_CONFIDENCE}.")
    check_confidence(graph, f"low_confidence={asked}")
    return asked


@dataclass
class _Ran:
    images: int
    seconds: float
    by: set[RanBy]


def _run(task: Task, chunks: Sequence[Chunk], pool: Pool, ran: _Ran, *, progress: bool) -> None:
    """Let the pool do what is left, and count it."""
    done = committed(task.job.output).keys()
    left = left_of(chunks, done, task.batch)
    total, start = len(done) + sum(len(chunk.items) for chunk in left), time.monotonic()
    shown: tqdm[Any] = bar(desc="segmenting", unit=" images", show=progress, total=total, done=len(done))
    with shown:
        for report in run(task, left, pool):
            shown.update(report.images)
            ran.images += report.images
            ran.by.add(report.ran_by)
    ran.seconds = time.monotonic() - start


def _texts(sources: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Return the sources as they are recorded: local ones absolute."""
    several = [sources] if isinstance(sources, str | Path) else list(sources)
    if not several:
        raise ConfigError("sources=(): expected a folder, a glob, an image or Parquet, got none; name one.")
    return tuple(absolute(as_path("sources", one) if not isinstance(one, str) else one) for one in several)
