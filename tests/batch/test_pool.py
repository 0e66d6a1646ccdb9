"""The pool that fits a machine, and Ray that is absent or does not answer."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

import nrd_trt
from nrd_trt.batch.pool import Pool, Wish, pool_of
from nrd_trt.errors import BatchError, ConfigError, MissingDependencyError
from scripts.dev.scale import simulate
from tests.artefacts import bundle, listing, scenes


def pool(cores: int, gpus: float = 0, *, has_plan: bool = True, **wish: Any) -> tuple[int, int, int, float]:
    found: Pool = pool_of(Wish(**wish), cores=cores, gpus=gpus, has_plan=has_plan)
    return found.least, found.most, found.threads, found.gpus


def test_workers_and_threads_fit_the_cores() -> None:
    assert pool(2) == (2, 2, 1, 0)
    assert pool(8, threads=4) == (2, 2, 4, 0)
    assert pool(8, concurrency=(1, 2)) == (1, 2, 4, 0)
    assert pool(1) == (1, 1, 1, 0)


def test_gpus_are_used_where_a_plan_can_run() -> None:
    assert pool(16, 2) == (2, 2, 8, 1)
    assert pool(16, 2, has_plan=False) == (16, 16, 1, 0)
    assert pool(16, 1, gpus_per_worker=0.25) == (4, 4, 4, 0.25)
    assert pool(16, 1, gpus_per_worker=0) == (16, 16, 1, 0)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"concurrency": (1, 3)}, r"concurrency=\(1, 3\) with threads=1: expected no more than 2 cores"),
        ({"concurrency": (2, 2), "threads": 2}, "got 4; ask for fewer"),
        ({"threads": 4}, r"concurrency=\(1, 1\) with threads=4"),
        ({"gpus_per_worker": 1}, "gpus_per_worker=1: expected no more than the 0.5 GPUs"),
        ({"gpus_per_worker": 0.5, "concurrency": (2, 2)}, r"at most 1 workers on 0\.5 GPUs"),
        ({"concurrency": (2, 1)}, r"concurrency=\(2, 1\): expected \(MIN, MAX\)"),
        ({"concurrency": 2}, "concurrency=2: expected"),
        ({"threads": 0}, "threads=0: expected"),
        ({"gpus_per_worker": -1}, "gpus_per_worker=-1: expected"),
    ],
)
def test_a_pool_that_would_wait_for_ever_is_refused(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pool(2, 0.5, **wish)


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[Path, Path, Path]:
    pytest.importorskip("pyarrow", reason="no pyarrow: pip install nrd-trt[batch]")
    return scenes(tmp_path / "data", 1), tmp_path / "masks", bundle()


def test_ray_that_is_absent_is_named_with_its_extra(
    arguments: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    before = listing(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"pip install 'nrd-trt\[batch\]'"):
        nrd_trt.segment_dataset(*arguments)
    assert listing(tmp_path) == before


def test_a_cluster_that_does_not_answer_is_an_error(arguments: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        before = listing(tmp_path)
        with pytest.raises(BatchError, match=r"the cluster does not answer .*check the address"):
            nrd_trt.segment_dataset(*arguments, address=f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        nrd_trt.segment_dataset(*arguments, address="head-node")
    assert listing(tmp_path) == before


def test_a_simulated_pool_agrees_with_arithmetic() -> None:
    """The figures of docs/scale.md that are not measured."""
    usual: dict[str, Any] = {"images": 100_000, "batch": 10, "image_s": 0.1, "start_s": 5.0}
    sound = simulate(workers=10, slow_share=0, lifetime_s=1e12, **usual)
    assert sound.makespan_s == pytest.approx(1005, rel=0.002) and sound.wasted == 0
    slow = simulate(workers=10, slow_share=1, lifetime_s=1e12, **usual)
    assert slow.makespan_s == pytest.approx(4005, rel=0.002)
    # A death every hundred seconds and worker loses half a batch and a start: half a second and five.
    dying = simulate(workers=10, slow_share=0, lifetime_s=100, **usual)
    assert dying.wasted == pytest.approx(0.5 / 100, rel=0.3)
    assert dying.makespan_s == pytest.approx(1005 * 1.055, rel=0.02)
    assert dying == simulate(workers=10, slow_share=0, lifetime_s=100, **usual)
