"""JSON from outside: bounded in size, depth and numbers, and of the type that its reader names. Leaf module."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

MOST_BYTES = 16 << 20
"""Size of the largest text that is read; the record of a network with a thousand layers has a hundredth of it."""
_DEEPEST = 32
_LARGEST = 1 << 63


def decode_json(text: bytes | str, kind: type[T]) -> T:
    """Decode a JSON text as a value of a type.

    Args:
        text: UTF-8.
        kind: A dataclass or another type that msgspec knows; fields that it does not have are skipped.

    Raises:
        ValueError: The text is too long, no JSON, nested deeper than 32 levels, holds a number of more than 64 bits, or
            is not of this type.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes of JSON, got {len(text)}")
    try:
        value = msgspec.json.decode(text)
    except RecursionError as exc:
        raise ValueError(f"expected JSON of at most {_DEEPEST} levels, got far more") from exc
    _check_bounds(value)
    return msgspec.convert(value, kind)


def read_json(path: Path, kind: type[T]) -> T:
    """Read a file as `decode_json` does.

    Raises:
        ValueError: As there, or it is a pipe, a device or a folder.
        OSError: It cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("expected a file, got a folder, a pipe or a device")
    with path.open("rb") as file:
        return decode_json(file.read(MOST_BYTES + 1), kind)


def _check_bounds(value: Any) -> None:
    """Raise `ValueError` where something is nested too deep or a number is too large."""
    level, depth = [value], 0
    while level:
        if any(isinstance(one, int) and not -_LARGEST <= one < _LARGEST for one in level):
            raise ValueError("expected numbers of at most 64 bits, got a larger one")
        if depth > _DEEPEST:
            raise ValueError(f"expected JSON of at most {_DEEPEST} levels, got more")
        depth += 1
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
