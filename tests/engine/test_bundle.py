"""Bundles: written whole or not at all, and no changed byte stays unseen."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
from tests.artefacts import content, listing, rewrite_facts
from tests.engine.records import record

RECORD = record()
REFERENCES = ReferenceSet(
    images=np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8),
    masks=np.random.default_rng(1).integers(0, 3, (2, 32, 64), dtype=np.uint8),
    near_ties=np.random.default_rng(2).random((2, 32, 64)) < 0.5,
    source="torch",
)
FILES = {ONNX_FILE: bytes(range(256)) * 8, PLAN_FILE: b"plan" * 300, REFERENCE_FILE: REFERENCES.to_bytes()}
LARGEST = 64 << 10
OTHER_FILES = {ONNX_FILE: b"new", REFERENCE_FILE: b"new"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle in a folder of its own."""
    return write_bundle(tmp_path / "city.nrd", FILES, RECORD, force=False).path


def test_round_trip(path: Path) -> None:
    bundle = read_bundle(str(path))
    assert replace(bundle.record, files={}) == replace(RECORD, files={})
    assert bundle.record.files.keys() == FILES.keys()
    assert (bundle.graph, bundle.passed) == (RECORD.model, True)
    assert bundle.failures == ["pixel agreement", "parity of the export: agreement"]
    assert bundle.to_dict() == {"path": str(path), **bundle.record.to_dict()}
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


def test_equal_content_has_equal_bytes_whatever_its_order(tmp_path: Path) -> None:
    for name, files in (("a.nrd", FILES), ("b.nrd", dict(reversed(FILES.items())))):
        files = {**files, REFERENCE_FILE: REFERENCES.to_bytes()}
        assert write_bundle(tmp_path / name, files, record(), force=False) == read_bundle(tmp_path / name)
    assert content(tmp_path / "a.nrd") == content(tmp_path / "b.nrd")
    without = {name: data for name, data in FILES.items() if name != PLAN_FILE}
    assert write_bundle(tmp_path / "c.nrd", without, RECORD, force=False).plan_path is None


def test_own_hash_is_over_the_canonical_rest(path: Path) -> None:
    """The definition of the documentation, spelt out here once more."""
    read = json.loads((path / RECORD_FILE).read_text(encoding="utf-8"))
    claimed = read.pop("sha256")
    text = json.dumps(read, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == claimed
    for name, expected in read["files"].items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == expected


# --- changed bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FILES))
def test_changed_byte_is_found_and_named(name: str, path: Path) -> None:
    rewrite_facts(path, passed=False)
    assert read_bundle(path).passed is False  # the record's own hash signs nothing; it finds damage
    file = path / name
    original = file.read_bytes()
    ends = [original[:-1], original + b"\0", b""]
    for position in (0, 1, len(original) // 3, len(original) // 2, len(original) - 1):
        for flip in (1, 0x80, 0xFF):
            ends.append(original[:position] + bytes([original[position] ^ flip]) + original[position + 1 :])
    for changed in ends:
        file.write_bytes(changed)
        with pytest.raises(BundleError) as caught:
            read_bundle(path)
        assert str(file) in str(caught.value)
        assert RECORD.command in str(caught.value)
    file.write_bytes(original)
    read_bundle(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"resize"', '"pad"'),
        lambda text: text.replace("ß", "\\u00df"),
        lambda text: text.replace('"fit": "resize",', '"fit": "resize",\n "fit": "resize",'),
        lambda text: "\ufeff" + text,
        lambda text: json.dumps(json.loads(text)),
    ],
)
def test_an_edited_record_is_found(change: Callable[[str], str], path: Path) -> None:
    file = path / RECORD_FILE
    original = file.read_text(encoding="utf-8")
    changed = change(original)
    assert changed != original
    file.write_bytes(changed.encode())
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_bundle(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fit": "stretch"}, r"Invalid enum value 'stretch' - at `\$\.fit`\); rebuild"),
        ({"files": ...}, r"expected hashes of model\.onnx and reference\.npz, got none"),
        ({"files": {ONNX_FILE: "0", REFERENCE_FILE: "0"}}, r"expected the files \['model\.onnx', 'reference\.npz'\]"),
        ({"files": {**dict.fromkeys(FILES, "0"), "../a": "0"}}, r"expected the files \['\.\./a'"),
    ],
)
def test_a_record_that_is_wrong_in_spite_of_its_hash(changes: dict[str, Any], words: str, path: Path) -> None:
    rewrite_facts(path, **changes)
    with pytest.raises(BundleError, match=rf"{path}.*{words}"):
        read_bundle(path)


