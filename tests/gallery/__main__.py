"""Scores the whole gallery and writes the table of the documentation; exits 1 where it does not hold.

python -m tests.gallery docs/fault-gallery.md [--resume] [--only EXPRESSION] [--jobs N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing.pool import Pool
from pathlib import Path

import torch

from nrd_trt.specs import PRECISIONS, Precision
from tests import helpers
from tests.gallery.score import Score, remembered, score, sound_failures
from tests.gallery.table import FAULTS, Case, Fault, Network
from tests.helpers import traces_remembered

_KEPT = Path("build/fault-gallery.jsonl")
_MOST_MISSED = 0.02
_SEEDS = range(10)
_NETWORKS: tuple[Network, ...] = ("mobilenetv2", "r18")
_TITLES = {"file": "Planted in the file", "upstream": "Planted upstream"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Score and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--resume", action="store_true", help=f"take what {_KEPT} has")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; as many as there are cores")
    parser.add_argument("--only", default="", help="faults whose name matches this regular expression")
    args = parser.parse_args(arguments)
    known = dict(_read()) if args.resume else {}
    left = [key for fault, precision in _cases() if (key := (fault.name, precision)) not in known]
    left = [(name, precision) for name, precision in left if re.search(args.only, name)]
    _KEPT.parent.mkdir(parents=True, exist_ok=True)
    folder = helpers.run_folder()  # which the processes share
    with multiprocessing.get_context("fork").Pool(args.jobs, initializer=_begin) as pool:
        with _KEPT.open("a" if args.resume else "w") as kept:
            for found in pool.imap_unordered(_score, left):
                known[found.fault, found.precision] = found
                print(json.dumps(asdict(found), ensure_ascii=False), file=kept, flush=True)
                line = f"{found.fault}, {found.precision}: {_cell(found)} {found.false_causes or ''}"
                print(line, file=sys.stderr, flush=True)
        sound = {} if args.only else _sound(pool)
    shutil.rmtree(folder)
    scores = list(known.values())
    args.document.write_text(_document(scores, sound))
    return 0 if _holds(scores) and not any(sound.values()) else 1


_entered = ExitStack()
"""What a process remembers lasts until it ends."""


def _begin() -> None:
    torch.set_num_threads(1)
    _entered.enter_context(traces_remembered())
    _entered.enter_context(remembered())


def _score(case: tuple[str, Precision]) -> Score:
    name, precision = case
    return score(FAULTS[name], precision)


def _cases() -> Iterator[tuple[Fault, Precision]]:
    """Yield every fault in one precision, then in the next."""
    for turn in range(len(PRECISIONS)):
        for place, fault in enumerate(FAULTS.values()):
            if turn < (count := len(fault.precisions)):
                yield fault, fault.precisions[(place + turn) % count]


def _read() -> Iterator[tuple[tuple[str, str], Score]]:
    for line in _KEPT.read_text().splitlines() if _KEPT.exists() else ():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(line).items()}
        yield (values["fault"], values["precision"]), Score(**values)


def _sound(pool: Pool) -> dict[tuple[str, Precision], list[str]]:
    """Return what is held against the sound bundles, by network and precision, one line per seed that does not pass."""
    found: dict[tuple[str, Precision], list[str]] = {}
    for network in _NETWORKS:
        for precision in PRECISIONS:
            seeds = [(Case(network=network), precision, seed) for seed in _SEEDS]
            failures = zip(_SEEDS, pool.starmap(sound_failures, seeds, chunksize=1), strict=True)
            lines = [f"seed {seed}: {'; '.join(failed)}" for seed, failed in failures if failed]
            found[network, precision] = lines
            print(network, precision, *lines, sep=" | ", file=sys.stderr, flush=True)
    return found


def _holds(scores: Sequence[Score]) -> bool:
    """Whether the figures that the documentation promises hold, in each precision."""
    few_missed = True
    for precision in PRECISIONS:
        counted = [found for found in scores if found.exceeds and found.precision == precision]
        few_missed &= sum(not found.by_numbers for found in counted) <= _MOST_MISSED * len(counted)
    files = [found for found in scores if FAULTS[found.fault].where == "file" and not found.caught]
    lies = [found for found in scores if found.false_causes]
    return few_missed and not files and not lies


def _document(scores: Sequence[Score], sound: Mapping[tuple[str, Precision], Sequence[str]]) -> str:
    planned = len([*_cases()])
    missing = f"{len(scores)} of {planned} combinations were scored; the others are blank."
    lines = [_INTRODUCTION, "", *([missing, ""] if len(scores) < planned else []), *_summary(scores), ""]
    for where, title in _TITLES.items():
        lines += [f"## {title}", "", "| fault | " + " | ".join(PRECISIONS) + " |", "|---" * (len(PRECISIONS) + 1) + "|"]
        for fault in FAULTS.values():
            found = {one.precision: one for one in scores if one.fault == fault.name}
            if fault.where == where and found:
                cells = [_cell(found[precision]) if precision in found else "" for precision in PRECISIONS]
                lines.append(f"| {fault.name} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## False causes", "", *(_lies(scores) or ["None."]), ""]
    if not sound:
        return "\n".join(lines)
    lines += ["## Sound bundles", "", _SOUND, ""]
    lines += ["| network | precision | passed | what failed |", "|---" * 4 + "|"]
    for (network, precision), failed in sound.items():
        lines.append(
            f"| {network} | {precision} | {len(_SEEDS) - len(failed)} of {len(_SEEDS)} | {'; '.join(failed)} |"
        )
    lines.append("")
    return "\n".join(lines)


def _summary(scores: Sequence[Score]) -> Iterator[str]:
    yield "| precision | planted | above rounding | of these passed by figures | in files and passed | false causes |"
    yield "|---" * 6 + "|"
    for precision in (*PRECISIONS, "all"):
        chosen = [found for found in scores if precision in (found.precision, "all")]
        counted = [found for found in chosen if found.exceeds]
        missed = sum(not found.by_numbers for found in counted)
        files = sum(FAULTS[found.fault].where == "file" and not found.caught for found in chosen)
        lies = sum(bool(found.false_causes) for found in chosen)
        share = f"{missed} ({missed / max(len(counted), 1):.1%})"
        yield f"| {precision} | {len(chosen)} | {len(counted)} | {share} | {files} | {lies} |"


def _cell(found: Score) -> str:
    by = [name for name, lines in (("figures", found.by_numbers), ("structure", found.by_structure)) if lines]
    effect = "refused" if found.flipped is None else f"{found.flipped:.1%}"
    effect = effect if found.exceeds else f"({effect})"
    return f"{effect}: {' and '.join(by) or '**passed**'}{f', {found.stage}' if found.stage else ''}"


def _lies(scores: Sequence[Score]) -> list[str]:
    return [f"- {found.fault}, {found.precision}: {line}" for found in scores for line in found.false_causes]


_SOUND = f"Sound bundles of both networks of the zoo on {len(_SEEDS)} sets of four drawn scenes, validated likewise."

_INTRODUCTION = """# The fault gallery

Faults are planted and `nrd_trt.validate(bundle, checkpoint=…, localise=True)` is asked about them, on four drawn scenes
of 64x96 pixels (128x192 in 8 bits; wider where a fault needs it). *Planted in the file*: a sound bundle's file is
changed and its hashes are made right. *Planted upstream*: the exporter, the folding, the range pass, the calibrator,
the quantizer, a runner or the preprocessing is patched while the bundle is built and while it is validated, so that a
file derived anew is just as wrong. Made by `make fault-gallery`; the faults stand in `tests/gallery/table.py`. In fp8
there are those of its own numbers, of calibration and of ranges: the others do not touch it.

A cell says which share of the pixels a fault flips against the sound bundle's masks, on the scenes of validation and
four others; in brackets where that is no more than the sound bundle itself differs from PyTorch in fp32, that is, than
rounding. Then: what caught it, the figures (masks and stages) or the structural proof, and the first stage beyond its
tolerance. A cause that is named and is not the fault's is false."""


if __name__ == "__main__":
    sys.exit(main())
