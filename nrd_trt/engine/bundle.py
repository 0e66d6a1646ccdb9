"""The bundle ``NAME.nrd/``: ONNX file, plan, reference masks and the facts that tie them together.

Written whole or not at all. ``bundle.json`` carries the hash of every file and of itself, so a changed byte anywhere is
found before anything is run.
"""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nrd_trt.errors import BundleError, NrdTrtError
from nrd_trt.files import atomic_folder, canonical_json, check_absent, sha256_bytes, sha256_file
from nrd_trt.graph.metadata import GraphFacts

FORMAT = 1
ONNX_FILE, PLAN_FILE, REFERENCE_FILE, FACTS_FILE = "model.onnx", "model.plan", "reference.npz", "bundle.json"
MAX_REFERENCES = 8


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Inputs and the masks that the reference drew for them, all at the engine's size.

    Attributes:
        images: ``(N, h, w, 3) uint8 RGB``, N at most 8.
        masks: ``(N, h, w) uint8``.
        near_ties: ``(N, h, w) bool``; all False where the reference's logits were not known.
        source: ``"torch"`` or ``"onnx"``: what drew the masks.
    """

    images: np.ndarray
    masks: np.ndarray
    near_ties: np.ndarray
    source: str

    def to_bytes(self) -> bytes:
        """Return a compressed npz; equal arrays give equal bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, images=self.images, masks=self.masks, near_ties=self.near_ties, source=np.array(self.source)
        )
        return buffer.getvalue()

    @classmethod
    def from_file(cls, path: Path) -> ReferenceSet:
        """Inverse of `to_bytes`."""
        with np.load(path) as data:
            return cls(
                images=data["images"], masks=data["masks"], near_ties=data["near_ties"], source=str(data["source"])
            )


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle whose hashes hold.

    Attributes:
        path: The folder.
        facts: Content of ``bundle.json`` without its own hash.
        graph: What the ONNX file says about itself, as recorded.
    """

    path: Path
    facts: dict[str, Any]
    graph: GraphFacts

    @property
    def onnx_path(self) -> Path:
        """The ONNX file."""
        return self.path / ONNX_FILE

    @property
    def plan_path(self) -> Path | None:
        """The plan, or None where no TensorRT builder ran."""
        return self.path / PLAN_FILE if PLAN_FILE in self.facts["files"] else None

    @property
    def failures(self) -> list[str]:
        """Gates that did not hold when the bundle was built, in words; those of the export's parity say so."""
        parity = self.facts["parity"]
        of_parity = [f"parity of the export: {failure}" for failure in (parity["failures"] if parity else ())]
        return [*self.facts["validation"]["failures"], *of_parity]

    def references(self) -> ReferenceSet:
        """Read the stored inputs and masks."""
        return ReferenceSet.from_file(self.path / REFERENCE_FILE)


def host_facts() -> dict[str, str]:
    """Return what of this host a plan depends on, as far as it is known without a GPU."""
    return {"os": platform.system().lower(), "machine": platform.machine()}


def check_target(path: Path, *, force: bool) -> None:
    """Raise `ConfigError` or `BundleError` where no bundle may be written: ``--force`` replaces bundles only."""
    check_absent(path, force=force)
    if path.exists() and not is_bundle(path):
        raise BundleError(f"{path}: exists and is not a bundle; --force replaces bundles only. Choose another name.")


def write_bundle(path: Path, files: Mapping[str, bytes], facts: Mapping[str, Any], *, force: bool) -> Bundle:
    """Write a bundle atomically.

    Args:
        path: Target folder ``NAME.nrd``.
        files: Content by file name; ``bundle.json`` is made here.
        facts: Everything else that ``bundle.json`` records, JSON values.
        force: Replace an existing bundle.

    Raises:
        ConfigError: `path` exists and `force` is off.
        BundleError: The files cannot be written, e.g. the disk is full; nothing is left behind.
    """
    check_target(path, force=force)
    record = {"format": FORMAT, **facts, "files": {name: sha256_bytes(data) for name, data in sorted(files.items())}}
    content = {**record, "sha256": sha256_bytes(canonical_json(record))}
    try:
        with atomic_folder(path) as folder:
            for name, data in files.items():
                (folder / name).write_bytes(data)
            (folder / FACTS_FILE).write_bytes(_facts_text(content))
    except OSError as exc:
        raise BundleError(
            f"{path}: cannot write the bundle ({exc}); free some space or choose another folder."
        ) from exc
    return Bundle(path=path, facts=record, graph=GraphFacts.from_dict(record["model"]))


def read_bundle(path: str | Path) -> Bundle:
    """Open a bundle and check every hash.

    Raises:
        BundleError: It is no bundle, or a file was changed, added or removed; the message names it.
    """
    path = Path(path)
    record = _read_facts(path)
    try:
        _check_files(path, record["files"], record["command"])
        return Bundle(path=path, facts=record, graph=GraphFacts.from_dict(record["model"]))
    except BundleError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, NrdTrtError) as exc:
        raise BundleError(f"{path / FACTS_FILE}: unreadable model facts ({exc!r}); rebuild the bundle.") from exc


def _check_files(path: Path, expected: Mapping[str, str], command: str) -> None:
    """Raise `BundleError` unless the folder holds these files with these hashes and nothing else."""
    present = {entry.name for entry in path.iterdir()} - {FACTS_FILE}
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


def is_bundle(path: Path) -> bool:
    """Whether `path` looks like a bundle; nothing is checked."""
    return (path / FACTS_FILE).is_file()


def _read_facts(path: Path) -> dict[str, Any]:
    """Read ``bundle.json`` and check its own hash and format."""
    file = path / FACTS_FILE
    if not file.is_file():
        raise BundleError(f"{path}: expected a bundle folder with {FACTS_FILE}, found none; check the path.")
    try:
        content = json.loads(file.read_bytes())
        claimed = content.pop("sha256")
        intact = sha256_bytes(canonical_json(content)) == claimed and (
            file.read_bytes() == _facts_text({**content, "sha256": claimed})
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BundleError(f"{file}: not readable as bundle facts ({exc!r}); restore or rebuild the bundle.") from exc
    if not intact:
        raise BundleError(f"{file}: its content does not match its own SHA-256; it was edited. Rebuild the bundle.")
    if content.get("format") != FORMAT:
        raise BundleError(f"{file}: expected format {FORMAT}, got {content.get('format')}; rebuild with this version.")
    return dict(content)


def _facts_text(content: dict[str, Any]) -> bytes:
    """Return ``bundle.json`` byte for byte, so that even a changed blank is found on reading."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
