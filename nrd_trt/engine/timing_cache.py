"""The timing cache file: one line of JSON that says what it was measured with, then TensorRT's bytes.

Timings of another builder, GPU or driver are not used: they would choose other kernels, or be refused. This module
knows nothing of TensorRT.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nrd_trt.errors import BuildError
from nrd_trt.files import atomic_file, canonical_json, sha256_bytes

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
    gpu: str | None = None
    driver: str | None = None


def read_timing_cache(path: Path, key: TimingCacheKey, on_message: Callable[[str, str], None]) -> bytes:
    """Return the timings of `path` that `key` can use; none where there is no file, or one of another key.

    Args:
        path: May be absent or empty.
        key: Of the build to come.
        on_message: Told ``("WARNING", text)`` when the file has another key.

    Raises:
        BuildError: The file is no timing cache, or was changed.
    """
    data = path.read_bytes() if path.is_file() else b""
    if not data:
        return b""
    line, _, content = data.partition(b"\n")
    try:
        header = json.loads(line)
        found = TimingCacheKey(**header["key"])
        intact = header["format"] == _FORMAT and header["sha256"] == sha256_bytes(content)
    except (ValueError, KeyError, TypeError) as exc:
        raise BuildError(f"{path}: not a timing cache of this version; {_REMEDY}") from exc
    if not intact:
        raise BuildError(f"{path}: the timing cache is damaged: its content does not match its header; {_REMEDY}")
    if found == key:
        return content
    on_message("WARNING", f"{path}: its timings are not used and will be replaced: {_difference(found, key)}")
    return b""


def write_timing_cache(path: Path, key: TimingCacheKey, content: bytes) -> None:
    """Write the timings of a build under their key, atomically."""
    header = {"format": _FORMAT, "key": asdict(key), "sha256": sha256_bytes(content)}
    with atomic_file(path) as temporary:
        temporary.write_bytes(canonical_json(header) + b"\n" + content)


def _difference(found: TimingCacheKey, key: TimingCacheKey) -> str:
    was, now = asdict(found), asdict(key)
    return ", ".join(f"{name} was {was[name]}, is {now[name]}" for name in now if was[name] != now[name])
