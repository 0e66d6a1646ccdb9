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
    kind, _, rest = text.partition(":")
    if text == "null":
        return NullSink()
    if text == "window":
        return WindowSink()
    if kind in ("masks", "overlays") and rest:
        return FolderSink(Path(rest), info, masks=kind == "masks", pictures=kind == "overlays", force=force)
    path = Path(text)
    if path.suffix.lower() in mp4.SUFFIXES:
        return mp4.Mp4Sink(path, force=force, report=report)
    if path.suffix and not path.is_dir():
        raise ConfigError(f"-o {text}: expected {FORMS}; got a file of another kind.")
    return FolderSink(path, info, masks=True, pictures=overlay, force=force)
