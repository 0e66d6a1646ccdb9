"""Kernels that a plan's runner compiled are kept for the next process, for their plan, GPU and driver."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from nrd_trt.engine.caches import CacheKey, kernel_file, read_kernels, write_kernels
from tests.runtime.bench import LARGE, SMALL, Bench, caller, check, image, runner
from tests.runtime.conftest import MakeBench
from tests.runtime.fake_cuda import CompilingEngine

KEY = CacheKey(builder="tensorrt-rtx 1.7", gpu="Fake GPU 0", driver=None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nrd_trt"


@pytest.fixture
def rtx(make_bench: MakeBench, folder: Path) -> Bench:
    return make_bench(CompilingEngine)


def taken(bench: Bench) -> tuple[str, ...]:
    engine = bench.engines[-1]
    assert isinstance(engine, CompilingEngine)
    return engine.taken


def test_kernels_of_one_process_serve_the_next(rtx: Bench, folder: Path) -> None:
    for shapes, expected in (([SMALL], ()), ([SMALL, LARGE], ("kernel-4",)), ([], ("kernel-4", "kernel-16"))):
        with runner() as trt:
            for seed, shape in enumerate(shapes):
                check(trt, shape, seed)
        assert taken(rtx) == expected
    (file,) = folder.iterdir()  # and nothing beside it
    assert folder.stat().st_mode & 0o077 == 0  # what it holds is run
    assert file == kernel_file(b"plan", KEY) and file.read_bytes() == b"kernel-4 kernel-16"
    before = file.stat().st_mtime_ns
    with runner() as trt:
        check(trt, SMALL, 0)
    assert file.stat().st_mtime_ns == before  # there was nothing new


@pytest.mark.parametrize("host", [True, False])
def test_a_runner_that_is_never_left_has_kept_its_kernels(rtx: Bench, folder: Path, host: bool) -> None:
    """It writes after the first run of each shape, and no more."""
    file = kernel_file(b"plan", KEY)
    assert file is not None
    with runner() as trt, caller(rtx.cuda) as mine:

        def run(shape: tuple[int, ...]) -> bytes:
            if host:
                trt.infer({"image": image(shape)})
            else:
                trt.infer_device({"image": mine.put(image(shape))}, mine.stream)
            return file.read_bytes()

        assert [run(SMALL), run(LARGE)] == [b"kernel-4", b"kernel-4 kernel-16"]
        file.write_bytes(b"of another process")
        assert [run(SMALL), run(LARGE)] == [b"of another process"] * 2


def test_an_engine_that_compiles_nothing_keeps_nothing(bench: Bench, folder: Path) -> None:
    with runner() as trt:
        check(trt, SMALL, 0)
    assert not folder.exists()


def test_nothing_is_kept_where_nothing_was_run(rtx: Bench, folder: Path) -> None:
    with runner():
        pass
    assert not folder.exists()


def test_what_tensorrt_refuses_is_said_and_replaced(rtx: Bench, folder: Path) -> None:
    file = kernel_file(b"plan", KEY)
    assert file is not None
    write_kernels(file, b"\xff damaged")
    with (
        pytest.warns(UserWarning, match=r"\.kernels: not kernels for this GPU and driver; compiled again"),
        runner() as trt,
    ):
        check(trt, SMALL, 0)
    assert file.read_bytes() == b"kernel-4"


def test_a_file_that_cannot_be_read_is_said_and_no_error(rtx: Bench, folder: Path) -> None:
    file = kernel_file(b"plan", KEY)
    assert file is not None
    file.mkdir(parents=True)
    with pytest.warns(UserWarning) as said, runner() as trt:
        check(trt, SMALL, 0)
    texts = [str(warning.message) for warning in said]
    assert [text.split(": ")[1].split(" (")[0] for text in texts] == ["cannot be read", "cannot be written"]
    assert all(text.endswith("; set XDG_CACHE_HOME to a folder of yours.") for text in texts)


def test_a_folder_that_cannot_be_written_is_said_and_no_error(rtx: Bench, folder: Path) -> None:
    folder.write_bytes(b"in the way")
    with pytest.warns(UserWarning, match=r"cannot be written \(.*\), so the next process compiles") as said:
        with runner() as trt:
            check(trt, SMALL, 0)
    assert len(said) == 1 and rtx.cuda.alive == {}


def test_each_plan_gpu_and_driver_has_a_file_of_its_own(folder: Path) -> None:
    others = [replace(KEY, builder="tensorrt-rtx 1.8"), replace(KEY, gpu="another"), replace(KEY, driver="580.1")]
    files = {kernel_file(b"plan", KEY), kernel_file(b"other", KEY), *(kernel_file(b"plan", other) for other in others)}
    assert len(files) == 5
    assert {file.parent for file in files if file} == {folder}


@pytest.mark.parametrize("value", [None, "", "relative"])
def test_without_a_folder_of_its_own_it_is_in_the_home(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    file = kernel_file(b"plan", KEY)
    assert file is not None and file.parent == Path("/home/somebody/.cache/nrd_trt")


def test_a_user_without_a_home_keeps_nothing(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    make_bench(CompilingEngine)
    with runner() as trt:
        check(trt, SMALL, 0)


def test_threads_that_write_one_file_leave_a_whole_one(folder: Path) -> None:
    file = folder / "one.kernels"
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda content: write_kernels(file, content), contents * 4))
    assert read_kernels(file) in contents
    assert list(folder.iterdir()) == [file]
