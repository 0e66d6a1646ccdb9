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
_RATE_S = 2.0
"""Seconds over which the rate of a body is measured, at the least."""


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
        chunk_s: Seconds between two pieces of the body, and to wait for a place to send it.
        body_s: Seconds for the whole body.
        receiving: Bodies that are received at a time.
        client_receiving: Bodies that are received from one address at a time.
        least_rate: Bytes per second that a body must come at to keep its place where others wait for one.
        waiting: Whole uploads at a time, the one whose turn it is included.
    """

    mib: int = 64
    image_pixels: int = 40_000_000
    clip_pixels: int = 4096 * 2304
    clip_frames: int = 1800
    clip_s: float = 60.0
    processing_s: float = 180.0
    chunk_s: float = 10.0
    body_s: float = 60.0
    receiving: int = 8
    client_receiving: int = 4
    least_rate: int = 32 << 10
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


class Arrival:
    """A body that is being received, and how fast it comes.

    Args:
        client: Address that it comes from.

    Attributes:
        client: As given.
        expelled: Whether another one needs its place.
    """

    def __init__(self, client: str) -> None:
        self.client, self.expelled = client, False
        self._size, now = 0, time.monotonic()
        self._older = self._newer = (now, 0)
        self._measured_from = now + _RATE_S

    def grow(self, size: int) -> None:
        """Count bytes that came."""
        self._size += size

    def rate(self) -> float:
        """Return the bytes per second of the last seconds; infinite in the first ones, in which nothing can be told."""
        now = time.monotonic()
        if now < self._measured_from:
            return float("inf")
        if now - self._newer[0] >= _RATE_S:
            self._older, self._newer = self._newer, (now, self._size)
        since, size = self._older
        return (self._size - size) / (now - since)


class Uploads:
    """Places for bodies that come, and the queue of those that are whole: one is worked on at a time, a few wait.

    Args:
        limits: What each may cost.
        closing: Whether the server shuts down, so that nothing is waited for.

    Attributes:
        limits: As given.
        current: The upload at work, or None.
    """

    def __init__(self, limits: Limits, closing: Callable[[], bool] = lambda: False) -> None:
        self.limits, self._closing = limits, closing
        self.current: Job | None = None
        self._turn = asyncio.Lock()
        self._places = asyncio.Semaphore(limits.waiting)
        self._arrivals: list[Arrival] = []

    async def receive(self, request: Request) -> bytes:
        """Read the body of an upload.

        Raises:
            Refusal: The queue is full, no place gets free in time, or the body is too large or comes too slowly.
        """
        limits = self.limits
        self._check_queue()
        arrival = await self._arrive(request.client.host if request.client else "")
        try:
            return await read_body(request, limits.mib << 20, closing=self._closing, limits=limits, arrival=arrival)
        finally:
            self._arrivals.remove(arrival)

    async def _arrive(self, client: str) -> Arrival:
        """Take a place to receive a body; where none is free, a body that comes too slowly loses its own."""
        end = time.monotonic() + self.limits.chunk_s
        while rivals := self._rivals(client):
            self._check_open()
            if time.monotonic() > end:
                raise _busy(len(rivals))
            slowest = min(rivals, key=Arrival.rate)
            slowest.expelled = slowest.expelled or slowest.rate() < self.limits.least_rate
            await asyncio.sleep(_POLL_S)
        self._arrivals.append(arrival := Arrival(client))
        return arrival

    def _rivals(self, client: str) -> list[Arrival]:
        """Return those of whom one must go before a client may send: its own or everybody's; none where it may."""
        own = [arrival for arrival in self._arrivals if arrival.client == client]
        if len(own) >= self.limits.client_receiving:
            return own
        return self._arrivals if len(self._arrivals) >= self.limits.receiving else []

    def _check_open(self) -> None:
        if self._closing():
            raise Refusal(503, "Closing", "upload: expected a server that goes on, got one that ends; start it anew.")

    def _check_queue(self) -> None:
        if self._places.locked():
            raise _busy(self.limits.waiting)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Take a place in the queue of whole uploads.

        Raises:
            Refusal: There is none.
        """
        self._check_queue()
        async with self._places:
            yield

    async def work(self, request: Request, job: Job, make: Callable[[Job], Result]) -> Result:
        """Wait for the turn of a job and run it on a thread; it is given up where its client leaves."""
        async with self._turn:
            self._check_open()
            self.current = job
            job.deadline = time.monotonic() + self.limits.processing_s
            work = asyncio.ensure_future(anyio.to_thread.run_sync(make, job, abandon_on_cancel=True))
            try:
                while not (await asyncio.wait({work}, timeout=_POLL_S))[0]:
                    self._check_open()
                    if await request.is_disconnected():
                        job.left.set()
                return await work
            finally:
                job.left.set()
                work.cancel()
                self.current = None


async def read_body(
    request: Request,
    most: int,
    *,
    closing: Callable[[], bool],
    limits: Limits = Limits(),
    arrival: Arrival | None = None,
) -> bytes:
    """Read a request's body, counting while it streams in.

    Args:
        request: Its body has not been read.
        most: Bytes.
        closing: Whether the server shuts down.
        limits: How long it may take.
        arrival: Is told of every piece, and may lose its place meanwhile.

    Raises:
        Refusal: It is too large, stops coming or comes too slowly, or the client leaves.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 15 or int(announced) > most):
        raise _too_large(most)
    body, start, last = bytearray(), time.monotonic(), time.monotonic()
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), _POLL_S)
        except asyncio.TimeoutError:
            message = {}
        now = time.monotonic()
        if message.get("type") == "http.disconnect" or closing():
            raise Refusal(499, "ClientLeft", "upload: the client has gone, or the server ends; send it again.")
        if piece := message.get("body"):
            body += piece
            last = now
        if len(body) > most:
            raise _too_large(most)
        if message and not message.get("more_body"):
            return bytes(body)
        if arrival is not None:
            arrival.grow(len(piece or b""))
        if now - last > limits.chunk_s or now - start > limits.body_s or (arrival is not None and arrival.expelled):
            raise _stalled(len(body), limits)


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


def _busy(most: int) -> Refusal:
    message = f"upload: expected at most {most} at a time, got one more; try again in a moment."
    return Refusal(429, "Busy", message, {"Retry-After": "5"})


def _stalled(got: int, limits: Limits) -> Refusal:
    message = (
        f"upload: expected more of it within {limits.chunk_s:.0f} s, all within {limits.body_s:.0f} s, and "
        f"{limits.least_rate >> 10} KiB/s where others wait, got {got} bytes; send it again."
    )
    return Refusal(408, "Stalled", message)


def _too_large(most: int) -> Refusal:
    size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most} bytes"
    return Refusal(
        413, "TooLarge", f"body: expected at most {size}, got more; send a smaller one or raise max_upload_mb."
    )
