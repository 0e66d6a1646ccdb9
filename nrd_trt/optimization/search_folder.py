"""The folder of a search: the record, the picture, the winner, and what a search that is stopped goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from nrd_trt.engine.bundle import RECORD_FILE, Bundle, check_target, write_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.files import PNG, atomic_folder, check_absent, check_file, check_folder

_RECORD, _PICTURE, _BEST, _CANDIDATES, _STATES = "optimize.json", "optimize.png", "best.nrd", "candidates", "states"


class SearchFolder:
    """Where a search writes.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.record, self.picture, self.best = path / _RECORD, path / _PICTURE, path / _BEST
        self.candidates, self.states = path / _CANDIDATES, path / _STATES
        self._path = path

    def check(self, *, resume: bool, force: bool) -> None:
        """Raise `ConfigError` or `BundleError` where a search may not write: over another one, or over other files."""
        check_folder(self._path)
        if not self._path.parent.is_dir():
            check_absent(self._path, force=True)
        if not self._path.exists() or not any(self._path.iterdir()):
            return
        own = {_RECORD, _PICTURE, _BEST, _CANDIDATES, _STATES}
        foreign = [path.name for path in self._path.iterdir() if path.name not in own and path.name[0] != "."]
        foreign += [path.name for path in self._within(self.states) if path.suffix != ".json"]
        if foreign:
            raise ConfigError(
                f"{self._path}: expected the folder of a search or none, got {', '.join(sorted(foreign)[:4])} in it; "
                "choose another name."
            )
        check_file(self.record, force=True, marks=[b'"candidates"'])
        check_file(self.picture, force=True, marks=[PNG])
        for bundle in (self.best, *(path for path in self._within(self.candidates) if path.suffix != ".safetensors")):
            check_target(bundle, force=True)
        if not (resume or force):
            raise ConfigError(
                f"{self._path}: already exists; give resume=True to go on with that search, force=True to replace "
                "it, or choose another name."
            )

    def begin(self, *, resume: bool) -> None:
        """Make the folder; remove what an earlier search left, unless this one goes on with it."""
        if not resume:
            for path in (self.record, self.picture):
                path.unlink(missing_ok=True)
            for path in (self.best, self.candidates, self.states):  # a state speaks for its bundles: it goes last
                shutil.rmtree(path, ignore_errors=True)
        for path in (self.candidates, self.states):
            path.mkdir(parents=True, exist_ok=True)

    def keep(self, winner: Bundle | None) -> Bundle | None:
        """Copy the winner's bundle to its place and return it there, or leave none there."""
        if winner is None:
            shutil.rmtree(self.best, ignore_errors=True)
            return None
        files = {path.name: path.read_bytes() for path in winner.path.iterdir() if path.name != RECORD_FILE}
        return write_bundle(self.best, files, winner.record, force=True)

    @staticmethod
    def _within(folder: Path) -> Iterable[Path]:
        """Return what lies in a folder, but for what a killed process left, which the next writer removes."""
        return [path for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []


def check_export(path: Path, *, force: bool) -> None:
    """Raise `NrdTrtError` where no candidates may be exported: `force` replaces a folder of bundles only."""
    check_absent(path, force=force)
    check_folder(path)
    for entry in path.iterdir() if path.is_dir() else ():
        check_target(entry, force=True)


def export_bundles(bundles: Iterable[Bundle], path: Path, *, force: bool) -> None:
    """Copy bundles into a new folder, all or none of them."""
    with atomic_folder(path, force=force) as folder:
        for bundle in bundles:
            shutil.copytree(bundle.path, folder / bundle.path.name)
