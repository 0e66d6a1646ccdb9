"""Pack instructions as machine.h reads them, with the registers that each waits for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .listing import Flag, Instruction, Kind, Operand
from .pipes import PIPES, result_width, results_of, source_widths, timing_of

_OPERAND = np.dtype(
    [("kind", "u1"), ("unused", "u1"), ("flags", "u2"), ("index", "i2"), ("second", "i2"), ("value", "u4")]
)
_OPERANDS = 9
_RESOURCES = 24
ENCODED = np.dtype(
    [
        ("name", "S48"),
        ("guard", _OPERAND),
        ("operands", _OPERAND, (_OPERANDS,)),
        ("reads", "i2", (_RESOURCES,)),
        ("writes", "i2", (_RESOURCES,)),
        ("count", "i2"),
        ("pipe", "i2"),
        ("interval", "i2"),
        ("latency", "i2"),
    ]
)

_FIRST_UNIFORM, _FIRST_PREDICATE, _FIRST_UNIFORM_PREDICATE = 256, 320, 328
_ZERO = {Kind.REGISTER: 255, Kind.UNIFORM: 63, Kind.PREDICATE: 7, Kind.UNIFORM_PREDICATE: 7}
_BASE = {
    Kind.REGISTER: 0,
    Kind.UNIFORM: _FIRST_UNIFORM,
    Kind.PREDICATE: _FIRST_PREDICATE,
    Kind.UNIFORM_PREDICATE: _FIRST_UNIFORM_PREDICATE,
}


def pack(instructions: list[Instruction], architecture: int) -> NDArray[np.void]:
    """Return the kernel's code as an array of `ENCODED`.

    Raises:
        ValueError: An instruction has no entry in the table of pipes.
    """
    packed = np.zeros(len(instructions), ENCODED)
    packed["reads"] = packed["writes"] = -1
    for row, instruction in zip(packed, instructions, strict=True):
        timing = timing_of(instruction, architecture)
        row["name"] = instruction.name.encode()
        row["guard"] = _record(instruction.guard)
        row["count"] = len(instruction.operands)
        for place, operand in enumerate(instruction.operands):
            row["operands"][place] = _record(operand)
        reads, writes = list(registers_read(instruction)), list(registers_written(instruction))
        row["reads"][: len(reads)], row["writes"][: len(writes)] = reads, writes
        row["pipe"], row["interval"] = PIPES.index(timing.pipe), timing.interval
        row["latency"] = timing.latency
    return packed


def _record(operand: Operand) -> tuple[int, int, int, int, int, int]:
    return (operand.kind, 0, operand.flags, operand.index, operand.second, operand.value)


def registers_written(instruction: Instruction) -> Iterator[int]:
    """Go over the registers and predicates that an instruction writes, by their number in `Warp::ready`."""
    for operand in results_of(instruction):
        predicate = operand.kind in (Kind.PREDICATE, Kind.UNIFORM_PREDICATE)
        yield from _group(operand, 1 if predicate else result_width(instruction))


def registers_read(instruction: Instruction) -> Iterator[int]:
    """Go over those that it waits for, its predicate included."""
    yield from _group(instruction.guard, 1)
    widths = source_widths(instruction)
    written = len(results_of(instruction))
    for place, operand in enumerate(instruction.operands):
        if operand.kind == Kind.MEMORY:
            yield from _address(operand)
        elif operand.kind == Kind.CONSTANT and operand.second >= 0:
            yield operand.second
        elif place >= written:
            yield from _group(operand, widths.get(place, 1))


def _group(operand: Operand, width: int) -> Iterator[int]:
    if operand.kind in _BASE and operand.index != _ZERO[operand.kind]:
        yield from (_BASE[operand.kind] + operand.index + i for i in range(width))


def _address(operand: Operand) -> Iterator[int]:
    if operand.index >= 0 and operand.index != _ZERO[Kind.REGISTER]:
        yield from range(operand.index, operand.index + (2 if operand.flags & Flag.WIDE else 1))
    if operand.second >= 0 and operand.second != _ZERO[Kind.UNIFORM]:
        yield _FIRST_UNIFORM + operand.second
