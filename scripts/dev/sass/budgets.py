"""The table of budgets, ``plugins/nrd_decode/budgets.json``: what every case may cost, and which faults are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from .cost import Cost
from .toolchain import KERNELS

TABLE = KERNELS / "budgets.json"
MARGIN = 1.03


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a case may cost: at most these, and at least `resident_warps`."""

    warp_instructions: int
    cycles: int
    registers: int
    resident_warps: int


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the best of some cases is to reach; missing it is told and fails nothing.

    Attributes:
        cases: Pattern of case names.
        gate: Warp instructions of a block that are good enough.
        goal: Warp instructions that are aimed at.
    """

    cases: str
    gate: int
    goal: int


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The whole table.

    Attributes:
        compiler: Release of nvcc that the limits are for.
        phases: Names of functions by phase.
        goals: What the kernels are to reach.
        known_faults: Faults of the listing, by architecture and kernel.
        limits: By case.
    """

    compiler: str
    phases: Mapping[str, Sequence[str]]
    goals: Sequence[Goal]
    known_faults: Mapping[str, Mapping[str, int]]
    limits: Mapping[str, Limit]


def read_budgets(path: Path = TABLE) -> Budgets:
    """Read the table."""
    given = json.loads(path.read_text())
    return Budgets(
        compiler=given["compiler"],
        phases=given["phases"],
        goals=[Goal(**goal) for goal in given["goals"]],
        known_faults=given["known_faults"],
        limits={name: Limit(**limit) for name, limit in given["limits"].items()},
    )


def write_budgets(budgets: Budgets, path: Path = TABLE) -> None:
    """Write the table, one case a line."""
    lines = [f'"compiler": {json.dumps(budgets.compiler)}']
    lines.append(f'"phases": {_block(budgets.phases)}')
    lines.append('"goals": [\n' + ",\n".join(f"    {json.dumps(asdict(goal))}" for goal in budgets.goals) + "\n  ]")
    lines.append(f'"known_faults": {_block(budgets.known_faults)}')
    lines.append(f'"limits": {_block({name: asdict(limit) for name, limit in budgets.limits.items()})}')
    path.write_text("{\n  " + ",\n  ".join(lines) + "\n}\n")


def _block(entries: Mapping[str, object]) -> str:
    rows = [f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(entries.items())]
    return "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"


def limit_of(cost: Cost) -> Limit:
    """Return the limit that leaves what was measured a margin."""
    return Limit(
        warp_instructions=round(cost.warp_instructions * MARGIN),
        cycles=round(cost.cycles * MARGIN),
        registers=cost.registers,
        resident_warps=cost.resident_warps,
    )


def find_excess(name: str, cost: Cost, limits: Mapping[str, Limit]) -> list[str]:
    """Return what exceeds a case's budget, one sentence each."""
    if name not in limits:
        return [f"{name}: has no budget; add one with --update"]
    limit = limits[name]
    upper = ("warp_instructions", "cycles", "registers")
    found = [
        f"{name}: {field.replace('_', ' ')}: expected at most {getattr(limit, field)}, got {getattr(cost, field):.0f}"
        for field in upper
        if getattr(cost, field) > getattr(limit, field)
    ]
    if cost.resident_warps < limit.resident_warps:
        found.append(f"{name}: resident warps: expected at least {limit.resident_warps}, got {cost.resident_warps}")
    return found


def find_new_faults(key: str, faults: Mapping[str, int], known: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the faults of a kernel's listing that are more than those known."""
    allowed = known.get(key, {})
    return [
        f"{key}: {fault}: expected at most {allowed.get(fault, 0)}, got {count}"
        for fault, count in faults.items()
        if count > allowed.get(fault, 0)
    ]


def describe_goal(goal: Goal, costs: Mapping[str, Cost]) -> str | None:
    """Return how the best case stands to a goal, or None where none of its cases was measured."""
    matching = {name: cost for name, cost in costs.items() if fnmatch(name, goal.cases)}
    if not matching:
        return None
    best = min(matching, key=lambda name: matching[name].warp_instructions)
    got = matching[best].warp_instructions
    verdict = "reached" if got <= goal.goal else "good enough" if got <= goal.gate else "not reached"
    return f"{goal.cases}: {verdict}: {got:.0f} ({best}), gate {goal.gate}, goal {goal.goal}"
