"""The record of a bundle: one schema, one reader, one writer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from nrd_trt.engine.record import read_record, write_record
from nrd_trt.files import canonical_json, sha256_bytes
from nrd_trt.json_files import MOST_BYTES
from tests.engine.records import CONTENT, record

Path = tuple[str | int, ...]

OPTIONAL = {  # added to a schema, or filled by the writer
    ("files",),
    ("exporter",),
    ("resample",),
    *(("builder", name) for name in ("cuda", "workspace_mib", "optimization_level", "tf32", "builder_options")),
    *(("builder", f"{what}_compatible") for what in ("version", "hardware")),
    *(("model", name) for name in ("checkpoint_sha256", "precision", "upsample", "mask_encoding")),
    *(("model", "decode", name) for name in ("hidden", "guidance_channels", "patch", "upsample")),
    *(("model", "info", name) for name in ("mean", "std", "channel_order", "ignore_index", "size_hw")),
    *(("validation", name) for name in ("localisation", "rebuilds")),
}
NAMED_FREELY = {"builder_options", "files", "found", "kept_because", "precision_found"} | {
    name for name in CONTENT["validation"] if name.startswith("per_class")
}


def text(content: dict[str, Any]) -> bytes:
    """Return the bytes of a file with these values and a hash that is right."""
    whole = {**content, "sha256": sha256_bytes(canonical_json(content))}
    return (json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def places(value: Any = CONTENT, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every value at every depth with the keys that lead to it."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key), inner
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))


def changed(at: Path, value: Any = ...) -> dict[str, Any]:
    """Return the content with another value in a place, or without it."""
    content = copy.deepcopy(CONTENT)
    inner: Any = content
    for key in at[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return content


def test_round_trip_keeps_every_value() -> None:
    assert json.loads(write_record(record())) == {**CONTENT, "sha256": sha256_bytes(canonical_json(CONTENT))}
    assert read_record(write_record(record())) == record()


def test_equal_records_give_equal_bytes() -> None:
    assert write_record(record()) == text(dict(reversed(CONTENT.items())))
    assert write_record(replace(record(), passed=False)) != write_record(record())


def test_what_may_be_null_is_read_and_written_as_null() -> None:
    nullable = []
    for at, _ in places():
        content = changed(at, None)
        with suppress(ValueError):
            assert write_record(read_record(text(content))) == text(content)
            nullable.append(at)
    assert len(nullable) == 46


def test_odd_texts_and_numbers_are_read_as_they_were_written() -> None:
    odd = '\0\x1f\\"\u2028\U0001f6e3'
    parity, builder = {**CONTENT["parity"], "max_abs": 1e-300}, {**CONTENT["builder"], "workspace_mib": 1 << 40}
    one = record(command=odd, files={odd: "", "": odd}, parity=parity, builder=builder)
    assert (one.command, one.files) == (odd, {odd: "", "": odd})
    assert read_record(write_record(one)) == one


# --- other versions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at", [(), *(at for at, value in places() if isinstance(value, dict) and at[-1] not in NAMED_FREELY)], ids=str
)
def test_a_field_of_a_later_version_is_skipped(at: Path) -> None:
    assert read_record(text(changed((*at, "later"), {"deep": [1, None]}))) == record()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (2, "got 2; update it with `pip install -U nrd-trt`"),
        (0, "got 0; rebuild"),
        ("1", "got '1'; rebuild"),
        (True, "got True; rebuild"),
        (None, "got None; rebuild"),
    ],
)
def test_another_schema_is_refused_with_what_to_do(schema: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"expected schema 1, which this version of nrd_trt reads, {words}"):
        read_record(text({**CONTENT, "format": schema}))


def test_a_newer_schema_may_hash_otherwise() -> None:
    with pytest.raises(ValueError, match="pip install -U"):
        read_record(text({**CONTENT, "format": 2}).replace(b'"sha256": "', b'"sha256": "blake3:'))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("nrd-trt build a.pth -o NAME.nrd", (None, None)),
        ("nrd-trt build a.pth --workspace-mib 512 --optimization-level 4 --force", (512, 4)),
        ("nrd-trt build a.pth --optimization-level 0", (None, 0)),
    ],
)
def test_the_builder_of_0_1_0(command: str, expected: tuple[int | None, int | None]) -> None:
    """Its `driver` was the CUDA version, and two settings were in the command only."""
    new = ("cuda", "workspace_mib", "optimization_level", "tf32", "builder_options")
    old = {name: value for name, value in CONTENT["builder"].items() if name not in new}
    builder = read_record(text({**CONTENT, "command": command, "builder": {**old, "driver": "12.6"}})).builder
    assert (builder.driver, builder.cuda) == (None, "12.6")
    assert (builder.workspace_mib, builder.optimization_level) == expected


# --- what is no record -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"3", b'"text"', b"{}", b'{"sha256": "0"}', b"\xff\xfe", b"[" * 100_000,
     b'{"format": NaN, "sha256": "0"}', b'{"format": 1, "sha256": "0", "a": ' + b"9" * 5000 + b"}"],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_bytes_that_are_no_record(data: bytes) -> None:
    with pytest.raises(ValueError, match="rebuild the bundle"):
        read_record(data)


def test_every_changed_byte_is_found() -> None:
    """Blanks and line ends included: 0x0A ^ 0x07 is a carriage return, which text files hide."""
    original = write_record(record())
    for position, byte in enumerate(original):
        for flip in (0x07, (0x01, 0x20, 0x80)[position % 3]) if position % 8 == 0 else (0x07,):
            with pytest.raises(ValueError, match=r"rebuild the bundle|expected schema"):
                read_record(original[:position] + bytes([byte ^ flip]) + original[position + 1 :])


def test_a_record_that_is_too_long_is_not_parsed() -> None:
    with pytest.raises(ValueError, match=f"expected at most {MOST_BYTES} bytes"):
        read_record(b"[" * (MOST_BYTES + 1))


@pytest.mark.parametrize("at", [at for at, _ in places() if at[-1] != "format"], ids=str)
def test_every_place_has_its_type(at: Path) -> None:
    """A value of another type is an error that names the place, and so is the lack of a value that is required."""
    value = dict(places())[at]
    for wrong in [str(value), [value]] if isinstance(value, int | float) else [7, ["text"] if value == [] else 7.5]:
        with pytest.raises(ValueError, match="expected the record of a bundle, got something else") as caught:
            read_record(text(changed(at, wrong)))
        assert f"$.{at[0]}" in str(caught.value)
    if at in OPTIONAL or (len(at) > 1 and at[-2] in NAMED_FREELY):
        read_record(text(changed(at)))
    elif isinstance(at[-1], str):
        with pytest.raises(ValueError, match=f"missing required field `{at[-1]}`"):
            read_record(text(changed(at)))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (("fit",), None, "Expected `str`, got `null`"),
        (("fit",), "stretch", "Invalid enum value 'stretch'"),
        (("resample",), "lanczos", "Invalid enum value 'lanczos'"),
        (("builder", "name"), "tvm", "Invalid enum value 'tvm'"),
        (("builder", "compute_capabilities", 0), "sm_86", "matching regex"),
        (("builder", "workspace_mib"), True, "got `bool`"),
        (("precision", "layers"), None, "got `null`"),
        (("precision", "asked"), "fp4", "Invalid enum value 'fp4'"),
        (("model", "mask_encoding"), "u4x8", "Invalid enum value 'u4x8'"),
        (("model", "info", "std"), [1.0, 2.0], "length 3"),
        (("model", "info", "palette"), [[1, 2, 3]], "palette: expected 3 colours, got 1"),
        (("model", "decode", "num_classes"), 1, "num_classes: expected 2 to 256"),
        (("model", "shape", "height", "min"), 64, "expected 1 <= MIN <= OPT <= MAX"),
        (("validation", "gates", "min_agreement"), 99.5, "expected a fraction in 0-1"),
    ],
)
def test_values_that_no_bundle_can_have(at: Path, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_record(text(changed(at, value)))
