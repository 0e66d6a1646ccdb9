"""What a run of `nrd-trt tune` has measured so far, in a file beside its output."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nrd_trt.errors import ConfigError
from nrd_trt.files import atomic_file


@dataclass(kw_only=True)
class TuneState:
    """Figures by layer and by rung; every addition is on disk before it is used.

    Attributes:
        path: The file.
        key: What the figures belong to.
        sensitivity: Share of the pixels that change, by layer.
        rungs: Records by name.
    """

    path: Path
    key: str
    sensitivity: dict[str, float] = field(default_factory=dict)
    rungs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @staticmethod
    def path_of(output: Path) -> Path:
        """Return where the state of a run lies that writes `output`."""
        return output.with_name(output.name + ".tune-state.json")

    @classmethod
    def open(cls, output: Path, key: str, *, resume: bool) -> TuneState:
        """Start a state for `output`, or go on from the one that is there.

        Raises:
            ConfigError: The file to go on from is damaged or belongs to another network, other images or options.
        """
        path = cls.path_of(output)
        state = cls(path=path, key=key)
        if not resume or not path.exists():
            return state
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            state.sensitivity, state.rungs = dict(found["sensitivity"]), dict(found["rungs"])
            found_key = found["key"]
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(
                f"{path}: not a state of `nrd-trt tune` ({exc!r}); start again without --resume."
            ) from exc
        if found_key != key:
            raise ConfigError(
                f"{path}: expected the state of this checkpoint, these images and options, got that of others; "
                "give the same ones, or start again without --resume."
            )
        return state

    def add_sensitivity(self, layer: str, share: float) -> None:
        """Record one layer."""
        self.sensitivity[layer] = share
        self._write()

    def add_rung(self, name: str, record: dict[str, Any]) -> None:
        """Record one rung."""
        self.rungs[name] = record
        self._write()

    def remove(self) -> None:
        """Delete the file: the run is done."""
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        content = {"key": self.key, "sensitivity": self.sensitivity, "rungs": self.rungs}
        with atomic_file(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
