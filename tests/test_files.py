"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrd_trt import files
from nrd_trt.errors import ConfigError
from nrd_trt.files import atomic_file, atomic_folder, canonical_json, check_absent, sha256_bytes, sha256_file
from tests.artefacts import content


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
                assert temporary.parent == tmp_path
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
@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
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
        with atomic_folder(tmp_path / target) as temporary:
            (temporary / file).write_text(file)
        assert content(tmp_path / target) == {file: file.encode()}
    assert names(tmp_path) == ["file.nrd", "out.nrd"]


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_leftovers_of_dead_processes_are_removed(writer: Any, dead_pid: int, tmp_path: Path) -> None:
    """In containers every run may get the same process id, so one with our own is of an earlier process."""
    for pid in (dead_pid, os.getpid()):
        (tmp_path / f".out.tmp-{pid}").mkdir()
        (tmp_path / f".out.tmp-{pid}" / "half.bin").write_bytes(b"half")
    alive, other = f".out.tmp-{os.getppid()}", f".another.tmp-{dead_pid}"
    for name in (alive, other, ".out.tmp-notes"):
        (tmp_path / name).write_bytes(b"")
    with writer(tmp_path / "out") as temporary:
        assert not temporary.is_dir() or names(temporary) == []
        fill(temporary, b"whole")
    assert names(tmp_path) == sorted([alive, other, ".out.tmp-notes", "out"])


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
