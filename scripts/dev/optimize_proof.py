"""Hold what a search of `nrd-trt optimize` decided against new measurements, and write docs/optimize-proof.md.

    python scripts/dev/optimize_proof.py docs/optimize-proof.md street --data val32/ --others val69/ -- CKPT… OPTIONS…

`street` is the folder of a finished search, and what stands after ``--`` are its sources and options but for the
budget. For three budgets the search is asked again, which builds what is missing; winner and runner-up are then timed
in turn, and the winner is evaluated on images that the search has not seen. It ends with 1 if an order changed, or a
ratio by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import nrd_trt

_VERB = (sys.executable, "-c", "from nrd_trt.cli.main import main; main()", "optimize")
_MOST_CHANGE = 0.1
_SHARES = (0.3, 0.6, 1.0)
"""Budgets as parts of the way from the fastest to the slowest candidate of the front."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One budget: winner and runner-up, by name, with the ratio of their latencies in the search and measured anew."""

    budget_ms: float
    winner: str
    runner_up: str | None
    winner_ms: float
    miou: float
    ratio: float | None
    ratio_anew: float | None
    miou_elsewhere: float | None

    @property
    def problem(self) -> str | None:
        """What does not hold."""
        if self.ratio is None or self.ratio_anew is None:
            return None
        change = abs(self.ratio_anew / self.ratio - 1)
        if change > _MOST_CHANGE:
            return f"{self.budget_ms:.1f} ms: the ratio changed by {change:.0%}"
        return None if (self.ratio < 1) == (self.ratio_anew < 1) else f"{self.budget_ms:.1f} ms: the order changed"

    def row(self) -> str:
        """Return it as a row of the table."""
        ratios = "– | –" if self.ratio is None else f"{self.ratio:.3f} | {self.ratio_anew:.3f}"
        return (
            f"| {self.budget_ms:.1f} | `{self.winner}` | {self.winner_ms:.1f} | {self.miou:.4f} | "
            f"{self.miou_elsewhere or 0:.4f} | {f'`{self.runner_up}`' if self.runner_up else 'none'} | {ratios} |"
        )


def main() -> int:
    """Ask, measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="images that the search was judged on")
    parser.add_argument("--others", type=Path, required=True, help="images that it has not seen")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("search", nargs="+", help="sources and options of the search")
    args = parser.parse_args()
    command = [*_VERB, *args.search, "-o", str(args.folder), "--data", str(args.data), "--resume", "--json"]
    front = _front(_ask(command))
    low, high = front[0]["latency_ms"], front[-1]["latency_ms"]
    proofs = [_prove(command, 1.05 * (low + share * (high - low)), args) for share in _SHARES]
    problems = [problem for proof in proofs if (problem := proof.problem)]
    args.document.write_text(_page(args, proofs, problems))
    print(*(proof.row() for proof in proofs), *problems, sep="\n", file=sys.stderr)
    return int(bool(problems))


def _ask(command: Sequence[str], *budget: str) -> dict[str, Any]:
    done = subprocess.run([*command, *budget], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _front(found: dict[str, Any]) -> list[dict[str, Any]]:
    by_name = {one["name"]: one for one in found["candidates"]}
    return [by_name[name] for name in found["front"]]


def _prove(command: Sequence[str], budget_ms: float, args: argparse.Namespace) -> Proof:
    """Ask for a budget; compare what the search measured with what is measured now."""
    found = _ask(command, "--max-latency-ms", f"{budget_ms:.3f}")
    by_name = {one["name"]: one for one in found["candidates"]}
    winner = by_name[found["chosen"]]
    within = [one for one in by_name.values() if one["passed"] and not one["rejected"] and one is not winner]
    second = max(within, key=lambda one: one["miou"], default=None)
    bundles = [args.folder / "candidates" / f"{one['name']}.nrd" for one in (winner, second) if one is not None]
    timed = nrd_trt.benchmark(*bundles, warmup=10, runs=args.runs, progress=False).rows
    elsewhere = nrd_trt.evaluate(bundles[0], args.others, progress=False)
    return Proof(
        budget_ms=budget_ms,
        winner=winner["name"],
        runner_up=second and second["name"],
        winner_ms=winner["latency_ms"],
        miou=winner["miou"],
        ratio=second and winner["latency_ms"] / second["latency_ms"],
        ratio_anew=timed[0].latency.p50 / timed[1].latency.p50 if second else None,
        miou_elsewhere=elsewhere.miou,
    )


def _page(args: argparse.Namespace, proofs: Sequence[Proof], problems: Sequence[str]) -> str:
    images = len([*(args.data / "images").iterdir()])
    others = len([*(args.others / "images").iterdir()])
    lines = [
        "# A search, measured anew",
        "",
        f"`scripts/dev/optimize_proof.py`, {date.today()}: for three budgets [`nrd-trt optimize`](optimize.md) is",
        f"asked again, winner and runner-up are timed in turn ({args.runs} calls each), and the winner is evaluated on",
        f"{others} images beside the {images} that the search was judged on. A ratio is the winner's latency over the",
        "runner-up's.",
        "",
        "| budget, ms | winner | ms | mIoU | mIoU on other images | runner-up | ratio in the search | ratio anew |",
        "|---|---|---|---|---|---|---|---|",
        *(proof.row() for proof in proofs),
        "",
        *(f"- {problem}" for problem in problems),
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