@pytest.mark.parametrize("name", [*sorted(FILES), RECORD_FILE])
def test_missing_and_extra_files_are_found_and_named(name: str, path: Path) -> None:
    (path / ".DS_Store").write_bytes(b"")
    with pytest.raises(BundleError, match=r"\.DS_Store.*rebuild"):
        read_bundle(path)
    (path / ".DS_Store").unlink()
    (path / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        read_bundle(path)
    if name != RECORD_FILE:
        (path / name).mkdir()
        with pytest.raises(BundleError, match=rf"{name}: .*got no file"):
            read_bundle(path)


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    (tmp_path / "file.nrd").write_bytes(b"")
    (tmp_path / "empty.nrd").mkdir()
    for name in ("absent.nrd", "file.nrd", "empty.nrd"):
        with pytest.raises(BundleError, match=rf"{name}: expected a bundle folder with bundle\.json"):
            read_bundle(tmp_path / name)
        assert not is_bundle(tmp_path / name)


# --- stored masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"images": REFERENCES.images[..., :2]},
        {"images": REFERENCES.images.astype(np.float32)},
        {"masks": REFERENCES.masks[:1]},
        {"masks": REFERENCES.masks[:, ::2]},
        {"near_ties": REFERENCES.masks},
        {"confidences": REFERENCES.masks[:, :16]},
        {name: getattr(REFERENCES, name)[:0] for name in ("images", "masks", "near_ties")},
        {name: np.repeat(getattr(REFERENCES, name), 5, axis=0) for name in ("images", "masks", "near_ties")},
    ],
    ids=["channels", "type", "number", "size", "ties", "confidences", "none", "ten"],
)
def test_stored_arrays_that_do_not_belong_together(changes: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / REFERENCE_FILE
    file.write_bytes(replace(REFERENCES, **changes).to_bytes())
    with pytest.raises(BundleError, match=rf"{file}: expected images .* N from 1 to {MAX_REFERENCES}, got \[.*rebuild"):
        ReferenceSet.from_file(file)


@pytest.mark.parametrize(
    "data", [b"", b"masks", REFERENCES.to_bytes()[:-30], REFERENCES.to_bytes().replace(b"m", b"n")]
)
def test_what_stores_no_masks(data: bytes, tmp_path: Path) -> None:
    (tmp_path / REFERENCE_FILE).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{REFERENCE_FILE}: expected stored inputs and masks, got .*; rebuild"):
        ReferenceSet.from_file(tmp_path / REFERENCE_FILE)


# --- replacing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [False, True])
def test_force_replaces_the_whole_bundle_and_nothing_does_without_it(damaged: bool, path: Path) -> None:
    (path / PLAN_FILE).write_bytes(b"of before")
    if damaged:
        (path / RECORD_FILE).write_text("{")
    before = content(path.parent)
    with pytest.raises(ConfigError, match="force"):
        write_bundle(path, OTHER_FILES, RECORD, force=False)
    assert content(path.parent) == before
    write_bundle(path, OTHER_FILES, RECORD, force=True)
    assert listing(path) == [RECORD_FILE, ONNX_FILE, REFERENCE_FILE]
    assert read_bundle(path).onnx_path.read_bytes() == b"new"


def test_force_removes_nothing_that_is_not_ours(tmp_path: Path, path: Path) -> None:
    (path / "thesis.txt").write_text("dear")
    pretended = tmp_path / "pretended.nrd"
    pretended.mkdir()
    (pretended / RECORD_FILE).write_text("{}")
    before = content(tmp_path)
    with pytest.raises(BundleError, match=r"got 'thesis.txt' as well"):
        write_bundle(path, OTHER_FILES, RECORD, force=True)
    with pytest.raises(BundleError, match="is not a bundle"):
        write_bundle(pretended, OTHER_FILES, RECORD, force=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("target", ["city.nrd", "nowhere"])
def test_a_link_is_refused_and_stays(target: str, force: bool, tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link.nrd"
    link.symlink_to(target)
    before = content(path)
    with pytest.raises(ConfigError, match=rf"got a symbolic link to {target}; remove the link"):
        write_bundle(link, OTHER_FILES, RECORD, force=force)
    assert link.is_symlink() and content(path) == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"city.nrd", "link.nrd"}


def test_a_link_in_a_bundle_is_not_removed(tmp_path: Path, path: Path) -> None:
    kept = tmp_path / "kept.plan"
    kept.write_text("dear")
    (path / PLAN_FILE).unlink()
    (path / PLAN_FILE).symlink_to(kept)
    with pytest.raises(BundleError, match=f"got '{PLAN_FILE}' as well"):
        write_bundle(path, OTHER_FILES, RECORD, force=True)
    assert kept.read_text() == "dear"


def test_force_replaces_bundles_only(tmp_path: Path) -> None:
    folder, file = tmp_path / "photos.nrd", tmp_path / "file.nrd"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"dear")
    file.write_bytes(b"dear")
    for target in (folder, file):
        with pytest.raises(BundleError, match="force=True replaces bundles only"):
            write_bundle(target, FILES, RECORD, force=True)
    assert content(tmp_path) == {"photos.nrd/holiday.jpg": b"dear", "file.nrd": b"dear"}


# --- full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """The system itself refuses files above a limit, as it would on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("failing", sorted(FILES))
@pytest.mark.parametrize("replacing", [True, False])
def test_write_that_the_system_refuses_leaves_what_was_there(failing: str, replacing: bool, tmp_path: Path) -> None:
    target = tmp_path / "city.nrd"
    if replacing:
        write_bundle(target, FILES, RECORD, force=False)
    before = content(tmp_path), listing(tmp_path)
    refused = r"city\.nrd: cannot write the bundle .*File too large.*free some space"
    with full_disk(), pytest.raises(BundleError, match=refused):
        write_bundle(target, {**FILES, failing: bytes(LARGEST + 1)}, RECORD, force=replacing)
    assert (content(tmp_path), listing(tmp_path)) == before
    if replacing:
        read_bundle(target)
