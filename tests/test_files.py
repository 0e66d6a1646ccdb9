"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from nrd_trt import files
from nrd_trt.errors import ConfigError
from nrd_trt.files import atomic_file, atomic_folder, canonical_json, check_absent, sha256_bytes, sha256_file
from tests.artefacts import content

replace_folder = partial(atomic_folder, force=True)

# Two writers of one target: each writes its name into eight files, and waits for the other in between.
_WRITER = """
import sys, time
from pathlib import Path
from nrd_trt.files import atomic_folder
work, name = Path(sys.argv[1]), sys.argv[2]
with atomic_folder(work / "out.nrd", force=True) as folder:
    (work / f"began-{name}").touch()
    limit = time.monotonic() + 60
    while len(list(work.glob("began-*"))) < 2 and time.monotonic() < limit:
        time.sleep(0.01)
    for number in range(8):
        (folder / str(number)).write_text(name)
        time.sleep(0.01)
"""
_FIXED_PID = "import os; os.getpid = lambda: 4242\n"


@pytest.fixture(scope="module")
def dead_pid() -> int:
    """The id of a process that has ended and been collected."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_file_writes_and_replaces(tmp_path: Path) -> None:
    """Who reads the old file meanwhile goes on reading the old content."""
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        for path in (target, tmp_path / "new.bin"):
            with atomic_file(path) as temporary:
                temporary.write_bytes(b"new")
                assert temporary.stat().st_dev == tmp_path.stat().st_dev
                assert path.exists() == (path == target)
            assert path.read_bytes() == b"new"
        assert reader.read() == b"old"
    assert names(tmp_path) == ["new.bin", "out.bin"]


def _full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def fill(path: Path, data: bytes) -> None:
    """Write a file, or one into a folder."""
    (path / "a.bin" if path.is_dir() else path).write_bytes(data)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, _full_disk])
@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("writer", [atomic_file, replace_folder])
def test_an_error_leaves_what_was_there(
    writer: Any, existed: bool, error: Callable[[], BaseException], tmp_path: Path
) -> None:
    target, raised = tmp_path / "out.bin", error()
    if existed:
        with writer(target) as temporary:
            fill(temporary, b"old")
    before = content(tmp_path)
    with pytest.raises(type(raised)), writer(target) as temporary:
        fill(temporary, b"half")
        raise raised
    assert content(tmp_path) == before
    assert names(tmp_path) == ["out.bin"] * existed


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
def test_atomic_folder_writes_and_replaces(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    (tmp_path / "file.nrd").write_text("a file of that name")
    for target, file in (("out.nrd", "first"), ("out.nrd", "second"), ("file.nrd", "third")):
        with replace_folder(tmp_path / target) as temporary:
            (temporary / file).write_text(file)
        assert content(tmp_path / target) == {file: file.encode()}
    assert names(tmp_path) == ["file.nrd", "out.nrd"]


@pytest.mark.parametrize("writer", [atomic_file, replace_folder])
def test_leftovers_of_dead_processes_are_removed(writer: Any, dead_pid: int, tmp_path: Path) -> None:
    """Whether a process lives is told by its lock: another container has processes of equal ids."""
    for pid in (dead_pid, os.getpid(), os.getppid()):
        (tmp_path / f".out.tmp-{pid}").mkdir()
        (tmp_path / f".out.tmp-{pid}" / "half.bin").write_bytes(b"half")
    other = f".another.tmp-{dead_pid}"
    for name in (other, ".out.tmp-notes"):
        (tmp_path / name).write_bytes(b"")
    with writer(tmp_path / "out") as temporary:
        assert not temporary.is_dir() or names(temporary) == []
        fill(temporary, b"whole")
    assert names(tmp_path) == sorted([other, ".out.tmp-notes", "out"])


def test_a_killed_writer_leaves_what_the_next_removes(tmp_path: Path) -> None:
    killed = _WRITER.replace("limit = ", "import os; os.kill(os.getpid(), 9); limit = ")
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path), "a"], check=False).returncode == -9
    assert len(names(tmp_path)) == 2
    with replace_folder(tmp_path / "out.nrd") as temporary:
        fill(temporary, b"whole")
    assert names(tmp_path) == ["began-a", "out.nrd"]


def _namespaces_work() -> bool:
    try:
        return subprocess.run(["unshare", "-p", "-f", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("kind", ["namespaces", "equal-pids"])
def test_two_containers_do_not_mix(kind: str, tmp_path: Path) -> None:
    """Both may have the same process id, and neither sees whether the other lives."""
    if kind == "namespaces" and not _namespaces_work():
        pytest.skip("PID namespaces cannot be made here")
    prefix, code = (["unshare", "-p", "-f"], _WRITER) if kind == "namespaces" else ([], _FIXED_PID + _WRITER)
    writers = [subprocess.Popen([*prefix, sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert set(content(tmp_path / "out.nrd")) == set(map(str, range(8)))
    assert len(set(content(tmp_path / "out.nrd").values())) == 1, "a mixed output"
    assert names(tmp_path) == ["began-a", "began-b", "out.nrd"]


def test_two_threads_do_not_mix(tmp_path: Path) -> None:
    both_began = Barrier(2, timeout=60)

    def write(name: str) -> None:
        with replace_folder(tmp_path / "out") as folder:
            both_began.wait()
            for number in range(8):
                (folder / str(number)).write_text(name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    assert len(content(tmp_path / "out")) == 8
    assert len(set(content(tmp_path / "out").values())) == 1
    assert names(tmp_path) == ["out"]


def test_who_comes_second_without_force_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already exists"), atomic_folder(tmp_path / "out", force=False) as late:
        fill(late, b"late")
        with atomic_folder(tmp_path / "out", force=False) as early:
            fill(early, b"early")
    assert content(tmp_path / "out") == {"a.bin": b"early"}
    assert names(tmp_path) == ["out"]


def test_hashes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path / "a").write_bytes(data)
    assert hashlib.sha256(data).hexdigest() == sha256_bytes(data) == sha256_file(tmp_path / "a")


def test_canonical_json() -> None:
    assert canonical_json({"b": [1, None, 0.1], "a": "é"}) == '{"a":"é","b":[1,null,0.1]}'.encode()
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": float("nan")})


def test_check_absent(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    check_absent(tmp_path / "new", force=False)
    check_absent(tmp_path / "there", force=True)
    with pytest.raises(ConfigError, match=r"there: already exists; give force=True"):
        check_absent(tmp_path / "there", force=False)
    with pytest.raises(ConfigError, match=r"the folder .*no does not exist"):
        check_absent(tmp_path / "no" / "new", force=True)
