"""What the listing of a kernel must not have.

That a warp is whole where it uses tensor cores is proven by execution, not here: the machine stops where a part is not
there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from .listing import Instruction, Kind
from .packing import registers_read, registers_written
from .phases import phase_of

FEWEST_LOADS = 4
STAGING = "staging"

_INDIRECT = {"BRX", "BRXU", "JMX"}
_LOCAL = {"LDL", "STL"}
_ENDS = {"BRA", "BRX", "EXIT", "CALL", "RET", "BAR", "WARPSYNC", "BSYNC"}


def find_faults(instructions: Sequence[Instruction], phases: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return how often a kernel has each fault.

    ``indirect branch`` and ``local memory`` count instructions. ``lone loads`` counts basic blocks of the staging that
    load global memory and use a value while fewer than `FEWEST_LOADS` loads are under way.
    """
    faults: Counter[str] = Counter()
    for instruction in instructions:
        faults["indirect branch"] += instruction.opcode in _INDIRECT
        faults["local memory"] += instruction.opcode in _LOCAL
    for block in _blocks(instructions):
        loads = [instruction for instruction in block if instruction.opcode == "LDG"]
        if loads and phase_of(loads[0], phases) == STAGING:
            faults["lone loads"] += _most_in_flight(block) < FEWEST_LOADS
    return {name: count for name, count in faults.items() if count}


def _blocks(instructions: Sequence[Instruction]) -> Iterator[list[Instruction]]:
    """Cut at branches, barriers and their targets."""
    targets = {operand.value for each in instructions for operand in each.operands if operand.kind == Kind.TARGET}
    block: list[Instruction] = []
    for number, instruction in enumerate(instructions):
        if number in targets and block:
            yield block
            block = []
        block.append(instruction)
        if instruction.opcode in _ENDS:
            yield block
            block = []
    if block:
        yield block


def _most_in_flight(block: Sequence[Instruction]) -> int:
    """Return how many loads are under way when the first loaded value is used, or at the block's end."""
    loaded: set[int] = set()
    count = 0
    for instruction in block:
        if loaded.intersection(registers_read(instruction)):
            return count
        if instruction.opcode == "LDG":
            loaded.update(registers_written(instruction))
            count += 1
    return count
