"""Bundles: written whole or not at all, and no changed byte stays unseen."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrd_trt.engine import bundle as module
from nrd_trt.engine.bundle import (
    MAX_REFERENCES,
    ONNX_FILE,
    PLAN_FILE,
    RECORD_FILE,
    REFERENCE_FILE,
    ReferenceSet,
    is_bundle,
    read_bundle,
    write_bundle,
)
from nrd_trt.errors import BundleError, ConfigError
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.specs import DecodeSpec, InputShape
from tests.artefacts import content, listing, rewrite_facts
from tests.helpers import model_info

GRAPH = GraphFacts(
    info=model_info(3, class_names=("Straße", "sky", "car")),
    decode=DecodeSpec(num_classes=3),
    shape=InputShape.static((32, 64)),
    input_form="uint8",
    output="mask",
    encoder="mobilenetv2",
    head="nrd",
)
FACTS: dict[str, Any] = {
    "model": GRAPH.to_dict(),
    "fit": "resize",
    "command": "nrd-trt build city.pth -o NAME.nrd --precision fp16 --force",
    "precision": {"asked": "fp16", "layers": [{"name": "a\tb", "kind": "convolution", "type": "half"}]},
    "passed": True,
}
REFERENCES = ReferenceSet(
    images=np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8),
    masks=np.random.default_rng(1).integers(0, 3, (2, 32, 64), dtype=np.uint8),
    near_ties=np.random.default_rng(2).random((2, 32, 64)) < 0.5,
    source="torch",
)
FILES = {ONNX_FILE: bytes(range(256)) * 8, PLAN_FILE: b"plan" * 300, REFERENCE_FILE: REFERENCES.to_bytes()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle in a folder of its own."""
    return write_bundle(tmp_path / "city.nrd", FILES, FACTS, force=False).path


def test_round_trip(path: Path) -> None:
    bundle = read_bundle(path)
    assert bundle.graph == GRAPH
    assert {key: bundle.record.to_dict()[key] for key in FACTS} == json.loads(json.dumps(FACTS))
    assert bundle.record.to_dict()["files"].keys() == FILES.keys()
    assert bundle.onnx_path.read_bytes() == FILES[ONNX_FILE]
    assert bundle.plan_path is not None
    assert bundle.plan_path.read_bytes() == FILES[PLAN_FILE]
    stored = bundle.references()
    assert stored.source == "torch"
    for name in ("images", "masks", "near_ties"):
        got, expected = getattr(stored, name), getattr(REFERENCES, name)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    assert is_bundle(path)
    assert listing(path.parent) == ["city.nrd", *(f"city.nrd/{name}" for name in sorted([*FILES, RECORD_FILE]))]


def test_written_and_opened_bundles_are_equal(tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "city.nrd", FILES, FACTS, force=False)
    opened = read_bundle(str(tmp_path / "city.nrd"))
    assert opened.graph == written.graph
    assert opened.path == written.path
    assert opened.record.to_dict() == json.loads(json.dumps(written.record.to_dict()))


def test_bundle_without_a_plan(tmp_path: Path) -> None:
    files = {name: data for name, data in FILES.items() if name != PLAN_FILE}
    assert write_bundle(tmp_path / "a.nrd", files, FACTS, force=False).plan_path is None
    assert read_bundle(tmp_path / "a.nrd").plan_path is None


def test_two_writes_have_the_same_bytes(tmp_path: Path) -> None:
    for name, files in (("a.nrd", FILES), ("b.nrd", dict(reversed(FILES.items())))):
        files = {**files, REFERENCE_FILE: REFERENCES.to_bytes()}
        write_bundle(tmp_path / name, files, dict(reversed(FACTS.items())), force=False)
    assert content(tmp_path / "a.nrd") == content(tmp_path / "b.nrd")


def test_own_hash_is_over_the_canonical_rest(path: Path) -> None:
    """The definition of CLI.md, spelt out here once more."""
    record = json.loads((path / RECORD_FILE).read_text(encoding="utf-8"))
    claimed = record.pop("sha256")
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == claimed
    for name, expected in record["files"].items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == expected


