"""Texts of the command line as Python values: parsers of options. The library checks what the values mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from nrd_trt.specs import Size


def parse_size(text: str) -> Size:
    """Parse ``"HxW"``."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r}: expected HEIGHTxWIDTH such as 512x1024.")
    return int(match[1]), int(match[2])


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Parse ``"HxW,HxW"``."""
    return tuple(map(parse_size, text.split(",")))


def parse_dynamic(text: str) -> tuple[Size, ...]:
    """Parse ``"MIN:OPT:MAX"``, each ``HxW``."""
    sizes = tuple(map(parse_size, text.split(":")))
    if len(sizes) != 3:
        raise typer.BadParameter(f"{text!r}: expected MIN:OPT:MAX such as 256x512:512x1024:1024x2048.")
    return sizes


def parse_batch(text: str) -> int | tuple[int, int, int]:
    """Parse ``"N"`` or ``"MIN:OPT:MAX"``."""
    match = re.fullmatch(r"(\d+)(?::(\d+):(\d+))?", text)
    if match is None:
        raise typer.BadParameter(f"{text!r}: expected N or MIN:OPT:MAX.")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]), int(match[3]))


def parse_concurrency(text: str) -> tuple[int, int]:
    """Parse ``"N"`` or ``"MIN:MAX"``."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match is None:
        raise typer.BadParameter(f"{text!r}: expected N or MIN:MAX.")
    return int(match[1]), int(match[2] or match[1])


def parse_scales(text: str) -> tuple[float, ...]:
    """Parse numbers that are separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected numbers separated by commas, such as 0.5,1,1.5.") from None


def parse_device(text: str) -> int | str:
    """Parse the number or the UUID of a GPU."""
    return int(text) if text.isascii() and text.isdigit() else text


def parse_names(text: str) -> tuple[str, ...]:
    """Parse names that are separated by commas."""
    return tuple(name.strip() for name in text.split(","))


def parse_option(text: str) -> tuple[str, str]:
    """Parse ``"NAME=VALUE"``."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"{text!r}: expected NAME=VALUE such as max_aux_streams=2.")
    return name, value


def numbers(kind: Callable[[str], Any], count: int) -> Callable[[str], tuple[Any, ...]]:
    """Return a parser of `count` numbers of a kind, separated by commas."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count:
            raise typer.BadParameter(f"{text!r}: expected {count} numbers separated by commas.")
        return values

    return parse


def read_class_names(path: str) -> tuple[str, ...]:
    """Read a file of class names, one per line."""
    try:
        return tuple(line.strip() for line in Path(path).read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as exc:
        raise typer.BadParameter(f"{path!r}: cannot read it ({exc}); expected one class name per line.") from exc
