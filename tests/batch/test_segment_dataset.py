"""Jobs on a real Ray: masks, Parquet, failures, SIGKILL and what goes on afterwards."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nrd_trt as package
from nrd_trt.batch.job import STATE, Terms, begin
from nrd_trt.batch.pool import session
from nrd_trt.data.images import read_image
from nrd_trt.engine.bundle import RECORD_FILE
from nrd_trt.errors import BatchError, BundleError, ConfigError
from nrd_trt.files import sha256_file
from tests.artefacts import bundle, content, copy_of, environment, listing, rewrite_facts, scenes
from tests.cli.conftest import Invoke, check_refused, nrd_trt, printed  # noqa: F401  a fixture
from tests.signing import key_pair
from tests.warm.programs import command_line

# Not by importing Ray: the session sets its environment first. It leaves its processes to whoever collects them.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="no Ray: pip install nrd-trt[batch]"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One session for all tests: to begin one takes seconds. What Ray leaves open warns here, not in another test."""
    with session(None):
        yield
    gc.collect()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes and one file that is no image."""
    folder = scenes(tmp_path_factory.mktemp("source"), 24)
    (folder / "images/broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[str, np.ndarray]:
    """What the engine draws of the scenes, by name."""
    with package.open_bundle(bundle(), threads=1) as engine:
        return {path.name: engine.predict(read_image(path)) for path in (source / "images").glob("[0-9]*.png")}


ALONE: Any = {"concurrency": (1, 1)}
"""One worker, whose start takes seconds of CPU; two of them go on with the job that was killed."""


def check_tree(output: Path, expected: dict[str, np.ndarray]) -> None:
    found = {path.name: np.array(Image.open(path)) for path in output.glob("*.png")}
    assert found.keys() == expected.keys()
    assert [name for name in found if not np.array_equal(found[name], expected[name])] == []


def markers(output: Path) -> list[list[list[str]]]:
    return [json.loads(path.read_bytes()) for path in (output / STATE / "commits").iterdir()]


def test_a_killed_job_goes_on_and_does_every_image_once(
    ray: None, source: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    output = tmp_path / "masks"
    command = command_line("batch", source, "-o", output, "--bundle", bundle(), "--batch", 1, "--concurrency", 1, "-q")
    with subprocess.Popen(command, env=environment(), start_new_session=True) as process:
        while process.poll() is None and len(list(output.glob("*.png"))) < 3:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    done = {path: os.stat(path).st_mtime_ns for path in output.glob("*.png")}
    assert 3 <= len(done) < 24
    result = package.segment_dataset(source, output, bundle(), batch=4, resume=True, progress=False, max_error_share=1)
    check_tree(output, expected)
    paths = [path for rows in markers(output) for path, *_ in rows]
    assert len(paths) == len(set(paths)) == result.images == 25
    assert result.skipped >= len(done) - 1  # of one batch at most the marker was not written yet
    again = [path for path, when in done.items() if os.stat(path).st_mtime_ns != when]
    assert len(again) <= 1
    assert [Path(failure.path).name for failure in result.failures] == ["broken.png"]


def test_parquet_out_of_parquet_with_bytes(
    ray: None, source: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    files = sorted((source / "images").iterdir())
    held = pyarrow.table({"path": [file.name for file in files], "bytes": [file.read_bytes() for file in files]})
    pyarrow.parquet.write_table(held, tmp_path / "in.parquet", row_group_size=10)
    output = tmp_path / "out.parquet"
    sure, low = bundle(output="mask,confidence"), 0.8
    job = {"bundle": sure, "low_confidence": low, "progress": False, **ALONE}
    result = package.segment_dataset(tmp_path / "in.parquet", output, batch=4, **job)
    rows = {row["path"]: row for row in pyarrow.parquet.read_table(output).to_pylist()}
    assert rows.keys() == {file.name for file in files} and result.images == 25
    broken = rows.pop("broken.png")
    assert "cannot identify" in broken["error"] and broken["mask_png"] is None
    for name, row in rows.items():
        mask = np.array(Image.open(BytesIO(row["mask_png"])))
        assert np.array_equal(mask, expected[name])
        assert row["class_share"] == pytest.approx(np.bincount(mask.ravel(), minlength=11) / mask.size)
        assert (row["error"], row["bundle_sha256"]) == (None, sha256_file(sure / RECORD_FILE))
    with package.open_bundle(sure, threads=1) as engine:
        confidence = engine.segment(read_image(files[0])).confidence
    assert confidence is not None and rows[files[0].name]["confidence_mean"] == pytest.approx(
        confidence.mean() / 255, abs=1e-6
    )
    assert rows[files[0].name]["low_confidence_share"] == pytest.approx((confidence < 255 * low).mean())
    assert result.confidence_file is not None and broken["confidence_mean"] is None
    lines = [json.loads(line) for line in result.confidence_file.read_text().splitlines()]
    assert [line["path"] for line in lines] == sorted(rows, key=lambda name: rows[name]["confidence_mean"])
    assert lines[0]["low_share"] == pytest.approx(rows[lines[0]["path"]]["low_confidence_share"])
    again = {"resume": True, "max_error_share": 0.04}
    assert not result.passed and package.segment_dataset(tmp_path / "in.parquet", output, **job, **again).passed
    with pytest.raises(BatchError, match=r"the job began with low_confidence=0\.8, got 0\.5; give that"):
        package.segment_dataset(tmp_path / "in.parquet", output, sure, resume=True, progress=False)


def test_the_verb_says_what_it_did_and_fails_above_the_share(
    ray: None,
    source: Path,
    tmp_path: Path,
    nrd_trt: Invoke,  # noqa: F811
) -> None:
    given = (f"{source}/images/0?.png", source / "images/broken.png")
    job = ("batch", *given, "-o", tmp_path / "masks", "--bundle", bundle(), "--concurrency", 1, "-q")
    result = nrd_trt(*job)
    assert result.exit_code == 1
    assert "10 masks of 11 images" in result.stdout and "images/broken.png: image: expected" in result.stdout
    assert "gate failed: 1 of 11 images failed, more than the share 0.01 that may" in result.stderr
    found = printed(nrd_trt(*job, "--resume", "--max-error-share", 0.1, "--json"))
    assert (found["images"], found["segmented"], found["failed"], found["skipped"]) == (11, 10, 1, 11)
    assert found["images_per_s"] is None and found["output"] == str(tmp_path / "masks")
    assert "--resume" in nrd_trt(*job).stderr


def test_an_error_of_a_worker_ends_the_job_by_its_name_and_nothing_is_lost(
    ray: None, source: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Something else stands where the first mask shall be."""
    output = tmp_path / "masks"
    taken = output / "00.png/taken"
    terms = Terms(sources=(str(source / "images"),), bundle_sha256=sha256_file(bundle() / RECORD_FILE))
    begin(output, terms, resume=False)
    taken.mkdir(parents=True)
    with pytest.raises(BatchError, match=r"cannot be written .*resume=True"):
        package.segment_dataset(source / "images", output, bundle(), resume=True, progress=False, **ALONE)
    taken.rmdir()
    taken.parent.rmdir()
    result = package.segment_dataset(source / "images", output, bundle(), resume=True, progress=False, **ALONE)
    assert result.images == 25
    check_tree(output, expected)


