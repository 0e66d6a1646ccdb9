"""GStreamer pipelines, run by gst-launch-1.0 in a process of their own; OpenCV runs them where it cannot.

The process writes raw pictures as Matroska into a pipe: with times, and for every version of Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nrd_trt.data.videos import BrokenOffError, Picture, VideoReader
from nrd_trt.errors import ConfigError, MissingDependencyError, VideoError
from nrd_trt.optional import require
from nrd_trt.video.sources.camera import CaptureReader
from nrd_trt.video.sources.network import redacted

_TAIL = "videoconvert ! video/x-raw,format=RGB ! matroskamux streamable=true ! fdsink fd={}"
_OPENCV_TAIL = "videoconvert ! video/x-raw,format=BGR ! appsink"
_LOOK_S = 0.2  # how often a waiting read looks whether it shall end
_START_S, _SILENCE_S = 20.0, 5.0  # cameras take seconds to start
_QUIT_S = 2.0
_PIPE_BYTES = 1 << 20
_LAST_LINES = 6
_PROBE = {"fpsprobesize": "0"}  # the rate stands in the header
_NOISE = r"Additional debug|ERROR: pipeline doesn't|Failed to (set pipeline|start)|Setting |\.\./|.*state change failed"


def open_gstreamer(pipeline: str, *, live: bool | None, stopped: threading.Event) -> PipelineReader | CaptureReader:
    """Start a pipeline.

    Args:
        pipeline: As for gst-launch-1.0, up to raw video of any format; a sink at its end is replaced.
        live: When None, unless it reads files (see `is_finite`).
        stopped: Ends a read that waits.

    Raises:
        ConfigError: Its quotes do not match.
        VideoError: It does not start; the message ends with what GStreamer says.
        MissingDependencyError: There is neither gst-launch-1.0 nor an OpenCV with GStreamer.
    """
    tokens = pipeline_tokens(pipeline)
    lives = not is_finite(tokens) if live is None else live
    name = redacted(pipeline)
    if program := shutil.which("gst-launch-1.0"):
        return PipelineReader(program, tokens, name=name, live=lives, stopped=stopped)
    return _open_with_opencv(tokens, name=name, live=lives)


def pipeline_tokens(pipeline: str) -> list[str]:
    """Split a pipeline as a shell does, and take away the sink at its end.

    Raises:
        ConfigError: Its quotes do not match, or nothing is left.
    """
    try:
        tokens = shlex.split(pipeline)
    except ValueError as exc:
        raise ConfigError(f"{redacted(pipeline)}: expected quotes in pairs, got one alone; close it.") from exc
    marks = [index for index, token in enumerate(tokens) if token == "!"]
    last = marks[-1] + 1 if marks else 0
    if last == len(tokens) or tokens[last].endswith("sink"):
        tokens = tokens[: max(0, last - 1)]
    if not tokens:
        raise ConfigError(f"{redacted(pipeline)!r}: expected a GStreamer pipeline, got no element that makes pictures.")
    return tokens


def is_finite(tokens: list[str]) -> bool:
    """Tell whether the first element of a pipeline ends by itself, and waits for who reads."""
    end = tokens.index("!") if "!" in tokens else len(tokens)
    element, options = tokens[0], tokens[1:end]
    if element == "videotestsrc":
        return any(option.startswith("num-buffers=") for option in options)
    local = any(option.startswith("uri=file:") for option in options)
    return element in {"filesrc", "multifilesrc"} or (element.startswith("uridecodebin") and local)


class PipelineReader:
    """The pictures of a running pipeline; see `Reader`. Closing ends its process.

    Args:
        program: gst-launch-1.0.
        tokens: See `pipeline_tokens`.
        name: Name of the pipeline in messages.
        live: See `VideoFacts`.
        stopped: Ends a read that waits.

    Raises:
        VideoError: It gives no pictures; the message ends with what GStreamer says.
    """

    def __init__(self, program: str, tokens: list[str], *, name: str, live: bool, stopped: threading.Event) -> None:
        self._name, self._stopped = name, stopped
        self._process, self._pipe = _start([program, "-q", *tokens, "!"], stopped)
        self._said = _LastLines(self._process)
        try:
            self._video = VideoReader(self._pipe, name=name, live=live, container="matroska", options=_PROBE)
        except VideoError as exc:
            failed = self._failed()
            self._end_process()
            why = self._said.text() if failed else "nothing; try it with gst-launch-1.0"
            raise VideoError(f"{name}: expected pictures from the pipeline, GStreamer says: {why}") from exc
        except BaseException:
            self._end_process()
            raise
        self.facts = replace(self._video.facts, decoded_on="gstreamer")

    def __iter__(self) -> Iterator[Picture]:
        count, broken = 0, None
        try:
            for picture in self._video:
                yield picture
                count += 1
        except BrokenOffError as exc:
            broken = exc
        if self._stopped.is_set():
            return
        if self._failed():
            raise BrokenOffError(self._name, count, f"GStreamer says: {self._said.text()}") from broken
        if broken is not None:
            raise broken

    def _failed(self) -> bool:
        """Whether the process has ended with an error, or is about to."""
        try:
            return self._process.wait(_QUIT_S / 4) != 0
        except subprocess.TimeoutExpired:
            return False

    def _end_process(self) -> None:
        """Ask the process to end, so that it frees its camera, and kill it where it does not."""
        self._pipe.close()
        for ending in (signal.SIGINT, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, ending)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_QUIT_S)
        self._said.close()

    def close(self) -> None:
        """End the process; may be called again."""
        self._video.close()
        self._end_process()


def _start(command: list[str], stopped: threading.Event) -> tuple[subprocess.Popen[bytes], _Pipe]:
    """Start a pipeline that writes to a pipe. Its own session keeps the terminal's Ctrl-C from it."""
    reading, writing = os.pipe()
    pipe = _Pipe(reading, stopped)
    with os.fdopen(writing, "wb"):
        with contextlib.suppress(OSError):  # above what this user may have in pipes
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        process = subprocess.Popen(
            [*command, *_TAIL.format(writing).split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            start_new_session=True,
        )
    return process, pipe


class _Pipe(io.FileIO):
    """The reading end of a pipe as a file whose `read` ends when stopped, and after a silence."""

    def __init__(self, descriptor: int, stopped: threading.Event) -> None:
        super().__init__(descriptor)
        self._stopped, self._patience_s = stopped, _START_S

    def read(self, size: int | None = -1) -> bytes:
        until = time.monotonic() + self._patience_s
        while not select.select([self], [], [], _LOOK_S)[0]:
            if self._stopped.is_set():
                return b""
            if time.monotonic() > until:
                raise TimeoutError
        self._patience_s = _SILENCE_S
        return super().read(size)


class _LastLines:
    """What a process has said last; a thread reads it, so that it can say as much as it likes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._stream: Any = process.stderr
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._thread = threading.Thread(target=self._read, name="gst-launch messages", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:
                text = redacted(line.decode(errors="replace").strip())
                text = re.sub(r"^ERROR: from element \S*:(\S+): ", r"\1: ", text)
                if text and text not in self._lines and not re.match(_NOISE, text):
                    self._lines.append(text)

    def text(self) -> str:
        self._thread.join(_QUIT_S)
        return "; ".join(self._lines) or "nothing"

    def close(self) -> None:
        """Only once the process has ended."""
        self._thread.join(_QUIT_S)


def _open_with_opencv(tokens: list[str], *, name: str, live: bool) -> CaptureReader:
    try:
        cv2 = require("cv2", extra="camera", purpose="GStreamer")
        able = re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is not None
    except MissingDependencyError:
        able = False
    if not able:
        raise MissingDependencyError(
            f"{name}: expected gst-launch-1.0 or an OpenCV with GStreamer, found neither; "
            "`apt-get install gstreamer1.0-tools` brings the first."
        )
    escaped = " ".join(re.sub(r"([\s\"])", r"\\\1", token) for token in tokens)
    capture = cv2.VideoCapture(f"{escaped} ! {_OPENCV_TAIL}", cv2.CAP_GSTREAMER)
    reader = CaptureReader(capture, name=name, live=live, ends=not live)
    reader.facts = replace(reader.facts, decoded_on="gstreamer")
    return reader
