"""The timing cache file: one line of JSON that says what it was measured with, then TensorRT's bytes.

Timings of another builder, GPU or driver are not used: they would choose other kernels, or be refused. This module
knows nothing of TensorRT.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from nrd_trt.errors import BuildError
from nrd_trt.files import atomic_file, canonical_json, sha256_bytes
from nrd_trt.progress import OnMessage

_FORMAT = "nrd-trt timing cache 1"
_REMEDY = "delete the file to start a new one."


@dataclass(frozen=True, kw_only=True)
class TimingCacheKey:
    """What timings depend on.

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
    key: TimingCacheKey
    sha256: str


def read_timing_cache(path: Path, key: TimingCacheKey, on_message: OnMessage) -> bytes:
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
        header = msgspec.json.decode(line, type=_Header)
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


def write_timing_cache(path: Path, key: TimingCacheKey, content: bytes) -> None:
    """Write the timings of a build under their key, atomically."""
    header = _Header(format=_FORMAT, key=key, sha256=sha256_bytes(content))
    with atomic_file(path) as temporary:
        temporary.write_bytes(canonical_json(asdict(header)) + b"\n" + content)
