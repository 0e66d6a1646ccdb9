"""Masks and pictures as PNG files of a folder."""

from __future__ import annotations

from pathlib import Path

from nrd_trt.data.overlay import write_mask, write_rgb
from nrd_trt.errors import ConfigError
from nrd_trt.specs import ModelInfo
from nrd_trt.video.frames import SegmentedFrame, StreamInfo
from nrd_trt.video.sinks.base import Ending


class FolderSink:
    """``STEM.png`` masks and ``STEM_overlay.png`` pictures, the stem being the frame's name.

    Args:
        path: The folder; made where it does not exist.
        info: Its palette colours the masks.
        masks: Write masks, as index PNGs at the frame's size.
        pictures: Write pictures; alone, they are called ``STEM.png``.
        force: Write into a folder that holds files.

    Raises:
        ConfigError: The folder holds files, or cannot be one.
    """

    def __init__(self, path: Path, info: ModelInfo, *, masks: bool, pictures: bool, force: bool) -> None:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: expected a folder, found a file; choose another name.")
        if not force and path.is_dir() and any(path.iterdir()):
            raise ConfigError(f"{path}: holds files already; give --force to write into it or choose another folder.")
        self._path, self._palette = path, info.palette
        self._masks, self.shows_picture = masks, pictures

    def open(self, info: StreamInfo) -> None:
        """Make the folder."""
        self._path.mkdir(parents=True, exist_ok=True)

    def write(self, frame: SegmentedFrame) -> None:
        """Write the files of a frame; each appears whole or not at all."""
        stem = frame.frame.name
        if self._masks:
            write_mask(self._path / f"{stem}.png", frame.mask, self._palette)
        if frame.picture is not None and self.shows_picture:
            write_rgb(self._path / f"{stem}{'_overlay' if self._masks else ''}.png", frame.picture)

    def close(self, ending: Ending) -> None:
        """Nothing is open."""
