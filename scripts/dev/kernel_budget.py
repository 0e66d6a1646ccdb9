"""Execute the machine code of the mask kernels without a GPU and hold what it costs against the table of budgets.

Compiles the kernels with nvcc, disassembles them, runs blocks of a 1024x2048 mask on the machine of `scripts/dev/sass`
and compares the masks with the host reference. Prints the cost of an average block and predicted times, which no GPU
has confirmed; docs/kernel-costs.md says how they come about. Exits 1 when a budget is exceeded, a kernel has a fault
that is not known, or draws a wrong mask. Without nvcc, disassembler or g++ it says so and exits 0, with ``--json`` 2.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import get_args

from sass import budgets, cases, toolchain
from sass.cost import Cost
from sass.devices import ARCHITECTURES
from sass.lints import find_faults
from sass.multiprocessor import ExecutionError, library
from sass.problems import ELEMENTS, Element, Theta

THETAS: tuple[Theta, ...] = get_args(Theta)
PAGE = toolchain.ROOT / "docs" / "kernel-costs.md"
PAGE_CLASSES = (19, 150)
_TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def page_order(case: cases.Case) -> tuple[object, ...]:
    """Return what the page's rows are ordered by."""
    return -case.architecture, case.classes, case.theta, case.variant


@dataclass(frozen=True, kw_only=True)
class Job:
    """The cases of one architecture and type, which one process measures."""

    architecture: int
    element: Element
    cubin: Path
    patterns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a job found: costs by case, faults by architecture and kernel, and what was wrong."""

    cases: tuple[tuple[cases.Case, Cost], ...]
    faults: dict[str, dict[str, int]]
    errors: tuple[str, ...]


def run_job(job: Job) -> Found:
    """Measure the cases of a job; also those after one that fails."""
    table = budgets.read_budgets()
    machine = cases.make_machine(job.architecture, job.cubin)
    measured, errors, faults = [], [], {}
    for case in cases.list_cases(machine, elements=[job.element], thetas=THETAS):
        if not any(fnmatch(case.name, pattern) for pattern in job.patterns):
            continue
        try:
            measured.append((case, cases.measure(machine, case, table.phases)))
        except ExecutionError as exc:
            errors.append(f"{case.name}: {exc}")
        faults[f"sm_{job.architecture} {case.kernel}"] = find_faults(machine.code[case.kernel], table.phases)
    return Found(cases=tuple(measured), faults=faults, errors=tuple(errors))


def merge(parts: Sequence[Found]) -> Found:
    """Put the findings of all jobs together."""
    faults = {key: found for part in parts for key, found in part.faults.items()}
    return Found(
        cases=tuple(case for part in parts for case in part.cases),
        faults=faults,
        errors=tuple(error for part in parts for error in part.errors),
    )


def make_jobs(folder: Path, options: argparse.Namespace) -> Iterator[Job]:
    """Compile the kernels, or take the cubin that is given."""
    for architecture in options.arch:
        cubin = options.cubin or folder / f"sm_{architecture}.cubin"
        if options.cubin is None:
            toolchain.compile_with_lines(toolchain.SOURCE, architecture, cubin)
        for element in ELEMENTS:
            yield Job(architecture=architecture, element=element, cubin=cubin, patterns=tuple(options.only))


def record_of(case: cases.Case, cost: Cost) -> dict[str, object]:
    """Return a case as ``--json`` prints it."""
    head = {
        "arch": f"sm_{case.architecture}",
        "classes": case.classes,
        "type": case.element,
        "theta": case.theta,
        "variant": cases.variant_name(case.variant),
        "kernel": case.kernel,
        "name": case.name,
    }
    return head | asdict(cost)


def table_of(found: Found) -> str:
    """Return the costs as a Markdown table."""
    head = "case|instructions|cycles|busiest pipe|alone|registers|warps|wavefronts|sectors|predicted µs"
    rows = [head.split("|"), ["---", *["---:"] * 9]]
    for case, cost in found.cases:
        pipe = max(cost.pipes, key=lambda name: cost.pipes[name])
        times = [f"{name} {time.us:.0f} ({time.lower_us:.0f}–{time.upper_us:.0f})" for name, time in cost.times.items()]
        row = [case.name, f"{cost.warp_instructions:.0f}", f"{cost.cycles:.0f}", f"{pipe} {cost.busy_cycles:.0f}"]
        row += [f"{cost.path_cycles:.0f}", str(cost.registers), str(cost.resident_warps)]
        row += [f"{cost.shared_wavefronts:.0f}/{cost.fewest_shared_wavefronts:.0f}"]
        row += [f"{cost.global_sectors:.0f}/{cost.fewest_global_sectors:.0f}", ", ".join(times)]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_page(found: Found) -> None:
    """Put the cases of two class counts in fp16 into the documentation."""
    shown = [(case, cost) for case, cost in found.cases if case.element == "fp16" and case.classes in PAGE_CLASSES]
    table = table_of(replace(found, cases=tuple(sorted(shown, key=lambda pair: page_order(pair[0])))))
    PAGE.write_text(_TABLE.sub(lambda _: f"{table}\n", PAGE.read_text()))


def phases_of(found: Found) -> str:
    """Return the warp instructions of every phase as a Markdown table."""
    names = list(dict.fromkeys(name for _, cost in found.cases for name in sorted(cost.phases)))
    rows = [["case", *names], ["---", *["---:"] * len(names)]]
    rows += [[case.name, *(f"{cost.phases.get(name, 0):.0f}" for name in names)] for case, cost in found.cases]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def update(found: Found, table: budgets.Budgets, *, whole: bool) -> budgets.Budgets:
    """Return the table with limits for what was measured; other cases keep theirs, unless the run was a whole one."""
    kept = {} if whole else dict(table.limits)
    limits = kept | {case.name: budgets.limit_of(cost) for case, cost in found.cases}
    known = ({} if whole else dict(table.known_faults)) | found.faults
    faults = {key: faults for key, faults in known.items() if faults}
    return replace(table, compiler=toolchain.compiler_version(), limits=limits, known_faults=faults)


def complaints(found: Found, table: budgets.Budgets) -> list[str]:
    """Return all that is wrong, one sentence each."""
    excess = [text for case, cost in found.cases for text in budgets.find_excess(case.name, cost, table.limits)]
    faults = [
        text for key, given in found.faults.items() for text in budgets.find_new_faults(key, given, table.known_faults)
    ]
    missing = [] if found.cases or found.errors else ["--only: expected a pattern that a case matches, got none"]
    return [*missing, *found.errors, *excess, *faults]


def is_whole(options: argparse.Namespace) -> bool:
    """Whether no case was left out."""
    return bool(options.only == ["*"] and options.arch == sorted(ARCHITECTURES))


def measure_all(options: argparse.Namespace) -> Found:
    library()  # compiled once, before the processes that use it
    with tempfile.TemporaryDirectory() as folder:
        jobs = list(make_jobs(Path(folder), options))
        if options.jobs == 1:
            return merge([run_job(job) for job in jobs])
        with ProcessPoolExecutor(options.jobs) as pool:
            return merge(list(pool.map(run_job, jobs)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--arch", type=int, nargs="*", default=sorted(ARCHITECTURES), metavar="N", help="87, 90 or both"
    )
    parser.add_argument(
        "--only", nargs="*", default=["*"], metavar="PATTERN", help="such as 'sm_90.k19.fp16.natural.*'"
    )
    parser.add_argument("--cubin", type=Path, help="compiled kernels, for one --arch, instead of compiling them")
    parser.add_argument("--jobs", type=int, default=2, help="processes; default 2")
    parser.add_argument("--json", action="store_true", help="print one object with all that was counted")
    parser.add_argument("--phases", action="store_true", help="print the instructions of every phase, too")
    parser.add_argument(
        "--update",
        action="store_true",
        help="write the table: what was measured and three per cent; without --only the page, too",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        toolchain.find_nvcc(), toolchain.find_disassembler(), toolchain.find_headers()
        found = measure_all(options)
    except toolchain.MissingToolError as exc:
        print(f"kernel_budget: skipped: {exc}", file=sys.stderr)
        return 2 if options.json else 0
    table = budgets.read_budgets()
    if options.update:
        table = update(found, table, whole=is_whole(options))
        budgets.write_budgets(table)
        if is_whole(options):
            write_page(found)
    wrong = complaints(found, table)
    if options.json:
        print(json.dumps({"cases": [record_of(*case) for case in found.cases], "failures": wrong}))
        return 1 if wrong else 0
    print(table_of(found))
    if options.phases:
        print(f"\n{phases_of(found)}")
    costs = {case.name: cost for case, cost in found.cases}
    goals = [text for goal in table.goals if (text := budgets.describe_goal(goal, costs)) is not None]
    print("\n".join(["", *goals]))
    version = toolchain.compiler_version()
    if wrong and version != table.compiler:
        print(f"The budgets are those of nvcc {table.compiler}; this is {version}.", file=sys.stderr)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
