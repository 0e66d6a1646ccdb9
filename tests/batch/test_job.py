"""The output of a job: what is marked is done, and nothing else is written by who may not."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from nrd_trt.batch.job import STATE, Confidence, Job, Outcome, Terms, begin, committed
from nrd_trt.errors import BatchError, ConfigError
from tests.artefacts import content, listing

TERMS = Terms(sources=("/a",), bundle_sha256="0" * 64)


def outcome(name: str, data: bytes | None = b"mask") -> Outcome:
    error = "broken" if data is None else None
    share = None if data is None else (0.25, 0.75)
    return Outcome(path=f"/a/{name}.jpg", name=name, mask_png=data, error=error, class_share=share)


def masks(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(output).items() if not name.startswith(STATE)}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return begin(tmp_path / "masks", TERMS, resume=False)


def test_a_batch_is_masks_then_a_marker(job: Job) -> None:
    job.commit([outcome("1"), outcome("sub/2"), outcome("3", None)])
    assert masks(job.output) == {"1.png": b"mask", "sub/2.png": b"mask"}
    assert committed(job.output) == {"/a/1.jpg": None, "/a/sub/2.jpg": None, "/a/3.jpg": "broken"}
    assert job.is_marked(["/a/1.jpg", "/a/sub/2.jpg", "/a/3.jpg"]) and not job.is_marked(["/a/1.jpg"])
    count, failures = job.finish()
    assert (count, [failure.path for failure in failures]) == (3, ["/a/3.jpg"])
    assert (job.output / "_failures.jsonl").read_text() == '{"path":"/a/3.jpg","error":"broken"}\n'


def test_the_least_sure_image_is_listed_first_and_older_markers_have_none(job: Job) -> None:
    job.commit([outcome("1")])
    (marker,) = (job.output / STATE / "commits").iterdir()
    marker.write_text('[["/a/1.jpg",null]]')
    sure = replace(job, terms=replace(TERMS, low_confidence=0.5))
    means = {"2": 0.9, "3": 0.6, "sub/4": 0.7}
    done = [replace(outcome(name), confidence=Confidence(mean, 0.25)) for name, mean in means.items()]
    sure.commit([*done, outcome("5", None)])
    assert sure.finish()[0] == 5
    listed = [json.loads(line) for line in (job.output / "_confidence.jsonl").read_text().splitlines()]
    assert listed[0] == {"path": "/a/3.jpg", "mean": 0.6, "low_share": 0.25}
    assert [line["path"] for line in listed] == ["/a/3.jpg", "/a/sub/4.jpg", "/a/2.jpg"]


def test_parts_without_a_marker_are_removed_and_those_with_one_stay(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="no pyarrow: pip install nrd-trt[batch]")
    import pyarrow.parquet

    job = begin(tmp_path / "out.parquet", TERMS, resume=False)
    job.commit([outcome("1"), outcome("2", None)])
    job.commit([outcome("3")])
    (killed,) = [path for path in job.output.glob("part-*") if pyarrow.parquet.read_table(path).num_rows == 1]
    (job.output / STATE / "commits" / f"{killed.stem.removeprefix('part-')}.json").unlink()
    begin(job.output, TERMS, resume=True)
    (row, failed) = pyarrow.parquet.read_table(job.output).to_pylist()
    assert row == {
        "path": "/a/1.jpg", "mask_png": b"mask", "error": None, "bundle_sha256": "0" * 64, "class_share": [0.25, 0.75],
    }  # fmt: skip
    assert (failed["error"], failed["mask_png"], failed["class_share"]) == ("broken", None, None)


def test_a_run_that_was_taken_over_writes_nothing(job: Job) -> None:
    later = begin(job.output, TERMS, resume=True)
    before = listing(job.output)
    with pytest.raises(BatchError, match="taken over"):
        job.commit([outcome("1")])
    assert listing(job.output) == before
    later.commit([outcome("1")])
    assert masks(job.output) == {"1.png": b"mask"}
    later.commit([outcome("1", b"again")])  # the same batch
    assert masks(job.output) == {"1.png": b"mask"}


def test_no_space_is_an_error_and_leaves_nothing_half_written(job: Job) -> None:
    """A limit on the size of files stands in for the disk: the system refuses to write on."""
    job.commit([outcome("0")])
    before, limits = listing(job.output), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(BatchError, match=r"cannot be written .*free some space.*resume=True"):
            job.commit([outcome("1", bytes(8192))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(job.output) == before
    job.commit([outcome("1", bytes(8192))])
    assert committed(job.output).keys() == {"/a/0.jpg", "/a/1.jpg"}


def test_only_the_same_job_goes_on(job: Job, tmp_path: Path) -> None:
    before = content(job.output)
    with pytest.raises(ConfigError, match="already exists; give resume=True"):
        begin(job.output, TERMS, resume=False)
    with pytest.raises(BatchError, match="began with the bundle 000000000000…, got 111111111111…"):
        begin(job.output, Terms(sources=("/a",), bundle_sha256="1" * 64), resume=True)
    with pytest.raises(BatchError, match="began with the sources /a, got /b"):
        begin(job.output, Terms(sources=("/b",), bundle_sha256="0" * 64), resume=True)
    assert content(job.output) == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").touch()
    with pytest.raises(ConfigError, match="no output of a job"):
        begin(tmp_path / "photos", TERMS, resume=True)
    with pytest.raises(ConfigError, match="got a file"):
        begin(tmp_path / "photos/1.png", TERMS, resume=True)


def test_a_damaged_marker_is_named(job: Job) -> None:
    (job.output / STATE / "commits/1.json").write_text("[[1]]")
    with pytest.raises(BatchError, match=r"1\.json: cannot be read .*; remove it"):
        job.finish()
