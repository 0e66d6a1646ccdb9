"""From a text to a sink: a video file, a folder of PNG files, a window, or nothing."""

from __future__ import annotations

from pathlib import Path

from nrd_trt.data.overlay import write_mask, write_rgb
from nrd_trt.errors import ConfigError
from nrd_trt.files import INDEX_PNG, PNG, check_file, check_folder
from nrd_trt.specs import ModelInfo
from nrd_trt.video.frames import Ending, Report, SegmentedFrame, Sink, StreamInfo
from nrd_trt.video.sinks import mp4
from nrd_trt.video.sinks.window import WindowSink

FORMS = "NAME.mp4, a folder, masks:DIR, overlays:DIR, window or null"
_FOLDER_KINDS = ("masks", "overlays")


def open_sink(text: str, info: ModelInfo, *, overlay: bool, force: bool, report: Report) -> Sink:
    """Make the sink that a text names.

    Args:
        text: One of `FORMS` but ``null``, which has none. A plain folder gets masks.
        info: Its palette colours the masks.
        overlay: Whether a plain folder gets the pictures too.
        force: Replace existing output.
        report: Receives lines for the user while the run goes on.

    Raises:
        ConfigError: The text has no known form, or its output exists.
        MissingDependencyError: Something that the sink needs is not installed.
    """
    path, kind = target_of(text), text.partition(":")[0]
    if text == "window":
        return WindowSink()
    if path is None:
        raise ConfigError(f"sinks={text!r}: expected {FORMS}.")
    if path != Path(text):
        return FolderSink(path, info, masks=kind == "masks", pictures=kind == "overlays", force=force)
    if path.suffix.lower() in mp4.SUFFIXES:
        return mp4.Mp4Sink(path, force=force, report=report)
    if path.suffix and not path.is_dir():
        raise ConfigError(f"sinks={text!r}: expected {FORMS}; got a file of another kind.")
    return FolderSink(path, info, masks=True, pictures=overlay, force=force)


def target_of(text: str) -> Path | None:
    """Return the file or folder that a sink's text names, or None where it writes none."""
    kind, _, rest = text.partition(":")
    if text in ("", "null", "window"):
        return None
    return Path(rest if kind in _FOLDER_KINDS and rest else text)


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
        check_folder(path)
        if not force and path.is_dir() and any(path.iterdir()):
            raise ConfigError(
                f"{path}: holds files already; give force=True to write into it or choose another folder."
            )
        self._path, self._palette = path, info.palette
        self._masks, self.shows_picture = masks, pictures

    def open(self, info: StreamInfo) -> None:
        """Make the folder."""
        self._path.mkdir(parents=True, exist_ok=True)

    def write(self, frame: SegmentedFrame) -> None:
        """Write the files of a frame; each appears whole or not at all."""
        stem = frame.frame.name
        if self._masks:
            write_mask(self._free(f"{stem}.png", *INDEX_PNG), frame.mask, self._palette)
        if self.shows_picture:
            write_rgb(self._free(f"{stem}{'_overlay' if self._masks else ''}.png", PNG), frame.picture)

    def _free(self, name: str, *marks: bytes) -> Path:
        """Return a path of the folder that may be written; one that is there was found by `force` only."""
        check_file(path := self._path / name, force=True, marks=marks)
        return path

    def close(self, ending: Ending) -> None:
        """Do nothing: no file stays open."""
