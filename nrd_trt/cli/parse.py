"""Texts of the command line as Python values: sizes, ranges, lists of numbers. The library checks what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nrd_trt.errors import ConfigError
from nrd_trt.specs import Size


def parse_size(text: str, flag: str = "--size") -> Size:
    """Parse ``"HxW"``."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None:
        raise ConfigError(f"{flag} {text!r}: expected HEIGHTxWIDTH such as 512x1024.")
    return int(match[1]), int(match[2])


def parse_dynamic(text: str) -> tuple[Size, Size, Size]:
    """Parse ``"MIN:OPT:MAX"``, each ``HxW``."""
    sizes = [parse_size(part, "--dynamic") for part in text.split(":")]
    if len(sizes) != 3:
        raise ConfigError(f"--dynamic {text!r}: expected MIN:OPT:MAX such as 256x512:512x1024:1024x2048.")
    return sizes[0], sizes[1], sizes[2]


def parse_batch(text: str) -> int | tuple[int, int, int]:
    """Parse ``"N"`` or ``"MIN:OPT:MAX"``."""
    match = re.fullmatch(r"(\d+)(?::(\d+):(\d+))?", text)
    if match is None:
        raise ConfigError(f"--batch {text!r}: expected N or MIN:OPT:MAX.")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]), int(match[3]))


def parse_numbers(flag: str, text: str, kind: Callable[[str], Any], count: int) -> Any:
    """Parse `count` numbers of a kind, separated by commas."""
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise ConfigError(f"{flag} {text!r}: expected {count} numbers separated by commas.")
    return values


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read the file of ``--classes``: one name per line."""
    try:
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--classes {path}: cannot read it ({exc}); expected one class name per line.") from exc