def test_bad_input(source: Path, tmp_path: Path, nrd_trt: Invoke) -> None:  # noqa: F811
    before = listing(tmp_path)
    output = ("-o", tmp_path / "masks", "--bundle", bundle(), "--json")
    check_refused(nrd_trt("batch", tmp_path / "absent", *output), tmp_path, before, "absent: expected images")
    check_refused(nrd_trt("batch", source, *output, "--concurrency", "a"), tmp_path, before, "expected N or MIN:MAX")
    check_refused(nrd_trt("batch", source, *output, "--address", "x"), tmp_path, before, "--address x: expected HOST")
    key_pair(tmp_path, "own")
    before = listing(tmp_path)
    unsigned = nrd_trt("batch", source, *output, "--verify-key", tmp_path / "own.pub")
    check_refused(unsigned, tmp_path, before, "got an unsigned bundle")
    with pytest.raises(BundleError, match=r"absent.nrd"):
        package.segment_dataset(source, tmp_path / "masks", tmp_path / "absent.nrd")
    with pytest.raises(ConfigError, match="batch=0: expected"):
        package.segment_dataset(source, tmp_path / "masks", bundle(), batch=0)
    for value, message in (
        (0.4, "0.4: expected an engine with the output confidence"),
        (1.5, "1.5: expected a fraction"),
    ):
        with pytest.raises(ConfigError, match=f"low_confidence={message}"):
            package.segment_dataset(source, tmp_path / "masks", bundle(), low_confidence=value)
    with pytest.raises(ConfigError, match=r"sources=.*name one"):
        package.segment_dataset([], tmp_path / "masks", bundle())


def test_a_signed_bundle_and_another_one(ray: None, source: Path, tmp_path: Path) -> None:
    key_pair(tmp_path, "own")
    signed = copy_of(bundle(), tmp_path / "a.nrd")
    package.sign(signed, tmp_path / "own.pem")
    one, output = source / "images/00.png", tmp_path / "masks"
    package.segment_dataset(one, output, signed, verify_key=tmp_path / "own.pub", progress=False)
    before = content(output)
    other = copy_of(bundle(), tmp_path / "b.nrd")
    rewrite_facts(other, command="another")
    with pytest.raises(BatchError, match=r"began with the bundle .*give that one, or another output"):
        package.segment_dataset(one, output, other, resume=True, progress=False)
    assert content(output) == before
