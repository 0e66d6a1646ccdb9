"""Which part of a kernel an instruction belongs to, by the functions of the source that were inlined there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from .listing import Instruction

OTHER = "other"
_NO_FUNCTIONS = {"if", "for", "while", "switch", "catch", "alignas", "constexpr"}
_LOOK_BACK = 8


@cache
def functions_of(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Return first line, last line and name of every function of a C++ file that is formatted as clang-format does.

    A body begins at a line with nothing but a brace, and ends at the next brace of the same indentation.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    found = []
    for number, line in enumerate(lines):
        if line.strip() != "{" or (name := _name_before(lines, number)) is None:
            continue
        end = next(i for i in range(number + 1, len(lines)) if re.match(line.replace("{", "") + r"\}", lines[i]))
        found.append((number + 1, end + 1, name))
    return tuple(found)


def _name_before(lines: Sequence[str], brace: int) -> str | None:
    """Read the header above a brace: the name before its first parenthesis."""
    header = ""
    for line in reversed(lines[max(brace - _LOOK_BACK, 0) : brace]):
        if not line.strip() or line.rstrip().endswith((";", "}", "{")) or line.strip().startswith(("//", "#", "*")):
            break
        header = f"{line.strip()} {header}"
    found = re.search(r"(\w+)\s*\(", re.sub(r"__\w+__\s*(\([^()]*(\([^()]*\))?[^()]*\))?", "", header))
    return found.group(1) if found and found.group(1) not in _NO_FUNCTIONS else None


def function_at(path: str, line: int) -> str:
    """Return the innermost function around a line, or an empty text."""
    around = [(last - first, name) for first, last, name in functions_of(Path(path)) if first <= line <= last]
    return min(around)[1] if around else ""


def phase_of(instruction: Instruction, phases: Mapping[str, Sequence[str]]) -> str:
    """Return the phase of the innermost inlined function that is in one.

    Args:
        instruction: Compiled with line information.
        phases: Names of functions by phase.
    """
    for path, line in instruction.lines:
        name = function_at(path, line)
        for phase, names in phases.items():
            if name in names:
                return phase
    return OTHER
