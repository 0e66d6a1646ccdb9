"""Change the product in a seeded sample of places, one at a time, and count how many changes the tests notice.

First: coverage run --rcfile scripts/dev/coverage.ini -m pytest -n auto --dist loadfile, then coverage combine, which
records the tests that run each line. Each mutant is judged by those tests, then by those of its room, in a copy of the
checkout; a survivor is one that all of them pass. Tests that noticed something must pass on the unchanged copy.
Arguments of decorators are left alone: frozen=True and the like restrict the writer of code, not what the code does.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("nrd_trt", "calibration", "plugins", "scripts", "tests", "setup.cfg", "pyproject.toml", "README.md", "docs")
MOST_TESTS = 40
TIMEOUT_S = 900
COMPARISONS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
               ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"}  # fmt: skip
ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "*"}


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change: the text of a node of one file, and what takes its place."""

    path: Path
    line: int
    start: int
    end: int
    text: str


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield every change of a file that this script knows."""
    source = path.read_text(encoding="utf-8")
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    tree = ast.parse(source)
    decorators = [part for node in ast.walk(tree) for part in getattr(node, "decorator_list", [])]
    spared = {node for part in decorators for node in ast.walk(part)}
    for node in ast.walk(tree):
        replacement = _replacement(node)
        if replacement is not None and isinstance(node, ast.expr) and node not in spared:
            first = starts[node.lineno - 1] + node.col_offset
            last = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            yield Mutant(path=path.relative_to(ROOT), line=node.lineno, start=first, end=last, text=replacement)


def _replacement(node: ast.AST) -> str | None:
    """Return another expression in the place of a node, or None where nothing is changed."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = COMPARISONS[type(node.ops[0])]
        return f"({ast.unparse(node.left)} {other} {ast.unparse(node.comparators[0])})"
    if isinstance(node, ast.BoolOp):
        word = " or " if isinstance(node.op, ast.And) else " and "
        return f"({word.join(f'({ast.unparse(value)})' for value in node.values)})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return f"({ast.unparse(node.operand)})"
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _is_text(node):
        return f"(({ast.unparse(node.left)}) {ARITHMETIC[type(node.op)]} ({ast.unparse(node.right)}))"
    if isinstance(node, ast.IfExp):
        return f"({ast.unparse(node.orelse)})"
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return repr(not node.value if isinstance(node.value, bool) else node.value + 1)
    return None


def _is_text(node: ast.BinOp) -> bool:
    parts = (node.left, node.right)
    return any(isinstance(part, ast.JoinedStr) or isinstance(getattr(part, "value", None), str) for part in parts)


def tests_of(data: CoverageData, mutant: Mutant) -> tuple[list[str], list[str]]:
    """Return arguments of pytest: the tests that run the changed line, a few of many, and those of its room.

    What runs on import, in a fixture or in a child process belongs to no test, so that the room's tests come after.
    """
    contexts = data.contexts_by_lineno(str(ROOT / mutant.path)).get(mutant.line, [])
    tests = sorted({context for context in contexts if context.startswith("tests.")})
    found = []
    for name in tests:
        module, _, function = name.rpartition(".")
        while module and not (file := ROOT / f"{module.replace('.', '/')}.py").is_file():
            module, _, outer = module.rpartition(".")
            function = f"{outer}::{function}"
        if module:
            found.append(f"{file.relative_to(ROOT)}::{function}")
    random.Random(str(mutant)).shuffle(found)
    room = Path("tests", *(part for part in mutant.path.parent.parts if part != "nrd_trt"))
    while not (ROOT / room).is_dir():
        room = room.parent
    own = room / f"test_{mutant.path.stem}.py"
    first = found[:MOST_TESTS] + ([str(own)] if (ROOT / own).is_file() else [])
    return first, [] if room == Path("tests") else [str(room)]


def run_tests(tests: Iterable[str], copy: Path) -> list[str]:
    """Return what fails first of some tests, a test or a run without an end; nothing where all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "--tb=no", "-p", "no:cacheprovider", *tests]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=settings, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [f"no end in {TIMEOUT_S} s"]
    found = re.findall(r"^(?:FAILED|ERROR) ([^ \[\n]+)", done.stdout, re.MULTILINE)
    return found or [f"exit status {done.returncode}"] * (done.returncode != 0)


def killer_of(mutant: Mutant, tests: Iterable[list[str]], copy: Path) -> str | None:
    """Apply a mutant to the copy, run tests, one group after the other, undo it, and return what noticed it."""
    target = copy / mutant.path
    original = target.read_bytes()
    target.write_bytes(original[: mutant.start] + mutant.text.encode() + original[mutant.end :])
    try:
        found = (name for group in tests if group for name in run_tests(group, copy))
        return next(found, None)
    finally:
        target.write_bytes(original)


def main() -> int:
    """Draw the sample, judge each mutant, print the survivors and the share that was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants judged at a time")
    parser.add_argument("--data", type=Path, default=ROOT / "build/coverage/.coverage", metavar="FILE")
    args = parser.parse_args()
    data = CoverageData(str(args.data))
    data.read()
    files = sorted([*(ROOT / "nrd_trt").rglob("*.py"), *(ROOT / "calibration").rglob("*.py")])
    files = [path for path in files if (ROOT / "nrd_trt/calibration") not in path.parents]
    every = [mutant for path in files for mutant in mutants_of(path)]
    sample = random.Random(args.seed).sample(every, args.count)
    with tempfile.TemporaryDirectory(prefix="nrd_trt-mutants-") as folder, ThreadPoolExecutor(args.jobs) as workers:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(args.jobs):
            copies.put(copy := Path(folder, str(number)))
            for name in COPIED:
                source = ROOT / name
                if source.is_dir():
                    shutil.copytree(source, copy / name, symlinks=True)
                else:
                    shutil.copy(source, copy)

        def judge(mutant: Mutant) -> str | None:
            copy = copies.get()
            try:
                return killer_of(mutant, tests_of(data, mutant), copy)
            finally:
                copies.put(copy)

        killers = []
        for number, (mutant, killer) in enumerate(zip(sample, workers.map(judge, sample), strict=True), 1):
            where = f"{mutant.path}:{mutant.line}: {mutant.text[:80]}"
            print(f"{number:3} {'killed' if killer else 'survives':8} {where} ({killer})", flush=True)
            killers += [killer] if killer else []
        tests = sorted({killer for killer in killers if killer.startswith("tests/")})
        if not killers or (wrong := run_tests(tests, copy)):
            print(f"without any change fails, too: {', '.join(wrong)}" if killers else "none was killed")
            return 1
    print(f"{len(killers)} of {len(sample)} killed ({len(killers) / len(sample):.0%}), seed {args.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
