"""The bundle ``NAME.nrd/``: ONNX file, plan, reference masks and the facts that tie them together.

Written whole or not at all. ``bundle.json`` carries the hash of every file and of itself, so a changed byte anywhere is
found before anything is run. Who made a bundle a hash does not tell: that is what a signature is for.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nrd_trt.engine.record import BundleRecord, read_record, write_record
from nrd_trt.engine.signature import SIGNATURE_FILE, check_no_links, read_signature, signed, verify
from nrd_trt.errors import BundleError, ConfigError
from nrd_trt.files import atomic_file, atomic_folder, check_absent, sha256_bytes, sha256_file
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.json_files import MOST_BYTES
from nrd_trt.specs import as_path

ONNX_FILE, PLAN_FILE, REFERENCE_FILE, RECORD_FILE = "model.onnx", "model.plan", "reference.npz", "bundle.json"
_OWN = frozenset((ONNX_FILE, PLAN_FILE, REFERENCE_FILE, RECORD_FILE, SIGNATURE_FILE))
MAX_REFERENCES = 8
MAX_REFERENCE_PIXELS = 128_000_000
"""Of all references together, so that few are kept where each is large."""
_MOST_BYTES = 6 * MAX_REFERENCE_PIXELS + (64 << 10)  # a pixel: 3 colours, a class, a tie, a confidence; then headers


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Inputs and the reference's masks of them, all at the engine's size.

    Attributes:
        images: ``(N, h, w, 3) uint8 RGB``, N at most 8.
        masks: ``(N, h, w) uint8``.
        near_ties: ``(N, h, w) bool``; all False where the reference's logits were not known.
        source: What drew the masks, ``"torch"`` or ``"onnx"``.
        confidences: ``(N, h, w) uint8``; None where the bundle's graph does not give them.
    """

    images: np.ndarray
    masks: np.ndarray
    near_ties: np.ndarray
    source: str
    confidences: np.ndarray | None = None

    def to_bytes(self) -> bytes:
        """Return a compressed npz; equal arrays give equal bytes."""
        buffer = io.BytesIO()
        arrays = {name: np.asarray(value) for name, value in vars(self).items() if value is not None}
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stubs take the names for options
        return buffer.getvalue()

    @classmethod
    def from_file(cls, path: Path) -> ReferenceSet:
        """Read what `to_bytes` wrote.

        Raises:
            BundleError: It is something else, or its arrays do not belong together.
        """
        try:
            _check_size(path)
            with np.load(io.BytesIO(path.read_bytes())) as data:  # NumPy leaves a damaged file open
                images, masks, near_ties, source = (data[name] for name in ("images", "masks", "near_ties", "source"))
                sure = data["confidences"] if "confidences" in data else None
        except BundleError:
            raise
        except Exception as exc:  # zipfile's, zlib's and NumPy's errors have no common base
            raise BundleError(f"{path}: expected stored inputs and masks, got {exc!r}; rebuild the bundle.") from exc
        arrays = (images, masks, near_ties, *([] if sure is None else [sure]))
        kinds, size = [(array.dtype.name, array.shape) for array in arrays], images.shape[:3]
        due = [("uint8", (*size, 3)), ("uint8", size), ("bool", size), ("uint8", size)]
        if kinds != due[: len(kinds)] or not 0 < len(images) <= MAX_REFERENCES:
            raise BundleError(
                f"{path}: expected images (N, h, w, 3) uint8 with masks uint8, near ties bool and perhaps confidences "
                f"uint8 of their size, N from 1 to {MAX_REFERENCES}, got {kinds}; rebuild the bundle."
            )
        return cls(images=images, masks=masks, near_ties=near_ties, source=str(source), confidences=sure)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Who signed a bundle.

    Attributes:
        fingerprint: SHA-256 of the public key in hexadecimal.
        verified: Whether the signature was verified with that key; otherwise the fingerprint is a claim of the bundle.
    """

    fingerprint: str
    verified: bool


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle; its hashes hold.

    Attributes:
        path: The folder.
        record: Content of ``bundle.json``.
        origin: Who signed it; None where it is unsigned.
    """

    path: Path
    record: BundleRecord
    origin: Origin | None = None

    @property
    def graph(self) -> GraphFacts:
        """What the ONNX file says about itself."""
        return self.record.model

    @property
    def onnx_path(self) -> Path:
        """The ONNX file."""
        return self.path / ONNX_FILE

    @property
    def plan_path(self) -> Path | None:
        """The plan, or None where no TensorRT builder ran."""
        return self.path / PLAN_FILE if PLAN_FILE in self.record.files else None

    @property
    def passed(self) -> bool:
        """Whether every gate held when the bundle was built."""
        return self.record.passed

    @property
    def failures(self) -> list[str]:
        """Gates that did not hold when the bundle was built, in words; those of the export's parity say so."""
        parity = self.record.parity.failures if self.record.parity else ()
        return [*self.record.validation.failures, *(f"parity of the export: {failure}" for failure in parity)]

    def references(self) -> ReferenceSet:
        """Read the stored inputs and masks.

        Raises:
            BundleError: The file holds something else, or masks of other classes than the network's.
        """
        stored, classes = ReferenceSet.from_file(self.path / REFERENCE_FILE), len(self.graph.info.class_names)
        if stored.masks.max(initial=0) >= classes:
            raise BundleError(
                f"{self.path / REFERENCE_FILE}: expected masks of classes 0-{classes - 1}, got {stored.masks.max()}; "
                "rebuild the bundle."
            )
        return stored

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object: the path and the record."""
        return {"path": str(self.path), **self.record.to_dict()}


def _check_size(path: Path) -> None:
    """Raise `BundleError` where arrays are larger than references are, or than their entries; nothing is allocated."""
    with zipfile.ZipFile(path) as archive:
        held = sum(entry.file_size for entry in archive.infolist())
        if held > _MOST_BYTES:
            raise BundleError(
                f"{path}: expected arrays of at most {_MOST_BYTES >> 20} MiB, got {held >> 20} MiB; rebuild the bundle."
            )
        for entry in archive.infolist():
            with archive.open(entry) as file:
                np.lib.format.read_magic(file)
                shape, _, kind = np.lib.format.read_array_header_1_0(file)
                if math.prod(shape) * kind.itemsize != entry.file_size - file.tell():
                    raise ValueError(f"{entry.filename}: a header of another size than its content")


def check_target(path: Path, *, force: bool) -> None:
    """Raise `ConfigError` or `BundleError` where no bundle may be written: `force` replaces our own files only."""
    check_absent(path, force=force)
    if not path.exists():
        return
    if not is_bundle(path) or not (path / ONNX_FILE).is_file():  # its record may be damaged
        raise BundleError(f"{path}: exists and is not a bundle; force=True replaces bundles only. Choose another name.")
    foreign = [file.name for file in path.iterdir() if file.name not in _OWN or file.is_symlink() or not file.is_file()]
    if foreign:
        raise BundleError(
            f"{path}: expected the files of a bundle alone, got {', '.join(map(repr, sorted(foreign)[:4]))} as well; "
            "force=True removes nothing that this tool did not write. Move them, or choose another name."
        )


def write_bundle(path: Path, files: Mapping[str, bytes], record: BundleRecord, *, force: bool) -> Bundle:
    """Write a bundle atomically.

    Args:
        path: Target folder ``NAME.nrd``.
        files: Content by file name; ``bundle.json`` is made here.
        record: What ``bundle.json`` records; its hashes of the files are made here.
        force: Replace an existing bundle.

    Raises:
        ConfigError: `path` exists and `force` is off.
        BundleError: The files cannot be written, e.g. the disk is full; nothing is left behind.
    """
    check_target(path, force=force)
    record = replace(record, files={name: sha256_bytes(data) for name, data in sorted(files.items())})
    try:
        with atomic_folder(path, force=force) as folder:
            for name, data in files.items():
                (folder / name).write_bytes(data)
            (folder / RECORD_FILE).write_bytes(write_record(record))
            check_target(path, force=force)  # another process may have written there meanwhile
    except OSError as exc:
        raise BundleError(
            f"{path}: cannot write the bundle ({exc}); free some space or choose another folder."
        ) from exc
    return Bundle(path=path, record=record)


def read_bundle(path: str | Path | Bundle, *, verify_key: Path | None = None) -> Bundle:
    """Open a bundle and check every hash.

    Args:
        path: The folder; a bundle that was opened is opened again only where a key is given.
        verify_key: File with the public key that must have signed it, which is verified before anything else is read;
            None takes signed and unsigned bundles alike.

    Raises:
        BundleError: It is no bundle, its record is of another schema, or a file was changed, added or removed; the
            message names the file. Or it is not signed by that key.
        ConfigError: `verify_key` holds no public key.
    """
    if isinstance(path, Bundle):
        if verify_key is None:
            return path
        path = path.path
    path = Path(path)
    data = _record_bytes(path)
    if verify_key is not None:
        origin: Origin | None = Origin(fingerprint=verify(path, data, verify_key), verified=True)
    else:
        claimed = read_signature(path)
        origin = None if claimed is None else Origin(fingerprint=claimed.fingerprint, verified=False)
    return Bundle(path=path, record=_checked(path, data), origin=origin)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A bundle that was signed, and the SHA-256 of the public key in hexadecimal."""

    path: Path
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        return {"path": str(self.path), "fingerprint": self.fingerprint}


