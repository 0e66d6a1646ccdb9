"""Files that appear whole or not at all: hashes, atomic writes, atomic folder replacement. Leaf module.

Everything is written beside its target under a temporary name that carries the writer's process id, then renamed. What
a killed process left behind is removed by the next writer of the same target.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nrd_trt.errors import ConfigError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(data: Any) -> bytes:
    """Return the one byte string for `data`: sorted keys, no spaces, UTF-8. NaN is refused."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def check_absent(path: Path, *, force: bool) -> None:
    """Raise `ConfigError` when `path` exists and `force` is off, is a link, or when its folder does not exist."""
    if path.is_symlink():
        raise ConfigError(
            f"{path}: expected a name of its own, got a symbolic link to {os.readlink(path)}; remove the link or name "
            "what it points to."
        )
    if path.exists() and not force:
        raise ConfigError(f"{path}: already exists; give force=True to replace it or choose another name.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; create it first.")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error."""
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; swap it in for `path` when the block ends without an error."""
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _swap_in(temporary, path)
    finally:
        _remove(temporary)  # the old output after an exchange, which may have been a file


def _temporary(path: Path) -> Path:
    """Name the temporary neighbour of `path` and remove those of dead processes."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*-*"):
        match = re.fullmatch(rf"\.{re.escape(path.name)}\.(?:tmp|old)-(\d+)", stale.name)
        # Our own id is stale too: in containers every run may get the same one.
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            _remove(stale)
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _swap_in(temporary: Path, path: Path) -> None:
    """Put `temporary` in the place of `path`; afterwards `temporary` is the old folder or gone."""
    if not path.exists():
        temporary.rename(path)
    elif not _exchange(temporary, path):
        # No atomic exchange here: between the two renames a kill leaves no output, never a half one.
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        path.rename(old)
        temporary.rename(path)
        _remove(old)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = (os.fsencode(first), os.fsencode(second))
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
