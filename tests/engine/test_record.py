"""The record of a bundle: one schema, one reader, one writer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrd_trt.engine.record import (
    MAX_BYTES,
    BuilderRecord,
    BundleRecord,
    CheckpointRecord,
    ExporterRecord,
    PluginRecord,
    PrecisionRecord,
    read_record,
    write_record,
)
from nrd_trt.figures import FlipPair, Flips, Gates, ImageFigures, MaskFigures, Parity, ValidationRecord
from nrd_trt.files import canonical_json, sha256_bytes
from nrd_trt.specs import LayerRecord
from tests.engine.records import CONTENT, record

Path = tuple[str | int, ...]

OPTIONAL = {  # added to a schema, or filled by the writer
    ("files",),
    ("exporter",),
    *(("builder", name) for name in ("cuda", "workspace_mib", "optimization_level")),
    *(("builder", f"{what}_compatible") for what in ("version", "hardware")),
    *(("model", name) for name in ("checkpoint_sha256", "precision", "upsample", "mask_encoding")),
    *(("model", "decode", name) for name in ("hidden", "guidance_channels", "patch", "upsample")),
    *(("model", "info", name) for name in ("mean", "std", "channel_order", "ignore_index", "size_hw")),
    *(("validation", name) for name in ("localisation", "rebuilds")),
}
NAMED_FREELY = {"files", "found", "kept_because", "precision_found"} | {
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


SHARE, NUMBER = st.none() | st.floats(0, 1), st.integers(0, 1 << 40)


def _figures() -> dict[str, st.SearchStrategy[Any]]:
    """Return what fields of `MaskFigures` may hold; Hypothesis itself would try NaN."""
    found: dict[str, st.SearchStrategy[Any]] = {
        field.name: SHARE for field in fields(MaskFigures) if field.type == "float | None"
    }
    by_class = st.dictionaries(st.text(), SHARE, max_size=3)
    found |= {name: by_class for name in NAMED_FREELY if name.startswith("per_class")}
    found["flips"] = st.builds(Flips, share=SHARE, far_share=SHARE)
    found["flip_pairs"] = st.tuples(st.builds(FlipPair))
    found["worst_images"] = st.tuples(st.builds(ImageFigures, pixel_agreement=SHARE))
    return found


RECORDS = st.builds(
    BundleRecord,
    checkpoint=st.none() | st.builds(CheckpointRecord),
    plugin=st.none() | st.builds(PluginRecord),
    builder=st.builds(
        BuilderRecord, compute_capabilities=st.tuples(st.just("8.7")), cuda=st.none() | st.text(), workspace_mib=NUMBER
    ),
    precision=st.builds(PrecisionRecord, layers=st.tuples(st.builds(LayerRecord))),
    model=st.just(record().model),
    parity=st.none() | st.builds(Parity, max_abs=SHARE, agreement=st.floats(0, 1)),
    validation=st.builds(
        ValidationRecord,
        gates=st.builds(Gates, min_agreement=st.floats(0, 1), max_miou_drop=st.floats(0, 1)),
        localisation=st.none(),
        rebuilds=st.none(),
        **_figures(),
    ),
    files=st.dictionaries(st.text(), st.text(), max_size=3),
    exporter=st.none() | st.builds(ExporterRecord),
)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(RECORDS)
def test_any_record_is_read_as_it_was_written(one: BundleRecord) -> None:
    written = write_record(one)
    assert read_record(written) == one
    assert write_record(read_record(written)) == written


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
    new = ("cuda", "workspace_mib", "optimization_level")
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
    with pytest.raises(ValueError, match=f"expected at most {MAX_BYTES} bytes"):
        read_record(b"[" * (MAX_BYTES + 1))


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
