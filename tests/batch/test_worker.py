"""A worker without Ray: what it does when a chunk is begun again, and with a bundle that is not the job's."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from nrd_trt.batch.job import Job, Terms, begin, committed
from nrd_trt.batch.sources import list_chunks
from nrd_trt.batch.worker import Report, Task, Worker
from nrd_trt.engine.bundle import RECORD_FILE
from nrd_trt.errors import BatchError
from nrd_trt.files import sha256_file
from nrd_trt.runtime.select import RunOptions
from tests.artefacts import bundle, content, scenes

pytest.importorskip("pyarrow", reason="no pyarrow: pip install nrd-trt[batch]")


@pytest.fixture
def work(tmp_path: Path) -> Callable[[str], tuple[Job, list[object]]]:
    """Let a new worker of one job segment three images in batches of two; return what it reports."""
    (chunk,) = list_chunks([str(scenes(tmp_path / "data", 3))], output=tmp_path / "masks")

    def run(sha256: str) -> tuple[Job, list[object]]:
        job = begin(tmp_path / "masks", Terms(sources=("data",), bundle_sha256=sha256), resume=True)
        worker = Worker(Task(job=job, bundle=bundle(), run=RunOptions(threads=1), verify_key=None, batch=2))
        return job, [pickle.loads(row["report"][0]) for row in worker({"chunk": [pickle.dumps(chunk)]})]

    return run


def test_a_chunk_that_is_begun_again_is_reported_as_before_and_not_written_again(
    work: Callable[[str], tuple[Job, list[object]]],
) -> None:
    job, reports = work(sha256_file(bundle() / RECORD_FILE))
    assert [report.images for report in reports if isinstance(report, Report)] == [2, 1]
    written = {path: path.stat().st_mtime_ns for path in job.output.glob("*.png")}
    assert len(written) == 3
    _, again = work(sha256_file(bundle() / RECORD_FILE))
    assert again == reports
    assert {path: path.stat().st_mtime_ns for path in job.output.glob("*.png")} == written


def test_a_bundle_that_was_replaced_is_refused(work: Callable[[str], tuple[Job, list[object]]]) -> None:
    job, (error,) = work("0" * 64)
    assert isinstance(error, BatchError) and "was replaced after the job began" in str(error)
    assert not committed(job.output) and not [name for name in content(job.output) if name.endswith(".png")]
