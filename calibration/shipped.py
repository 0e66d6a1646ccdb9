"""Ranges that ship for the networks of the zoo, so that int8 and fp8 need no images to begin with."""

from __future__ import annotations

from pathlib import Path

from nrd_trt.calibration.cache import load_ranges
from nrd_trt.files import sha256_file

FOLDER = Path(__file__).parent / "zoo"


def shipped_ranges(checkpoint: Path) -> Path | None:
    """Return the file of ranges that ships for a checkpoint, found by its SHA-256; None where there is none."""
    if checkpoint.suffix != ".safetensors" or not checkpoint.is_file():
        return None
    key = sha256_file(checkpoint)
    return next((path for path in sorted(FOLDER.glob("*.json")) if load_ranges(path).keys.checkpoint == key), None)
