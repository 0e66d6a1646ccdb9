"""Changes to a file, by what it is made of: bytes, JSON, records of a ZIP file, chunks of a PNG, messages of protobuf.

Each takes a generator and content, and returns content; equal generators give equal changes. Nothing here asserts.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import onnx
from google.protobuf.message import Message

Mutate = Callable[[random.Random, bytes], bytes]

_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 255, 256, 1 << 20, 1 << 40, -(1 << 63), 1 << 70, 0.5, -1.5, 1e30, 1e308),
    *("", "x", "fp16", "../x", "\x1b[31m", "é" * 50, "1" * 5000, "a" * 100_000, [], [0], [[]], {}, {"": 0}, [1, 2, 3]),
)
_TEXTS = (b"", b"(", b")" * 40, b"[" * 3000, b"-" * 3000, b"\0", b"\xff\xfe", b"'", b'"', b"\n", b"dict(", b"=", b"1e9")


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Change some bytes: flip, overwrite, cut, repeat, move, insert."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        length = min(len(data) - at, rng.choice((1, 1, 2, 4, 8, 64, 4096)))
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 100))
        elif kind == 4:
            size, order = rng.choice("BHIQ"), rng.choice("<>")
            number = struct.pack(order + size, rng.choice(_NUMBERS) & (1 << 8 * struct.calcsize(size)) - 1)
            data[at : at + len(number)] = number
        elif kind == 5:
            data[at:at] = rng.choice(_TEXTS)
        elif kind == 6:
            other = rng.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def change_near(*places: tuple[int, int]) -> Mutate:
    """Return a change of bytes in one of some places only: first and last byte, negative ones from the end."""

    def change(rng: random.Random, content: bytes) -> bytes:
        first, last = (place + len(content) if place < 0 else place for place in rng.choice(places))
        return content[:first] + change_bytes(rng, content[first : last + 1]) + content[last + 1 :]

    return change


def change_value(rng: random.Random, value: Any) -> Any:
    """Change a JSON value: something in it becomes something else, is left out, doubled, or nested."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        kind = rng.randrange(4)
        if kind == 0 and isinstance(value, int | float) and not isinstance(value, bool):
            return value + rng.choice((-1, 1, 31, 1 << 16))
        if kind == 1:
            for _ in range(rng.choice((1, 8, 200))):
                value = [value] if rng.random() < 0.5 else {"x": value}
            return value
        return rng.choice(_VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, copy = rng.choice(keys), value.copy()
    kind = rng.randrange(12)
    if kind == 0:
        del copy[key]
    elif kind == 1 and isinstance(copy, dict):
        copy[str(rng.choice(_VALUES))[:50]] = copy[key]
    elif kind == 2:
        copy[key] = copy[rng.choice(keys)]
    elif kind == 3 and isinstance(copy, list):
        copy = copy * rng.choice((2, 1000)) if len(copy) < 50 else copy[:1]
    else:
        copy[key] = change_value(rng, copy[key])
    return copy


def change_json(rng: random.Random, content: bytes) -> bytes:
    """Change the values of a JSON text, or now and then its bytes."""
    if rng.random() < 0.15:
        return change_bytes(rng, content)
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = change_value(rng, value) if rng.random() < 0.4 else _change_leaf(rng, value)
    return json.dumps(value).encode()


def _change_leaf(rng: random.Random, value: Any) -> Any:
    """Change one of the innermost values, each as likely as another, so that those far down are not spared."""
    places, left = [], [value]
    while left:
        inside = left.pop()
        keys = list(inside) if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        left += [inside[key] for key in keys]
        places += [(inside, key) for key in keys if not isinstance(inside[key], dict | list)]
    if places:
        inside, key = rng.choice(places)
        alike = [other for other in _VALUES if isinstance(other, type(inside[key])) and not isinstance(other, bool)]
        inside[key] = rng.choice(alike if alike and rng.random() < 0.8 else _VALUES)
    return value


def change_records(change: Mutate, name: str = "") -> Mutate:
    """Return a change of one record of a ZIP file, whose name ends so; checksums are right again."""

    def changed(rng: random.Random, content: bytes) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
            chosen = rng.choice([record for record in old.namelist() if record.endswith(name)])
            for record in old.infolist():
                data = old.read(record)
                kind = rng.choice((record.compress_type, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
                if record.filename != chosen:
                    new.writestr(record, data, record.compress_type)
                elif rng.random() < 0.95:
                    new.writestr(record, change(rng, data), kind if rng.random() < 0.1 else record.compress_type)
        return target.getvalue()

    return changed


def change_chunks(rng: random.Random, content: bytes) -> bytes:
    """Change the data of a PNG's chunk, whose checksum is right again; compressed data stay compressed."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    chosen = rng.randrange(len(chunks))
    name, data = chunks[chosen]
    if name == b"IDAT" and rng.random() < 0.7:
        data = zlib.compress(change_bytes(rng, zlib.decompress(data)))
    else:
        data = change_bytes(rng, data)
    chunks[chosen] = (rng.choice((name,) * 8 + (b"iTXt", b"tRNS", b"eXIf", b"acTL", b"PLTE")), data)
    if rng.random() < 0.2:
        rng.shuffle(chunks)
    body = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return content[:8] + b"".join(body)


def change_onnx(rng: random.Random, content: bytes) -> bytes:
    """Change fields of an ONNX file, or now and then its bytes."""
    if rng.random() < 0.2:
        return change_bytes(rng, content)
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_message(rng, model)
    return model.SerializeToString()


def _change_message(rng: random.Random, message: Message) -> None:
    """Walk down to a field and change it."""
    given = [(field, value) for field, value in message.ListFields() if field.name != "doc_string"]
    if not given:
        return
    field, value = rng.choice(given)
    repeated = not isinstance(value, int | float | str | bytes | Message)
    if repeated:
        _change_repeated(rng, value, is_message=field.message_type is not None)
    elif isinstance(value, Message):
        if rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            _change_message(rng, value)
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _changed(rng, value))


def _change_repeated(rng: random.Random, items: Any, *, is_message: bool) -> None:
    at, kind = rng.randrange(len(items)), rng.random()
    if kind < 0.08:
        del items[at]
    elif kind < 0.14:
        items.append(items[at])
    elif is_message:
        _change_message(rng, items[at])
    else:
        items[at] = _changed(rng, items[at])


def _changed(rng: random.Random, value: Any) -> Any:
    """Return another value of the same type, within what protobuf can hold."""
    if isinstance(value, int):
        other = rng.choice((*_NUMBERS, 99, 16, -1, value + 1, value * 2))
        return max(-(1 << 31), min((1 << 31) - 1, other))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
    if isinstance(value, bytes):
        return change_bytes(rng, value)
    if value.startswith(("{", "[")):
        return change_json(rng, value.encode()).decode(errors="replace")
    return rng.choice(
        ("", "x", "image", "mask", "Loop", "If", "Constant", "ai.onnx", "com.microsoft", "é", value + "x")
    )
