"""Files of what TensorRT found out on a GPU: the timings of builds, and the kernels that TensorRT-RTX has compiled.

A timing cache is one line of JSON that says what it was measured with, then TensorRT's bytes. Timings of another
builder, GPU or driver are not used: they would choose other kernels, or be refused. Kernels are in the user's cache
folder, in a file for each plan, GPU and driver. They save time and nothing else, so nothing about them is an error.
This module knows nothing of TensorRT.
"""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from nrd_trt.errors import BuildError
from nrd_trt.files import atomic_file, canonical_json, sha256_bytes
from nrd_trt.json_files import decode_json
from nrd_trt.progress import OnMessage

_FORMAT = "nrd-trt timing cache 1"
_REMEDY = "delete the file to start a new one."
_WRITING = threading.Lock()  # a process has one temporary name for each file


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What timings and kernels depend on.

    Attributes:
        builder: Flavour and version, e.g. ``"tensorrt 10.3.0"``.
        gpu: Name of the GPU, or None where it is not known.
        driver: Version of its driver, or None where it is not known.
    """

    builder: str
    gpu: str | None
    driver: str | None


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The first line of the file."""

    format: str
    key: CacheKey
    sha256: str


def read_timing_cache(path: Path, key: CacheKey, on_message: OnMessage) -> bytes:
    """Return the timings of a file that a build can use; none where there is no file, or one of another key.

    Args:
        path: The file; may be absent or empty.
        key: Key of the build to come.
        on_message: Receives ``("WARNING", text)`` where the file has another key.

    Raises:
        BuildError: The file is no timing cache, or was changed.
    """
    data = path.read_bytes() if path.is_file() else b""
    if not data:
        return b""
    line, _, content = data.partition(b"\n")
    try:
        header = decode_json(line, _Header)
    except ValueError as exc:
        raise BuildError(f"{path}: not a timing cache of this version ({exc}); {_REMEDY}") from exc
    if header.format != _FORMAT or header.sha256 != sha256_bytes(content):
        raise BuildError(f"{path}: the timing cache is damaged: its content does not match its header; {_REMEDY}")
    if header.key == key:
        return content
    was, now = asdict(header.key), asdict(key)
    difference = ", ".join(f"{name} was {was[name]}, is {now[name]}" for name in now if was[name] != now[name])
    on_message("WARNING", f"{path}: its timings are not used and will be replaced: {difference}")
    return b""


def write_timing_cache(path: Path, key: CacheKey, content: bytes) -> None:
    """Write the timings of a build under their key, atomically."""
    header = _Header(format=_FORMAT, key=key, sha256=sha256_bytes(content))
    with atomic_file(path) as temporary:
        temporary.write_bytes(canonical_json(asdict(header)) + b"\n" + content)


def kernel_file(plan: bytes, key: CacheKey) -> Path | None:
    """Return where the kernels of a plan are kept, or None where the user has no folder for it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not folder.is_absolute():  # what the standard for these folders wants
            folder = Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as containers have
        return None
    name = sha256_bytes(canonical_json({"plan": sha256_bytes(plan), **asdict(key)}))
    return folder / "nrd_trt" / f"{name}.kernels"


def read_kernels(path: Path) -> bytes:
    """Return what a file holds; nothing, and a warning, where it cannot be read, and nothing where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as exc:
        _warn(path, f"cannot be read ({exc.strerror}), so kernels are compiled again")
        return b""


def write_kernels(path: Path, content: bytes) -> None:
    """Write a file, atomically; only warn where that is not possible."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # nobody else is to put code there
        with _WRITING, atomic_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as exc:
        _warn(path, f"cannot be written ({exc.strerror}), so the next process compiles kernels again")


def _warn(path: Path, what: str) -> None:
    warnings.warn(f"{path}: {what}; set XDG_CACHE_HOME to a folder of yours.", stacklevel=3)