# --- changed bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FILES))
def test_changed_byte_is_found_and_named(name: str, path: Path) -> None:
    file = path / name
    original = file.read_bytes()
    for position in (0, 1, len(original) // 3, len(original) // 2, len(original) - 1):
        for flip in (1, 0x80, 0xFF):
            changed = bytearray(original)
            changed[position] ^= flip
            file.write_bytes(changed)
            with pytest.raises(BundleError) as caught:
                read_bundle(path)
            assert str(file) in str(caught.value)
            assert FACTS["command"] in str(caught.value)
    file.write_bytes(original)
    read_bundle(path)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
@pytest.mark.parametrize("name", sorted(FILES))
def test_changed_length_is_found(name: str, change: Callable[[bytes], bytes], path: Path) -> None:
    file = path / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(BundleError, match=name):
        read_bundle(path)


def test_every_changed_byte_of_the_facts_is_found(path: Path) -> None:
    """Blanks and line ends included: 0x0A ^ 0x07 is a carriage return, which text files hide."""
    file = path / RECORD_FILE
    original = file.read_bytes()
    for position in range(len(original)):
        for flip in (0x07,) if position % 8 else (0x01, 0x07, 0x20, 0x80):
            changed = bytearray(original)
            changed[position] ^= flip
            file.write_bytes(changed)
            with pytest.raises(BundleError, match=r"bundle\.json|expected the files"):
                read_bundle(path)
    file.write_bytes(original)
    read_bundle(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: text + " ",
        lambda text: " " + text,
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("true", "false"),
        lambda text: text.replace('"resize"', '"pad"'),
        lambda text: text.replace("ß", "\\u00df"),
        lambda text: text.replace('"fit": "resize",', '"fit": "resize",\n "fit": "resize",'),
        lambda text: "\ufeff" + text,
        lambda text: json.dumps(json.loads(text)),
    ],
)
def test_edited_facts_are_found(change: Callable[[str], str], path: Path) -> None:
    file = path / RECORD_FILE
    original = file.read_text(encoding="utf-8")
    changed = change(original)
    assert changed != original
    file.write_bytes(changed.encode())
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_bundle(path)


def test_edited_facts_with_a_right_hash_do_not_hide_a_changed_file(path: Path) -> None:
    rewrite_facts(path, passed=False)
    assert read_bundle(path).record.to_dict()["passed"] is False  # the hash does not sign; it finds damage
    for name in (ONNX_FILE, PLAN_FILE, REFERENCE_FILE):
        (path / name).write_bytes(FILES[name] + b"!")
        with pytest.raises(BundleError, match=name):
            read_bundle(path)
        (path / name).write_bytes(FILES[name])


@pytest.mark.parametrize("text", ["", "{", "[]", "[1, 2]", "null", "3", '"text"', "{}", '{"sha256": "0"}', "\xff\xfe"])
def test_facts_that_are_no_facts(text: str, path: Path) -> None:
    (path / RECORD_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"bundle\.json.*[Rr]ebuild"):
        read_bundle(path)


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_other_format_is_refused(number: Any, path: Path) -> None:
    rewrite_facts(path, format=number)
    with pytest.raises(BundleError, match=rf"expected format {module.FORMAT}, got {number}"):
        read_bundle(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": ...},
        {"files": ["model.onnx"]},
        {"files": {ONNX_FILE: None, PLAN_FILE: 3, REFERENCE_FILE: ""}},
        {"command": ..., "files": {ONNX_FILE: "0", PLAN_FILE: "0", REFERENCE_FILE: "0"}},
        {"model": ...},
        {"model": None},
        {"model": {}},
        {"model": {**GRAPH.to_dict(), "decode": {"num_classes": 1}}},
        {"model": {**GRAPH.to_dict(), "shape": {"batch": 1}}},
    ],
)
def test_facts_of_another_form_with_a_right_hash_are_an_error_of_the_bundle(
    changes: dict[str, Any], path: Path
) -> None:
    rewrite_facts(path, **changes)
    with pytest.raises(BundleError):
        read_bundle(path)


