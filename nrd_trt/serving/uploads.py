"""Uploads: how large they may be, what they are, and whose turn it is. Bodies are kept in memory, never in files."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import anyio.to_thread
import numpy as np
from starlette.requests import Request

from nrd_trt.data.images import read_image
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.serving.problems import Refusal

Kind = Literal["image", "mov", "matroska"]
"""An image, or a clip by the name of FFmpeg's demuxer."""
Result = TypeVar("Result")

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_SCANS = 100
"""Of a progressive JPEG: each costs a pass over all pixels and may be a few bytes long. Usual ones have about ten."""
_STILL_IN_MP4 = (b"heic", b"heix", b"mif1", b"msf1", b"avif")
_POLL_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one upload may cost.

    Attributes:
        mib: Size of the body in MiB.
        image_pixels: Pixels of an image, by its header.
        clip_pixels: Pixels of a frame of a clip.
        clip_frames: Frames of a clip.
        clip_s: Length of a clip in seconds.
        processing_s: Seconds from its turn to the answer.
        chunk_s: Seconds between two pieces of the body.
        waiting: Uploads at a time, the one whose turn it is included.
    """

    mib: int = 64
    image_pixels: int = 40_000_000
    clip_pixels: int = 4096 * 2304
    clip_frames: int = 1800
    clip_s: float = 60.0
    processing_s: float = 180.0
    chunk_s: float = 10.0
    waiting: int = 4


@dataclass(kw_only=True)
class UploadProgress:
    """How far an upload is.

    Attributes:
        name: Name that its client gave it, to find its progress.
        done: Frames that are finished.
        total: Frames in all, where the file tells.
    """

    name: str
    done: int
    total: int | None


@dataclass(kw_only=True)
class Job:
    """One upload at work.

    Attributes:
        progress: How far it is.
        deadline: Latest end by `time.monotonic`, once it is its turn.
        left: Set when its client has gone.
    """

    progress: UploadProgress
    deadline: float = float("inf")
    left: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise `Refusal` where the time is over, or nobody waits for the result any more."""
        if self.left.is_set():
            raise Refusal(499, "ClientLeft", "upload: the client has gone; send it again.")
        if time.monotonic() > self.deadline:
            done = self.progress.done
            message = f"upload: expected to be done in time, got to frame {done}; send a shorter or smaller one."
            raise Refusal(504, "TooSlow", message)


class Uploads:
    """The queue: one upload is worked on at a time, a few wait, more are turned away.

    Args:
        limits: What each may cost.

    Attributes:
        limits: As given.
        current: The upload at work, or None.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.current: Job | None = None
        self._turn = asyncio.Lock()
        self._places = asyncio.Semaphore(limits.waiting)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Take a place in the queue.

        Raises:
            Refusal: There is none.
        """
        if self._places.locked():
            message = f"upload: expected at most {self.limits.waiting} at a time, got one more; try again in a moment."
            raise Refusal(429, "Busy", message, {"Retry-After": "5"})
        async with self._places:
            yield

    async def work(self, request: Request, job: Job, make: Callable[[Job], Result]) -> Result:
        """Wait for the turn of a job and run it on a thread; it is given up where its client leaves."""
        async with self._turn:
            self.current = job
            job.deadline = time.monotonic() + self.limits.processing_s
            work = asyncio.ensure_future(anyio.to_thread.run_sync(make, job, abandon_on_cancel=True))
            try:
                while not (await asyncio.wait({work}, timeout=_POLL_S))[0]:
                    if await request.is_disconnected():
                        job.left.set()
                return await work
            finally:
                job.left.set()
                work.cancel()
                self.current = None


async def read_body(request: Request, most: int, chunk_s: float = 10.0, whole_s: float = 60.0) -> bytes:
    """Read a request's body, counting while it streams in.

    Args:
        request: Its body has not been read.
        most: Bytes.
        chunk_s: Seconds to wait for each piece.
        whole_s: Seconds for all of it.

    Raises:
        Refusal: It is too large, or stops coming.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 15 or int(announced) > most):
        raise _too_large(most)
    body, pieces = bytearray(), request.stream()
    end = time.monotonic() + whole_s
    while True:
        try:
            piece = await asyncio.wait_for(anext(pieces, None), min(chunk_s, end - time.monotonic()))
        except asyncio.TimeoutError:
            message = (
                f"upload: expected more of it within {chunk_s:.0f} s and all within {whole_s:.0f} s, got "
                f"{len(body)} bytes; send it again."
            )
            raise Refusal(408, "Stalled", message) from None
        if piece is None:
            return bytes(body)
        body += piece
        if len(body) > most:
            raise _too_large(most)


def kind_of(body: bytes) -> Kind:
    """Tell what a file is by its first bytes; names and declared types are not asked.

    Raises:
        Refusal: It is none of the accepted ones.
    """
    if body.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")) or (body[:4], body[8:12]) == (b"RIFF", b"WEBP"):
        return "image"
    if body.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    got = "an empty one" if not body else "another one by its first bytes"
    if body[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        if body[8:12] not in _STILL_IN_MP4:
            return "mov"
        got = "a HEIC or AVIF photo"
    wanted = "a JPEG, PNG, WebP or BMP image, or an MP4, MOV, MKV or WebM clip"
    raise Refusal(415, "UnknownFormat", f"upload: expected {wanted}, got {got}; convert it first.")


def read_upload(body: bytes, most_pixels: int) -> np.ndarray:
    """Read an uploaded image as `read_image` does, within limits.

    Args:
        body: JPEG, PNG, WebP or BMP.
        most_pixels: Larger images are refused by their headers.

    Raises:
        Refusal: The image is damaged, of another format, or would take too much memory or time to decode.
    """
    if body.startswith(b"\xff\xd8") and body.count(b"\xff\xda") > _SCANS:
        message = f"image: expected at most {_SCANS} scans, got a JPEG that takes hours to decode; save it anew."
        raise Refusal(422, "UnreadableImage", message)
    try:
        return read_image(body, formats=_FORMATS, most_pixels=most_pixels)
    except ShapeError as exc:
        raise Refusal(422, "TooManyPixels", str(exc)) from exc
    except ConfigError as exc:
        raise Refusal(422, "UnreadableImage", str(exc)) from exc


def _too_large(most: int) -> Refusal:
    size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most} bytes"
    return Refusal(
        413, "TooLarge", f"body: expected at most {size}, got more; send a smaller one or raise max_upload_mb."
    )
