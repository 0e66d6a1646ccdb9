"""The self-test: every part in a child process, and a report that is whole after each of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path

import nrd_trt
from nrd_trt.engine.compat import installed_flavours
from nrd_trt.errors import ConfigError
from nrd_trt.files import check_file, check_folder, workspace
from nrd_trt.machine.device import check_device, choose_device
from nrd_trt.machine.doctor import doctor
from nrd_trt.machine.findings import Row
from nrd_trt.progress import OnStage, silent
from nrd_trt.proving.child import part_command, run_part
from nrd_trt.proving.parts import Part, all_parts
from nrd_trt.proving.record import PartResult, SelfTest
from nrd_trt.proving.report import HTML_FILE, JSON_FILE, cleaner, write_report
from nrd_trt.specs import as_path, check_number

DEFAULT_OUTPUT = "nrd-trt-selftest"
DEADLINE_S = 900.0
NOT_REACHED = "not reached"


def selftest(
    output: Path | str = DEFAULT_OUTPUT,
    *,
    device: int | str | None = None,
    parts: Sequence[str] = (),
    deadline_s: float = DEADLINE_S,
    force: bool = False,
    on_stage: OnStage = silent,
) -> SelfTest:
    """Prove on this machine's GPU what the toolkit promises, and write a report to attach to an issue.

    Plans of a small network and of the zoo's are built in every precision for every TensorRT that is installed, and
    their own masks are compared with the references; then CUDA graphs, two threads and times follow. Every part runs in
    a child process. A part that lacks something is not run, with the reason, and so is one that reaches its deadline;
    one whose process crashes has failed. ``selftest.json`` and ``selftest.html`` are whole after every part, so that
    what was done stays where the run is stopped.

    Args:
        output: Folder of the report, which is made where it is missing; engines lie there meanwhile.
        device: The GPU: a number, or a UUID such as ``"MIG-…"``; None is the first.
        parts: Names or patterns of parts, such as ``"tensorrt/small/*"``; what they need is run as well. None are all.
        deadline_s: Seconds that one part may take.
        force: Replace an existing report.
        on_stage: Receives a line when a part begins, and one when it has ended.

    Returns:
        One result for each part. A part that failed is a result and no error.

    Raises:
        ConfigError: A report is there already, no part has such a name, or there is no such GPU.
        RunnerError: A GPU is asked for and there is none to use; the message says why.
    """
    folder = as_path("output", output)
    check_number("deadline_s", deadline_s, low=1, whole=False)
    check_device(device)
    # Who names plans of a flavour that is not there is told so; who names nothing is spared the long list.
    chosen = list(_chosen(all_parts() if parts else all_parts(installed_flavours()), parts))
    choose_device(device)  # for the children, who inherit it
    _prepare(folder, force=force)
    clean = cleaner(folder)
    on_stage("looking at the machine")
    test = SelfTest(
        nrd_trt=nrd_trt.__version__,
        date=f"{datetime.now(timezone.utc):%Y-%m-%d}",
        machine=tuple(Row(row.name, row.status, clean(row.found)) for row in doctor().rows),
        parts=tuple(PartResult(name=part.name, why=NOT_REACHED) for part in chosen),
    )
    write_report(folder, test)
    with workspace(folder.resolve() / "engines") as work:
        for index, part in enumerate(chosen):
            found = _blocked(part, test) or _run(part, work, deadline_s, on_stage)
            found = replace(found, why=clean(found.why), output=clean(found.output))
            test = replace(test, parts=(*test.parts[:index], found, *test.parts[index + 1 :]))
            write_report(folder, test)
    return test


def _chosen(known: dict[str, Part], patterns: Sequence[str]) -> Iterator[Part]:
    """Yield the parts of these names and all that they need, in their order."""
    wanted = set(known) if not patterns else set[str]()
    for pattern in patterns:
        found = {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            raise ConfigError(
                f"parts={pattern!r}: expected a part or a pattern of some, got none of {', '.join(known)}."
            )
        wanted |= found
    for part in reversed(known.values()):  # what is needed stands before what needs it
        if part.name in wanted:
            wanted |= {*part.needs}
    return (part for name, part in known.items() if name in wanted)


def _prepare(folder: Path, *, force: bool) -> None:
    """Make the folder, where the report of an earlier run may be replaced."""
    check_folder(folder)
    if not folder.parent.is_dir():
        raise ConfigError(f"output={folder}: the folder {folder.parent} does not exist; create it first.")
    folder.mkdir(exist_ok=True)
    check_file(folder / JSON_FILE, force=force, marks=[b'"nrd_trt"', b'"machine"'])
    check_file(folder / HTML_FILE, force=force, marks=[b"<title>Self-test of nrd_trt"])


def _blocked(part: Part, test: SelfTest) -> PartResult | None:
    """Say that a part is not run where one that it needs has not passed; the first reason of all is handed on."""
    results = {one.name: one for one in test.parts}
    for name in part.needs:
        if (need := results[name]).result != "passed":
            because = "failed" if need.result == "failed" else f"was not run: {need.why}"
            why = need.why if need.why.startswith("needs ") else f"needs {name}, which {because}"
            return PartResult(name=part.name, why=why)
    return None


def _run(part: Part, work: Path, deadline_s: float, on_stage: OnStage) -> PartResult:
    """Run a part in a child process."""
    on_stage(f"{part.name} …")
    answer, began = work / f"{part.name.replace('/', '-')}.json", time.perf_counter()
    told = run_part(part_command(part.name, work, answer), answer, deadline_s)
    seconds = round(time.perf_counter() - began, 1)
    on_stage(f"{told.result:<8} {part.name}, {seconds:g} s")
    return PartResult(name=part.name, seconds=seconds, **vars(told))
