"""The verb ``doctor``: what this machine can do, and what supplies the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.cli.flags import translated

if TYPE_CHECKING:
    from nrd_trt.machine.doctor import DoctorReport


def doctor_command(
    *,
    load_plugin: Annotated[
        bool,
        typer.Option("--load-plugin", help="Open the plugin library in a child process, which runs its code."),
    ] = False,
    out: groups.OutputOptions,
) -> None:
    """Tell what this machine can do, and the command that supplies what is missing."""
    from nrd_trt.machine.doctor import doctor

    report = doctor(load_plugin=load_plugin)
    if out.as_json:
        common.print_json(report.to_dict())
    else:
        _print(report)


def _print(report: DoctorReport) -> None:
    for row in report.rows:
        _print_row(row.status, row.name, row.found, row.remedy)
    common.say("", "What can be done here")
    for ability in report.abilities:
        _print_row("yes" if ability.possible else "no", ability.name, ability.why, ability.remedy)


def _print_row(mark: str, name: str, text: str, remedy: str | None) -> None:
    first = f"{mark:<8} {name:<22} "
    common.print_wrapped(first, text)
    if remedy:
        common.print_wrapped(" " * len(first) + "→ ", translated(remedy, {}))