def sign(bundle: str | Path, key: str | Path, *, force: bool = False) -> Signed:
    """Sign a bundle: write ``bundle.sig``, which tells whoever has the public key that it comes from you as it is.

    Args:
        bundle: A ``NAME.nrd`` folder.
        key: File with an Ed25519 private key in PEM, such as ``openssl genpkey -algorithm ed25519`` makes.
        force: Replace a signature.

    Raises:
        BundleError: The bundle is damaged, or an entry of it is a symbolic link.
        ConfigError: `key` holds no such key; or the bundle is signed already and `force` is off.
        MissingDependencyError: The package cryptography is not installed.
    """
    path = as_path("bundle", bundle)
    data = _record_bytes(path)
    _checked(path, data)
    check_no_links(path)
    target = path / SIGNATURE_FILE
    check_absent(target, force=force)
    made = signed(data, as_path("key", key))
    with atomic_file(target, beside=path) as temporary:  # a temporary in the bundle would be an unlisted file
        temporary.write_bytes(made.to_bytes())
    return Signed(path=path, fingerprint=made.fingerprint)


def _record_bytes(path: Path) -> bytes:
    file = path / RECORD_FILE
    if not file.is_file():
        raise BundleError(f"{path}: expected a bundle folder with {RECORD_FILE}, found none; check the path.")
    with file.open("rb") as opened:
        return opened.read(MOST_BYTES + 1)


