"""The verb ``selftest``: what this machine's GPU proves of the toolkit, and a report of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nrd_trt.cli import common, groups

if TYPE_CHECKING:
    from nrd_trt.proving.record import SelfTest


def selftest_command(
    *,
    output: Annotated[
        Path, common.output_option("-o", metavar="DIR", help="Folder of selftest.json and selftest.html.")
    ] = Path("nrd-trt-selftest"),
    device: groups.DeviceOption = None,
    parts: Annotated[
        list[str] | None,
        common.checks_option("--part", metavar="NAME", help="Part or pattern ('tensorrt/*'); may be repeated."),
    ] = None,
    deadline_s: Annotated[
        float | None, common.checks_option("--deadline", metavar="S", help="Seconds for one part (default 900).")
    ] = None,
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Prove on this machine's GPU what the toolkit promises, and write a report to attach to an issue."""
    from nrd_trt import selftest

    given = {} if deadline_s is None else {"deadline_s": deadline_s}
    test = selftest(output, device=device, parts=parts or (), **given, force=force, on_stage=out.note)
    out.show(test, _lines(test, output))
    common.exit_on([part.name for part in test.with_result("failed")])


def _lines(test: SelfTest, output: Path) -> Iterator[str]:
    from nrd_trt.proving.report import CONTENT, HTML_FILE, JSON_FILE

    for part in test.with_result("passed"):
        yield f"passed   {part.name}" + (f"  ({part.shown})" if part.shown else "")
    for part in test.with_result("failed"):
        yield f"FAILED   {part.name}: {part.why}"
    for why, left in groupby(test.with_result("not run"), key=lambda part: part.why):
        first, *others = left
        more = f" and {len(others)} more" if others else ""
        yield f"not run  {first.name}{more}: {why}"
    yield f"report: {output / HTML_FILE} and {output / JSON_FILE}, to attach to an issue"
    yield f"it holds: {CONTENT}"
    yield test.conclusion
