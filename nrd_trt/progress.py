"""How a long run reports: a bar on stderr, and callbacks that a caller may give. Leaf module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

OnStage = Callable[[str], None]
"""Receives one line when a stage begins."""

OnMessage = Callable[[str, str], None]
"""Receives TensorRT's messages as ``(severity, text)``."""

OnLayer = Callable[[str, float], None]
"""Receives the name of a layer that was run and its milliseconds."""


def printable(text: str) -> str:
    """Return a line that a terminal shows as it is: what is not printable, line breaks included, stands as its escape.

    Names in a bundle, an ONNX file or a folder may hold what moves a cursor, turns the order of letters or looks like a
    line of ours.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def silent(*_: str) -> None:
    """Ignore a report."""


def bar(
    items: Iterable[Item] | None = None, *, desc: str, unit: str, show: bool, total: int | None = None, done: int = 0
) -> tqdm[Item]:
    """Wrap a loop in a bar on stderr that appears where the loop takes longer than two seconds.

    Args:
        items: What is iterated; None for a bar that is updated by hand.
        desc: What is done.
        unit: What is counted.
        show: False hides the bar.
        total: Number of items, where `items` does not tell.
        done: How many of them an earlier run has done.
    """
    given: Any = items
    return tqdm(
        given,
        desc=printable(desc),
        unit=unit,
        total=total,
        initial=done,
        delay=2,
        file=sys.stderr,
        disable=not show,
        leave=False,
    )