def _checked(path: Path, data: bytes) -> BundleRecord:
    """Return the record of a bundle whose files it describes."""
    try:
        record = read_record(data)
    except ValueError as exc:
        raise BundleError(f"{path / RECORD_FILE}: {exc}.") from exc
    _check_files(path, record.files, record.command)
    return record


def check_no_key(path: Path, verify_key: Path | None) -> None:
    """Raise `ConfigError` where what must be signed is no bundle: nothing else can be."""
    if verify_key is not None:
        raise ConfigError(
            f"verify_key={verify_key}: expected a bundle, which can be signed, got {path}; leave it out, or build one."
        )


def is_bundle(path: Path) -> bool:
    """Whether `path` looks like a bundle; nothing is checked."""
    return (path / RECORD_FILE).is_file()


def _check_files(path: Path, expected: Mapping[str, str], command: str) -> None:
    """Raise `BundleError` unless the folder holds these files with these hashes and nothing else."""
    if absent := {ONNX_FILE, REFERENCE_FILE} - expected.keys():
        raise BundleError(
            f"{path / RECORD_FILE}: expected hashes of {' and '.join(sorted(absent))}, got none; rebuild it."
        )
    present = {entry.name for entry in path.iterdir()} - {RECORD_FILE, SIGNATURE_FILE}
    if present != expected.keys():
        raise BundleError(
            f"{path}: expected the files {sorted(expected)}, got {sorted(present)}; restore or rebuild it."
        )
    for name, want in expected.items():
        got = sha256_file(path / name) if (path / name).is_file() else "no file"
        if got != want:
            raise BundleError(
                f"{path / name}: expected SHA-256 {want[:12]}…, got {got[:12]}…; the file was changed after the "
                f"bundle was made. Restore it, or rebuild with: {command}"
            )
