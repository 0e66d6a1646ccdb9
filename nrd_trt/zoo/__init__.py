"""Small trained checkpoints that ship with the package, each with a card. Imports errors only."""

from __future__ import annotations

from pathlib import Path

from nrd_trt.errors import ConfigError


def checkpoint_path(name: str) -> Path:
    """Return the file of a zoo checkpoint such as ``"nrd_mobilenetv2_camvid"``.

    Raises:
        ConfigError: There is none of that name; the message lists those there are.
    """
    folder = Path(__file__).parent
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors")))
        raise ConfigError(f"zoo checkpoint {name!r}: expected one of {known}.")
    return path
