"""Read the disassembler's listing: instructions with their operands and the source lines they come from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

import numpy as np

BYTES = 16
"""Size of an instruction."""


class Kind(IntEnum):
    """What an operand is; the numbers are those of machine.h."""

    NONE = 0
    REGISTER = 1
    UNIFORM = 2
    PREDICATE = 3
    UNIFORM_PREDICATE = 4
    IMMEDIATE = 5
    CONSTANT = 6
    BARRIER = 7
    MEMORY = 8
    TARGET = 9
    SPECIAL = 10


class Flag(IntFlag):
    """What is done to an operand; the numbers are those of machine.h."""

    NEGATIVE = 1
    ABSOLUTE = 2
    NOT = 4
    HALF_LOW = 8
    HALF_HIGH = 16
    WIDE = 32
    TIMES_4 = 64
    TIMES_8 = 128
    TIMES_16 = 256


NO_FLAG = Flag(0)
SPECIALS = {
    "SR_TID.X": 0,
    "SR_CTAID.X": 1,
    "SR_LANEID": 2,
    "SR_LTMASK": 3,
    "SR_CgaCtaId": 4,
    "SRZ": 6,
    "PR": 6,
    "SB0": 6,
}
ZEROS = {"RZ": 255, "URZ": 63, "PT": 7, "UPT": 7}
KINDS = {"R": Kind.REGISTER, "UR": Kind.UNIFORM, "P": Kind.PREDICATE, "UP": Kind.UNIFORM_PREDICATE, "B": Kind.BARRIER}


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One operand of an instruction; see machine.h for what the numbers mean for each kind."""

    kind: Kind
    flags: Flag = NO_FLAG
    index: int = 0
    second: int = -1
    value: int = 0


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One machine instruction.

    Attributes:
        address: Bytes from the kernel's start.
        name: Opcode with all its modifiers.
        guard: The predicate that it depends on.
        operands: As they are written.
        lines: File and line, the innermost of inlined calls first.
    """

    address: int
    name: str
    guard: Operand
    operands: tuple[Operand, ...]
    lines: tuple[tuple[str, int], ...]

    @property
    def opcode(self) -> str:
        """The name without modifiers."""
        return self.name.split(".")[0]


@dataclass
class _Raw:
    address: int
    text: str
    lines: tuple[tuple[str, int], ...]


@dataclass
class _Function:
    name: str
    raw: list[_Raw] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_LABEL = re.compile(r"^((?:\.L_|\$)\S+):")
_SECTION = re.compile(r"^//-+ \.text\.(\S+)\s+-+$", re.MULTILINE)
_LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
_REGISTER = re.compile(r"^([-~!]?)(\|?)(UR|UP|R|P|B)(\d+)(\|?)((?:\.(?:H0_H0|H1_H1|reuse))*)$")
_CONSTANT = re.compile(r"^([-~]?)(\|?)c\[(0x[0-9a-f]+)\]\[(R\d+\+?)?(-?0x[0-9a-f]+)?\](\|?)$")
_ADDRESS = re.compile(r"^(?:desc\[UR\d+\])?\[(.*)\]$")
_WHOLE = re.compile(r"^-?0x[0-9a-f]+$")
_COMMENT = re.compile(r"\s*\(\*.*?\*\)")
_PREDICATED = re.compile(r"^@(!?)(U?P(?:\d|T))\s+")


def split_listing(text: str) -> dict[str, str]:
    """Return the text of every kernel by its name; reading it takes time, so `read_kernel` reads one."""
    parts = _SECTION.split(text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def read_kernel(name: str, text: str) -> list[Instruction]:
    """Return the instructions of one kernel.

    Raises:
        ValueError: An operand has a form that is not known; the message is the instruction.
    """
    function = _Function(name)
    lines: list[tuple[str, int]] = []
    fresh = False
    for line in text.splitlines():
        if found := _INSTRUCTION.match(line):
            function.raw.append(_Raw(int(found.group(1), 16), found.group(2), tuple(lines)))
            fresh = True
        elif found := _LABEL.match(line):
            function.labels[found.group(1)] = len(function.raw)
        elif found := _LINE.search(line):
            lines = [] if fresh else lines
            lines.append((found.group(1), int(found.group(2))))
            fresh = False
    return [_parse(raw, function) for raw in function.raw]


def _parse(raw: _Raw, function: _Function) -> Instruction:
    text, guard = _COMMENT.sub("", raw.text), Operand(kind=Kind.PREDICATE, index=7)
    if found := _PREDICATED.match(text):
        guard = _operand(found.group(1) + found.group(2), "", function)
        text = text[found.end() :]
    name, _, rest = text.partition(" ")
    # the return of a call names the function that its address is in
    rest = re.sub(r"\s+`\([^.)]+\)", "", rest) if name.startswith("RET") else rest
    pieces = [piece.strip() for piece in _split(name, rest)]
    try:
        operands = tuple(_operand(piece, name, function) for piece in pieces if piece)
    except (ValueError, KeyError) as exc:
        raise ValueError(f"{function.name}, {raw.address:#x}: {raw.text}: {exc}") from exc
    return Instruction(address=raw.address, name=name, guard=guard, operands=operands, lines=raw.lines)


def _split(name: str, rest: str) -> list[str]:
    """Separate the operands; the offset of an indirect branch stands after a blank."""
    return rest.split(" ") if name == "BRX" else rest.split(",")


def _operand(text: str, name: str, function: _Function) -> Operand:
    text = text.strip()
    if text.startswith("`("):
        return Operand(kind=Kind.TARGET, value=function.labels[text[2:-1]])
    if text in SPECIALS:
        return Operand(kind=Kind.SPECIAL, value=SPECIALS[text])
    for zero, number in ZEROS.items():
        text = re.sub(rf"(?<![A-Z0-9]){zero}(?![A-Z0-9])", f"{zero[:-1]}{number}", text)
    if found := _REGISTER.match(text):
        sign, bar, kind, index, _, halves = found.groups()
        flags = _flags(sign, bar, halves)
        return Operand(kind=KINDS[kind], flags=flags, index=int(index))
    if found := _CONSTANT.match(text):
        sign, bar, bank, base, offset, _ = found.groups()
        second = int(base.strip("R+")) if base else -1
        value = int(offset or "0", 16) & 0xFFFFFFFF
        if int(bank, 16) not in (0, 2):
            raise ValueError(f"constant bank {bank}: expected 0 or 2")
        return Operand(kind=Kind.CONSTANT, flags=_flags(sign, bar, ""), index=int(bank, 16), second=second, value=value)
    if found := _ADDRESS.match(text):
        return _address(found.group(1))
    if _WHOLE.match(text):
        return Operand(kind=Kind.IMMEDIATE, value=int(text, 16) & 0xFFFFFFFF)
    return Operand(kind=Kind.IMMEDIATE, value=_number(text, name))


def _flags(sign: str, bar: str, halves: str) -> Flag:
    flags = {"-": Flag.NEGATIVE, "~": Flag.NOT, "!": Flag.NOT, "": NO_FLAG}[sign]
    flags |= Flag.ABSOLUTE if bar else NO_FLAG
    flags |= Flag.HALF_LOW if "H0_H0" in halves else NO_FLAG
    return flags | (Flag.HALF_HIGH if "H1_H1" in halves else NO_FLAG)


def _address(text: str) -> Operand:
    """Read the inside of brackets: registers and an offset, joined by ``+``."""
    index = second = -1
    flags, value = NO_FLAG, 0
    for part in text.split("+"):
        if found := re.fullmatch(r"R(\d+)((?:\.[A-Z0-9a-z]+)*)", part):
            index = int(found.group(1))
            for modifier in found.group(2).split(".")[1:]:
                flags |= {
                    "64": Flag.WIDE,
                    "X4": Flag.TIMES_4,
                    "X8": Flag.TIMES_8,
                    "X16": Flag.TIMES_16,
                    "reuse": NO_FLAG,
                }[modifier]
        elif found := re.fullmatch(r"UR(\d+)", part):
            second = int(found.group(1))
        else:
            value += int(part, 16)
    return Operand(kind=Kind.MEMORY, flags=flags, index=index, second=second, value=value & 0xFFFFFFFF)


def _number(text: str, name: str) -> int:
    """Return the bits of a number that is written in decimals: a half for the instructions on halves."""
    value = {"+INF": np.inf, "-INF": -np.inf, "+QNAN": np.nan, "-QNAN": -np.nan}.get(text)
    given = float(text) if value is None else value
    with np.errstate(over="ignore"):
        if name.startswith(("HFMA2", "HADD2", "HMUL2", "HMNMX2", "HSETP2")):
            return 0x7FFF if np.isnan(given) else int(np.float16(given).view(np.uint16))
        return 0x7FFFFFFF if np.isnan(given) else int(np.float32(given).view(np.uint32))
