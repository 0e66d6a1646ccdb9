"""The verb ``doctor``: what this machine can do, and what supplies the rest."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING

import typer

from nrd_trt.cli import common, groups

if TYPE_CHECKING:
    from nrd_trt.machine.doctor import DoctorReport

_WIDEST = 100


def doctor_command(
    *,
    out: groups.OutputOptions,
) -> None:
    """Tell what this machine can do, and the command that supplies what is missing."""
    from nrd_trt.machine.doctor import doctor

    report = doctor()
    if out.as_json:
        common.print_json(report.to_dict())
    else:
        _print(report)


def _print(report: DoctorReport) -> None:
    width = max(60, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
    for row in report.rows:
        _print_row(row.status, row.name, row.found, row.remedy, width)
    typer.echo("\nWhat can be done here")
    for ability in report.abilities:
        _print_row("yes" if ability.possible else "no", ability.name, ability.why, ability.remedy, width)


def _print_row(mark: str, name: str, text: str, remedy: str | None, width: int) -> None:
    first = f"{mark:<8} {name:<22} "
    rest = " " * len(first)
    for index, line in enumerate(_wrapped(text, width - len(rest))):
        typer.echo((rest if index else first) + line)
    for index, line in enumerate(_wrapped(remedy or "", width - len(rest) - 2)):
        typer.echo(rest + ("  " if index else "→ ") + line)


def _wrapped(text: str, width: int) -> list[str]:
    """Break a text at blanks only, so that commands and paths can be copied."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