@pytest.mark.parametrize("name", [*sorted(FILES), RECORD_FILE])
def test_missing_file_is_found(name: str, path: Path) -> None:
    (path / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        read_bundle(path)


@pytest.mark.parametrize("name", ["model.plan.bak", ".DS_Store", "notes"])
def test_extra_file_is_found_and_named(name: str, path: Path) -> None:
    (path / name).write_bytes(b"")
    with pytest.raises(BundleError, match=rf"{name}.*rebuild"):
        read_bundle(path)


def test_folder_in_the_place_of_a_file_is_found(path: Path) -> None:
    (path / PLAN_FILE).unlink()
    (path / PLAN_FILE).mkdir()
    with pytest.raises(BundleError, match=r"model\.plan"):
        read_bundle(path)


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    (tmp_path / "file.nrd").write_bytes(b"")
    (tmp_path / "empty.nrd").mkdir()
    for name in ("absent.nrd", "file.nrd", "empty.nrd"):
        with pytest.raises(BundleError, match=rf"{name}: expected a bundle folder with bundle\.json"):
            read_bundle(tmp_path / name)
        assert not is_bundle(tmp_path / name)


# --- replacing -------------------------------------------------------------------------------------------------------


def test_existing_bundle_needs_force(path: Path) -> None:
    before = content(path.parent)
    with pytest.raises(ConfigError, match="--force"):
        write_bundle(path, {ONNX_FILE: b"new"}, FACTS, force=False)
    assert content(path.parent) == before


def test_force_replaces_the_whole_bundle(path: Path) -> None:
    (path / "extra").write_bytes(b"")
    write_bundle(path, {ONNX_FILE: b"new"}, FACTS, force=True)
    assert listing(path.parent) == ["city.nrd", "city.nrd/bundle.json", "city.nrd/model.onnx"]
    assert read_bundle(path).onnx_path.read_bytes() == b"new"


def test_force_replaces_a_damaged_bundle(path: Path) -> None:
    (path / RECORD_FILE).write_text("{")
    write_bundle(path, FILES, FACTS, force=True)
    assert set(read_bundle(path).record.to_dict()["files"]) == set(FILES)


def test_force_replaces_bundles_only(tmp_path: Path) -> None:
    folder = tmp_path / "photos.nrd"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"dear")
    file = tmp_path / "file.nrd"
    file.write_bytes(b"dear")
    for target in (folder, file):
        with pytest.raises(BundleError, match="--force replaces bundles only"):
            write_bundle(target, FILES, FACTS, force=True)
    assert content(tmp_path) == {"photos.nrd/holiday.jpg": b"dear", "file.nrd": b"dear"}


def test_missing_parent_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        write_bundle(tmp_path / "none" / "a.nrd", FILES, FACTS, force=False)
    assert listing(tmp_path) == []


# --- full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [*sorted(FILES), RECORD_FILE])
@pytest.mark.parametrize("replacing", [True, False])
def test_full_disk_leaves_what_was_there(
    failing: str, replacing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "city.nrd"
    if replacing:
        write_bundle(target, FILES, FACTS, force=False)
    before = content(tmp_path), listing(tmp_path)
    plain_open, failed = io.open, []

    def open_on_a_full_disk(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode and Path(file).name == failing:
            failed.append(file)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY))  # the name still fits
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain_open(file, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", open_on_a_full_disk)
        with pytest.raises(BundleError, match=r"city\.nrd: cannot write the bundle .*No space left.*free some space"):
            write_bundle(target, FILES, FACTS, force=replacing)
    assert failed
    assert (content(tmp_path), listing(tmp_path)) == before
    if replacing:
        read_bundle(target)


@pytest.fixture
def small_files_only() -> Iterator[int]:
    """The system itself refuses files above this many bytes, as it would on a full disk."""
    limit = 4 << 20
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_write_that_the_system_refuses_leaves_what_was_there(path: Path, small_files_only: int) -> None:
    before = content(path.parent), listing(path.parent)
    with pytest.raises(BundleError, match=r"city\.nrd: cannot write the bundle"):
        write_bundle(path, {**FILES, PLAN_FILE: bytes(small_files_only + 1)}, FACTS, force=True)
    assert (content(path.parent), listing(path.parent)) == before
    read_bundle(path)


def test_references_are_at_most_eight() -> None:
    assert MAX_REFERENCES == 8
