"""What an instruction occupies: the pipe it issues to, for how long, and how long its result takes.

docs/kernel-costs.md has the sources. Numbers are per warp instruction and scheduler; a multiprocessor has four.
"""

from __future__ import annotations

from dataclasses import dataclass

from .listing import Instruction, Kind, Operand

PIPES = ("issue", "alu", "fma", "imad", "half", "xu", "tensor", "lsu", "uniform", "control")
"""In the order of the numbers that machine.h gets. ``imad`` is the half of the ``fma`` pipe that knows integers."""

QUARTERS = 4
"""Intervals are in quarters of a cycle."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How an instruction occupies its pipe.

    Attributes:
        pipe: One of `PIPES`.
        interval: Quarters of a cycle until the next instruction may follow on it.
        latency: Cycles until a dependent instruction may issue.
    """

    pipe: str
    interval: int
    latency: int


_ALU = frozenset(
    "IADD3 VIADD LEA LOP3 PLOP3 PRMT SHF SEL FSEL ISETP FSETP FMNMX FMNMX3 IMNMX VIMNMX VIMNMX3 VIADDMNMX IABS MOV "
    "SGXT P2R R2P F2FP I2FP VOTE HMNMX2 CS2R BMSK".split()
)
_FMA = frozenset("FFMA FADD FMUL".split())
_HALF = frozenset("HADD2 HFMA2 HMUL2 HSETP2".split())
_XU = frozenset("MUFU I2F F2I F2F FRND POPC FLO BREV FCHK".split())
_LSU = frozenset("LDG STG LDS STS LDL STL LDSM LDGSTS ATOMS SHFL".split())
_CONTROL = frozenset(
    "BRA BRX BSSY BSYNC BREAK BMOV EXIT CALL RET WARPSYNC ENDCOLLECTIVE BAR NOP YIELD NANOSLEEP DEPBAR LDGDEPBAR "
    "B2R".split()
)

_LATENCIES = {"LDS": 24, "LDSM": 30, "SHFL": 24, "ATOMS": 60, "LDL": 34, "LDGSTS": 0, "LDG": 0}
_GLOBAL_LATENCY = {87: 600, 90: 600}
"""Of a first touch, which goes to DRAM."""

_TENSOR_QUARTERS = {87: 32, 90: 26}
"""m16n8k16 on halves and m16n8k8 on tf32, which take the same."""


def timing_of(instruction: Instruction, architecture: int) -> Timing:
    """Return how an instruction runs.

    Raises:
        ValueError: Its opcode is in no table; it must be put there first.
    """
    opcode, name = instruction.opcode, instruction.name
    if opcode == "IMAD":
        return Timing(pipe="imad", interval=8, latency=5)
    if opcode in _ALU:
        return Timing(pipe="alu", interval=8, latency=13 if opcode.endswith("SETP") or opcode == "PLOP3" else 5)
    if opcode in _FMA:
        return Timing(pipe="fma", interval=4, latency=4)
    if opcode in _HALF:
        return Timing(pipe="half", interval=4 if architecture >= 90 else 8, latency=5)
    if opcode in _XU:
        return Timing(pipe="xu", interval=32, latency=22)
    if opcode == "HMMA":
        quarters = _TENSOR_QUARTERS.get(architecture, 32)
        wide = "16816" in name or "TF32" in name
        return Timing(pipe="tensor", interval=quarters if wide else quarters // 2, latency=33 if wide else 24)
    if opcode in _LSU:
        far = opcode in ("LDG", "LDGSTS")
        latency = _GLOBAL_LATENCY.get(architecture, 600) if far else _LATENCIES.get(opcode, 0)
        return Timing(pipe="lsu", interval=8, latency=latency)
    return _rest(opcode)


def _rest(opcode: str) -> Timing:
    if opcode in ("LDC", "S2R", "R2UR", "S2UR", "ULDC", "REDUX", "MATCH"):
        latency = {"LDC": 30, "ULDC": 10}.get(opcode, 24)
        return Timing(pipe="xu" if opcode in ("REDUX", "MATCH") else "uniform", interval=8, latency=latency)
    if opcode in _CONTROL:
        return Timing(pipe="control", interval=8, latency=1)
    if opcode.startswith(("U", "VOTEU")):
        return Timing(pipe="uniform", interval=8, latency=11)
    raise ValueError(f"{opcode}: no entry in scripts/dev/sass/pipes.py")


_NO_RESULT = (_CONTROL - {"B2R", "BMOV"}) | {"STG", "STS", "STL", "LDGSTS"}
_WIDTHS = {"64": 2, "128": 4}


def results_of(instruction: Instruction) -> list[Operand]:
    """Return the operands that an instruction writes."""
    operands = instruction.operands
    if instruction.opcode in _NO_RESULT or not operands:
        return []
    if instruction.opcode in ("VOTE", "VOTEU"):
        return list(operands[:-1])
    count = 1
    is_predicate = [operand.kind in (Kind.PREDICATE, Kind.UNIFORM_PREDICATE) for operand in operands]
    if is_predicate[0] and len(operands) > 1 and not is_predicate[1]:
        count = 1 if instruction.opcode == "FCHK" else 2  # LOP3 p, d and SHFL p, d
    elif is_predicate[0]:
        count = 2
    else:
        while count < len(operands) and is_predicate[count]:
            count += 1
    return list(operands[:count])


def result_width(instruction: Instruction) -> int:
    """Return how many registers the first register that is written begins."""
    name, modifiers = instruction.name, instruction.name.split(".")
    if instruction.opcode == "HMMA":
        return 4
    if instruction.opcode == "LDSM":
        return {"2": 2, "4": 4}.get(modifiers[-1], 1)
    if name.startswith(("IMAD.WIDE", "UIMAD.WIDE")) or name == "CS2R":
        return 2
    return max((_WIDTHS.get(part, 1) for part in modifiers[1:]), default=1) if _moves(instruction) else 1


def _moves(instruction: Instruction) -> bool:
    return instruction.opcode.lstrip("U") in ("LDG", "LDS", "LDL", "LDC", "STG", "STS", "STL")


def source_widths(instruction: Instruction) -> dict[int, int]:
    """Return how many registers an operand begins that is not written, by its place, where it is more than one."""
    name, last = instruction.name, len(instruction.operands) - 1
    if instruction.opcode == "HMMA":
        double = "16816" in name or "TF32" in name
        return {1: 4 if double else 2, 2: 2 if double else 1, 3: 4}
    if name.startswith(("IMAD.WIDE", "UIMAD.WIDE", "IMAD.HI")):
        return {last: 2}
    if instruction.opcode in ("STG", "STS", "STL"):
        return {1: result_width(instruction)}
    return {}
