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
def cluster() -> Iterator[str]:
    """The address of one session for all tests and programs: to begin one takes seconds, and so does its first job.

    What Ray leaves open warns here, not in another test.
    """
    with session(None):
        import ray

        yield ray.get_runtime_context().gcs_address
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


def masks(output: Path) -> list[Path]:
    """Return the masks of a job; what stands in the way of one is a folder."""
    return [path for path in output.glob("*.png") if path.is_file()]


def test_a_job_that_was_killed_and_then_stopped_by_an_error_goes_on_and_does_every_image_once(
    cluster: str,
    source: Path,
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    nrd_trt: Invoke,  # noqa: F811
) -> None:
    """Something else stands where the thirteenth mask shall be."""
    output, given = tmp_path / "masks", (f"{source}/images/??.png", f"{source}/images/broken.png")
    begin(output, Terms(sources=given, bundle_sha256=sha256_file(bundle() / RECORD_FILE)), resume=False)
    taken = output / "12.png/taken"
    taken.mkdir(parents=True)
    job = ("batch", *given, "-o", output, "--bundle", bundle(), "-q")
    command = command_line(*job, "--resume", "--batch", 1, "--concurrency", 1, "--address", cluster)
    with subprocess.Popen(command, env=environment(), start_new_session=True) as process:
        while process.poll() is None and len(masks(output)) < 3:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = {path: os.stat(path).st_mtime_ns for path in masks(output)}
    assert 3 <= len(done) < 13
    with pytest.raises(BatchError, match=r"cannot be written .*resume=True"):
        package.segment_dataset(given, output, bundle(), resume=True, progress=False, concurrency=(1, 1))
    taken.rmdir()
    taken.parent.rmdir()
    found = printed(nrd_trt(*job, "--batch", 4, "--resume", "--max-error-share", 0.1, "--json"))  # on every core
    assert (found["images"], found["segmented"], found["failed"], found["output"]) == (25, 24, 1, str(output))
    assert found["images_per_s"] > 0
    assert found["skipped"] >= len(done) - 1  # of one batch at most the marker was not written yet
    assert {path.name for path in masks(output)} == expected.keys()
    assert [path.name for path in masks(output) if not np.array_equal(Image.open(path), expected[path.name])] == []
    paths = [path for marker in (output / STATE / "commits").iterdir() for path, *_ in json.loads(marker.read_bytes())]
    assert len(paths) == len(set(paths)) == 25
    again = [path for path, when in done.items() if os.stat(path).st_mtime_ns != when]
    assert len(again) <= 1
    over = nrd_trt(*job, "--resume")
    assert over.exit_code == 1
    assert "24 masks of 25 images" in over.stdout and "images/broken.png: image: expected" in over.stdout
    assert "gate failed: 1 of 25 images failed, more than the share 0.01 that may" in over.stderr
    assert "--resume" in nrd_trt(*job).stderr
    result = package.segment_dataset(given, output, bundle(), resume=True, progress=False)
    assert (result.images, result.skipped, result.images_per_s, result.passed) == (25, 25, None, False)
    assert [Path(failure.path).name for failure in result.failures] == ["broken.png"]


def test_parquet_out_of_parquet_with_bytes_by_a_signed_bundle_and_no_other(
    cluster: str, source: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    files = sorted((source / "images").iterdir())
    held = pyarrow.table({"path": [file.name for file in files], "bytes": [file.read_bytes() for file in files]})
    pyarrow.parquet.write_table(held, tmp_path / "in.parquet", row_group_size=10)
    output = tmp_path / "out.parquet"
    sure, other = (copy_of(bundle(output="mask,confidence"), tmp_path / name) for name in ("a.nrd", "b.nrd"))
    key_pair(tmp_path, "own")
    package.sign(sure, tmp_path / "own.pem")
    low, key = 0.8, {"verify_key": tmp_path / "own.pub", "progress": False}
    job: dict[str, Any] = {"bundle": sure, "low_confidence": low, "concurrency": (1, 1), **key}
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
        package.segment_dataset(tmp_path / "in.parquet", output, sure, resume=True, **key)
    before = content(output)
    rewrite_facts(other, command="another")
    with pytest.raises(BatchError, match=r"began with the bundle .*give that one, or another output"):
        package.segment_dataset(tmp_path / "in.parquet", output, other, resume=True, progress=False)
    assert content(output) == before


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
