"""The verb ``batch``: masks of a whole data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nrd_trt.cli import common, groups, parse

if TYPE_CHECKING:
    from nrd_trt.batch.segment_dataset import BatchResult

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class PoolOptions(groups.Group):
    """The workers."""

    concurrency: Annotated[
        Any,
        common.engine_option(
            metavar="N|MIN:MAX", parser=parse.parse_concurrency, help="Workers (default one for each core or GPU)."
        ),
    ] = None
    batch: Annotated[
        int, common.engine_option(min=1, metavar="N", help="Images between two marks of what is done.")
    ] = 8
    address: Annotated[
        str | None,
        common.engine_option(metavar="HOST:PORT|auto", help="A Ray cluster instead of this machine alone."),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        common.engine_option(
            metavar="N", help="Of each worker; 0.5 lets two share one (default 1 where a plan can run)."
        ),
    ] = None


def batch_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="Folders, images, globs, or Parquet with a column path and perhaps bytes; paths, or URIs such as s3://.",
        ),
    ],
    *,
    output: Annotated[
        Path, typer.Option("-o", metavar="DIR|NAME.parquet", help="A tree of PNG masks, or a folder of Parquet parts.")
    ],
    bundle: Annotated[Path, typer.Option(metavar="NAME.nrd", help="The engine.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the job in the output; begin one where there is none.")
    ] = False,
    max_error_share: Annotated[
        float, common.checks_option(min=0, max=1, metavar="0-1", help="Gate: share of images that may fail.")
    ] = 0.01,
    low_confidence: Annotated[
        float | None,
        common.output_option(
            min=0, max=1, metavar="0-1", help="Count pixels of lower confidence, of bundles that give it (default 0.5)."
        ),
    ] = None,
    pool: PoolOptions,
    run: groups.BundleOptions,
    out: groups.OutputOptions,
) -> None:
    """Segment a whole data set with a pool of workers, here or in a Ray cluster; go on where a run ended."""
    from nrd_trt import segment_dataset

    with common.prints_on_stderr():  # Ray's processes
        result = segment_dataset(
            sources,
            output,
            bundle,
            resume=resume,
            max_error_share=max_error_share,
            low_confidence=low_confidence,
            **pool.given(),
            **run.given(),
            progress=not out.quiet,
        )
    out.show(result, _lines(result))
    if not result.passed:
        failed = f"{len(result.failures)} of {result.images} images failed"
        common.exit_on([f"{failed}, more than the share {max_error_share:g} that may"])


def _lines(result: BatchResult) -> Iterator[str]:
    """Yield how a job went."""
    earlier = f", {result.skipped} of them by an earlier run" if result.skipped else ""
    rate = "" if result.images_per_s is None else f" at {result.images_per_s:.1f} images/s"
    yield f"{result.images - len(result.failures)} masks of {result.images} images in {result.output}{earlier}{rate}"
    for one in result.ran_by:
        yield f"run by {common.run_by(one.runner, one.arithmetic, one.plan_ran)}"
    if result.confidence_file is not None:
        yield f"how sure the network is of each, the least sure first: {result.confidence_file}"
    if result.failures:
        yield f"{len(result.failures)} images failed, listed in {result.failures_file}:"
        yield from (f"  {failure.path}: {failure.error}" for failure in result.failures[:_SHOWN])
        if len(result.failures) > _SHOWN:
            yield "  …"
