"""From what was typed after ``-o`` to a sink."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nrd_trt.errors import ConfigError
from nrd_trt.specs import ModelInfo
from nrd_trt.video.sinks import mp4
from nrd_trt.video.sinks.base import Sink
from nrd_trt.video.sinks.folder import FolderSink
from nrd_trt.video.sinks.null import NullSink
from nrd_trt.video.sinks.window import WindowSink

FORMS = "NAME.mp4, a folder, masks:DIR, overlays:DIR, window, page, page:PORT or null"
_FOLDER_KINDS = ("masks", "overlays")


def open_sink(text: str, info: ModelInfo, *, overlay: bool, force: bool, report: Callable[[str], None]) -> Sink:
    """Make the sink that a text names.

    Args:
        text: One of `FORMS` but the page, which is more than a sink. A plain folder gets masks.
        info: Palette of the masks.
        overlay: A plain folder gets the pictures too.
        force: Replace existing output.
        report: Takes lines for people while the run goes on.

    Raises:
        ConfigError: The text has no known form, or its output exists.
        MissingDependencyError: Something that it needs is not installed.
    """
    path, kind = target_of(text), text.partition(":")[0]
    if text == "null":
        return NullSink()
    if text == "window":
        return WindowSink()
    if path is None:
        raise ConfigError(f"-o {text!r}: expected {FORMS}.")
    if path != Path(text):
        return FolderSink(path, info, masks=kind == "masks", pictures=kind == "overlays", force=force)
    if path.suffix.lower() in mp4.SUFFIXES:
        return mp4.Mp4Sink(path, force=force, report=report)
    if path.suffix and not path.is_dir():
        raise ConfigError(f"-o {text}: expected {FORMS}; got a file of another kind.")
    return FolderSink(path, info, masks=True, pictures=overlay, force=force)


def target_of(text: str) -> Path | None:
    """Return the file or folder that a sink's text names, or None where it writes none."""
    kind, _, rest = text.partition(":")
    if text in ("", "null", "window") or kind == "page":
        return None
    return Path(rest if kind in _FOLDER_KINDS and rest else text)
