"""Pictures as an MP4 file.

It is written in fragments under ``NAME.partial.mp4``, so that even after a power cut it can be played; at the end it
becomes a plain file and gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nrd_trt.errors import ConfigError, VideoError
from nrd_trt.files import check_absent
from nrd_trt.video.frames import SegmentedFrame, StreamInfo
from nrd_trt.video.sinks.base import Ending
from nrd_trt.video.sinks.encoder import Mp4Encoder, require_encoder

SUFFIXES = (".mp4", ".m4v", ".mov")


class Mp4Sink:
    """One video file.

    Args:
        path: Ends in one of `SUFFIXES`.
        force: Replace an existing file, and what a failed run left.
        report: Takes a line for people.

    Raises:
        ConfigError: The file exists, or its folder does not.
        MissingDependencyError: There is no PyAV, or it has no H.264 encoder.
    """

    shows_picture = True

    def __init__(self, path: Path, *, force: bool, report: Callable[[str], None]) -> None:
        require_encoder()
        self._path, self._partial, self._report = path, partial_of(path), report
        for target in (path, self._partial):
            if target.is_dir():
                raise ConfigError(f"{target}: expected a file, found a folder; choose another name.")
            check_absent(target, force=force)
        self._encoder: Mp4Encoder | None = None

    def open(self, info: StreamInfo) -> None:
        """Take the place; the file is begun with the first picture."""
        try:
            self._partial.open("wb").close()
        except OSError as exc:
            raise VideoError(
                f"{self._path}: cannot be written ({exc.strerror}); check its folder and the permissions."
            ) from exc
        self._encoder = Mp4Encoder(
            f"file:{self._partial}",  # the prefix keeps FFmpeg from taking "a:b" for a protocol
            time_base=info.time_base,
            rate=info.rate,
            live=info.live,
            report=lambda line: self._report(f"{self._path}: {line}"),
            options={"movflags": "hybrid_fragmented+frag_keyframe"},
        )

    def write(self, frame: SegmentedFrame) -> None:
        """Encode a picture with the frame's timestamp."""
        if self._encoder is None or frame.picture is None:
            raise VideoError(f"{self._path}: expected an open file and a drawn picture, got none; open it first.")
        self._encoder.write(frame.picture, frame.frame.pts, frame.frame.duration)

    def close(self, ending: Ending) -> str | None:
        """Finish the file; after a failure it keeps its partial name."""
        if self._encoder is None:
            return None
        self._encoder.close()
        if not self._encoder.begun:
            self._partial.unlink(missing_ok=True)
            return None
        if ending == "failed":
            return f"{self._partial}: holds the frames up to the failure."
        os.replace(self._partial, self._path)
        return None


def partial_of(path: Path) -> Path:
    """Return the name under which a file is written."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")
