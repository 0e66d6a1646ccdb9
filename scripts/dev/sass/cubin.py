"""What a cubin says of its kernels beside their code: registers, memory, parameters. Reads the ELF file itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PARAMETER_BANK = 0x0A
_FRAME_SIZE = 0x11
_REGISTERS = 0x2F
_SIZED = 0x04


@dataclass(frozen=True, kw_only=True)
class KernelImage:
    """One kernel of a cubin.

    Attributes:
        name: Its symbol.
        code: The machine code.
        registers: Number of registers per thread.
        stack_bytes: Local memory per thread.
        shared_bytes: Static shared memory, what the driver keeps for itself included; dynamic memory begins there.
        constants: Bytes of constant bank 2.
        parameter_offset: Where the parameters begin in constant bank 0.
        parameter_bytes: Their size.
    """

    name: str
    code: bytes
    registers: int
    stack_bytes: int
    shared_bytes: int
    constants: bytes
    parameter_offset: int
    parameter_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Section:
    name: str
    size: int
    data: bytes


def read_cubin(path: Path) -> dict[str, KernelImage]:
    """Return the kernels of a cubin by name.

    Raises:
        ValueError: The file is no cubin of 64 bits.
    """
    sections = {section.name: section for section in _sections(path.read_bytes())}
    prefix = ".text."
    names = [name[len(prefix) :] for name in sections if name.startswith(prefix)]
    return {name: _kernel(name, sections) for name in names}


def _kernel(name: str, sections: dict[str, _Section]) -> KernelImage:
    empty = _Section(name="", size=0, data=b"")
    text = sections[f".text.{name}"]
    own = dict(_attributes(sections.get(f".nv.info.{name}", empty).data))
    _, offset, size = struct.unpack("<IHH", own[_PARAMETER_BANK])
    return KernelImage(
        name=name,
        code=text.data,
        registers=_of_symbol(_REGISTERS, name, sections),
        stack_bytes=_of_symbol(_FRAME_SIZE, name, sections),
        shared_bytes=sections.get(f".nv.shared.{name}", empty).size,
        constants=sections.get(f".nv.constant2.{name}", empty).data,
        parameter_offset=offset,
        parameter_bytes=size,
    )


def _of_symbol(attribute: int, name: str, sections: dict[str, _Section]) -> int:
    """Read what the general table gives for a kernel's symbol."""
    number = _symbols(sections).index(name)
    for found, value in _attributes(sections[".nv.info"].data):
        if found == attribute and struct.unpack_from("<I", value)[0] == number:
            return int(struct.unpack_from("<I", value, 4)[0])
    raise ValueError(f"{name}: the cubin has no attribute {attribute:#x} of it")


def _symbols(sections: dict[str, _Section]) -> list[str]:
    table, strings = sections[".symtab"].data, sections[".strtab"].data
    return [_text(strings, struct.unpack_from("<I", table, at)[0]) for at in range(0, len(table), 24)]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Go over the entries of a section .nv.info: format, attribute, and a value or the size of one."""
    at = 0
    while at < len(data):
        form, attribute, value = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == _SIZED:
            yield attribute, data[at : at + value]
            at += value


def _sections(data: bytes) -> Iterator[_Section]:
    if data[:5] != b"\x7fELF\x02":
        raise ValueError("expected a cubin, an ELF file of 64 bits")
    (start,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, start + size * i) for i in range(count)]
    strings = data[headers[names][4] :]
    no_bits = 8
    for name, kind, _, _, offset, length, _, _, _, _ in headers:
        content = b"" if kind == no_bits else data[offset : offset + length]
        yield _Section(name=_text(strings, name), size=length, data=content)


def _text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()
