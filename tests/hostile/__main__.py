"""Reads mutated files for a given time and writes the table of the documentation; exits 1 where a gate fails.

python -m tests.hostile docs/hostile.md [--seconds N] [--jobs N] [--seed N] [--only READER] [--found DIR]
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import torch

from tests import helpers
from tests.hostile import guided
from tests.hostile.fuzz import Score, attempt, way_of
from tests.hostile.loaders import LOADERS, cases, prepare
from tests.hostile.sandbox import MOST_MIB, SECONDS

_TEXT = f"""# Hostile files

`make fuzz SECONDS=600` changes honest files at random, from a seed, and reads each in a process of its own, by the
functions and verbs that read files of strangers. `bundle.json` and the files beside it get right hashes, as an attacker
would give them. A case holds where it ends in a typed error or a result within {SECONDS} s and {MOST_MIB} MiB beyond an
honest process, without a signal and without a file left behind. `make test` reads a few from one seed, and every file
of `tests/hostile/corpus`, each of which once failed.

| Reader | Cases | Refused | Read | Internal errors | Signals | Too long | Memory | Files left | Most memory |
|---|---|---|---|---|---|---|---|---|---|
"""
_PARSERS = """
Parsers that are Python of this toolkit alone are fuzzed by atheris, too, which looks for content that reaches new
lines.

| Parser | Executions | Failed |
|---|---|---|
"""
_DEFECTS = ("internal error", "signal", "hang", "memory", "file left")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--seconds", type=float, default=600, help="for all readers together")
    parser.add_argument("--parser-seconds", type=int, default=60, help="for each parser that atheris fuzzes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; as many as there are cores")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default="", help="readers whose name has this in it")
    parser.add_argument("--found", type=Path, default=Path("build/hostile"), help="where files go that fail")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prepare()
    gc.freeze()  # a collection in a case would copy every page that it touches
    names = [name for name in LOADERS if args.only in name]
    work = [
        (name, args.seed + job, args.seconds / len(names), args.found) for name in names for job in range(args.jobs)
    ]
    scores = {name: Score() for name in names}
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        for name, score in pool.imap_unordered(_score, work):
            scores[name].merge(score)
    parsed, well = _guided(args.parser_seconds, args.seed, args.found)
    args.document.write_text(_TEXT + "".join(map(_row, scores.items())) + _sum(scores, args.seed) + parsed)
    shutil.rmtree(helpers.run_folder())
    return int(not well or any(score.found for score in scores.values()))


def _score(work: tuple[str, int, float, Path]) -> tuple[str, Score]:
    """Read files by one loader for a time; keep those that fail."""
    name, seed, seconds, folder = work
    score, end = Score(), time.monotonic() + seconds
    for number, (content, read) in zip(count(), cases(name, seed), strict=False):
        outcome = attempt(content, read)
        score.add(outcome)
        if outcome.defect:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name.replace(' ', '_')}-{seed}-{number}-way{way_of(name, read)}").write_bytes(content)
            print(f"{name} {number}: {outcome.ending}: {outcome.said[-300:]}", file=sys.stderr, flush=True)
        if time.monotonic() > end:
            break
    print(f"{name}: {dict(score.endings)}", file=sys.stderr, flush=True)
    return name, score


def _row(scored: tuple[str, Score]) -> str:
    name, score = scored
    shown = (score.endings.total(), score.endings["refused"], score.endings["right"])
    defects = (score.endings[kind] for kind in _DEFECTS)
    return f"| {name} | {' | '.join(map(str, (*shown, *defects)))} | {score.peak_mib} MiB |\n"


def _sum(scores: Mapping[str, Score], seed: int) -> str:
    cases_run = sum(score.endings.total() for score in scores.values())
    failed = sum(len(score.found) for score in scores.values())
    return f"\n{cases_run} cases from seed {seed}; {failed} failed.\n"


def _guided(seconds: int, seed: int, found: Path) -> tuple[str, bool]:
    """Fuzz the parsers; return their part of the page, and whether they hold."""
    scores = {name: guided.score(name, seconds=seconds, seed=seed, found=found) for name in guided.PARSERS}
    rows, well = "", True
    for name, score in scores.items():
        if score is None:
            return "\nThe parsers were not fuzzed by coverage: atheris is not installed.\n", True
        executions, failed = score
        rows += f"| {name} | {executions:,} | {'1' if failed else '0'} |\n"
        well = well and not failed
        print(f"{name}: {executions} executions {failed}", file=sys.stderr, flush=True)
    return f"{_PARSERS}{rows}", well


if __name__ == "__main__":
    sys.exit(main())
