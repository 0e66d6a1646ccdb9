"""Files that appear whole or not at all: hashes, atomic writes, atomic folder replacement. Leaf module.

Everything is written in a folder beside its target, with a random name and locked while its writer lives, then renamed.
Process ids do not serve: two containers have equal ones. What a killed process left behind is not locked any more, and
the next writer of the same target removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nrd_trt.errors import ConfigError

PNG = b"\x89PNG\r\n\x1a\n"
"""How every PNG begins."""
INDEX_PNG = (PNG, b"PLTE")
"""Marks of a mask, which a photo has not."""
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
        what = "what it points to" if path.exists() else "another place: there is nothing where it points to"
        raise ConfigError(
            f"{path}: expected a name of its own, got a symbolic link to {os.readlink(path)}; remove the link or name "
            f"{what}."
        )
    if path.exists() and not force:
        raise ConfigError(f"{path}: already exists; give force=True to replace it or choose another name.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; create it first.")


def check_file(path: Path, *, force: bool, marks: Sequence[bytes]) -> None:
    """Raise `ConfigError` where a file may not be written: `force` replaces our own files only.

    Args:
        path: Where the file is written.
        force: Replace a file of the same kind.
        marks: What files of this kind have in their first 64 KiB.
    """
    check_absent(path, force=force)
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: expected a file or nothing, got a folder or a device; choose another name.")
    if path.exists():
        with path.open("rb") as file:
            head = file.read(1 << 16)
        if head and not all(mark in head for mark in marks):
            raise ConfigError(
                f"{path}: expected a file of the kind that is to be written, got another one; force=True removes "
                "nothing that this tool did not write. Move it, or choose another name."
            )


def check_folder(path: Path) -> None:
    """Raise `ConfigError` where no folder can be made, or written into: a file, or a link to nothing."""
    if path.is_symlink() and not path.exists():
        check_absent(path, force=True)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: expected a folder, got a file; choose another name.")


def hold_file(path: Path, *, force: bool) -> int:
    """Make an empty file that grows under its own name; return the descriptor that locks it while it is open.

    Raises:
        ConfigError: Another run holds it; or it exists and `force` is off.
        OSError: It cannot be made.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (0 if force else os.O_EXCL), 0o666)
        except FileExistsError:
            check_absent(path, force=False)
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(f"{path}: another run is writing it; wait for its end, or choose another name.") from None
        except OSError:
            pass  # a file system without locks
        if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
            os.ftruncate(descriptor, 0)
            return descriptor
        os.close(descriptor)  # the run before has given it its final name meanwhile


@contextmanager
def atomic_file(path: Path, *, beside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path near `path`; rename it to `path` when the block ends without an error.

    It lies beside `path`, or beside `beside`: a bundle, for one, may hold no file that it does not list.
    """
    with workspace(beside or path) as folder:
        temporary = folder / path.name
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder beside `path`; put it in the place of `path` when the block ends without an error.

    Raises:
        ConfigError: `path` exists at the end, e.g. by another process, and `force` is off.
    """
    with workspace(path) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        _swap_in(temporary, path, force)


@contextmanager
def workspace(path: Path) -> Iterator[Path]:
    """Yield a new, locked folder beside `path`; remove what has its name at the end."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*-*"):
        if re.fullmatch(rf"\.{re.escape(path.name)}\.(?:tmp|old)-[0-9a-f]+", stale.name):
            _remove_unlocked(stale)
    lock, folder = None, path
    while lock is None:  # another writer may remove the folder between its birth and its lock
        folder = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
        folder.mkdir()
        lock = _lock(folder)
    try:
        yield folder
    finally:
        _remove(folder)  # after an exchange the old output, which may have been a file
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return the descriptor that locks a new folder; None where the folder was removed meanwhile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks: `_remove_unlocked` removes nothing there
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if folder.exists():
        return descriptor
    os.close(descriptor)
    return None


def _remove_unlocked(path: Path) -> None:
    """Remove a temporary whose writer is dead."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _swap_in(temporary: Path, path: Path, force: bool) -> None:
    """Put `temporary` in the place of `path`; afterwards `temporary` is the old folder or gone."""
    try:
        temporary.rename(path)  # the system refuses this where `path` is a file or holds one
    except OSError:
        check_absent(path, force=force)
        if not path.exists():
            raise
        if not _exchange(temporary, path):
            # No atomic exchange here: between the two renames a kill leaves no output, never a half one.
            old = path.with_name(temporary.name.replace(".tmp-", ".old-"))
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
