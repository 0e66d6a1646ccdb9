"""Video files by the decoder of the GPU (NVDEC), into memory of the device that goes to the engine.

PyNvVideoCodec, imported on use; what is called is that of 2.2. The decoder writes over its pictures with its next call.
So each one is copied, on the device, to memory of its own, which is used again when nobody holds the picture any more.
"""

from __future__ import annotations

import traceback
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from nrd_trt.data.videos import BrokenOffError, RepairedTimes, VideoReader
from nrd_trt.errors import MissingDependencyError, NrdTrtError, RunnerError, VideoError
from nrd_trt.machine.cuda import load_cuda
from nrd_trt.optional import require
from nrd_trt.runtime.base import DeviceTensor
from nrd_trt.runtime.buffers import Buffer, nbytes_of
from nrd_trt.specs import Size, format_size
from nrd_trt.video.frames import DeviceImage, DevicePicture, Wanted

_BYTE = np.dtype(np.uint8)
_LARGEST_DIFFERENCE = 3.0
"""Mean difference of the first picture to that of FFmpeg, of 0-255: another matrix or range of colours is beyond it."""


def open_on_gpu(path: Path, wanted: Wanted) -> NvdecReader | VideoReader:
    """Open a video for NVDEC, or where that cannot be for the CPU, with a note that says why.

    Raises:
        VideoError: It cannot be opened, holds no video, or no frame of it can be decoded.
        MissingDependencyError: PyAV is not installed.
    """
    plain = VideoReader(path)
    try:
        if plain.peculiarity:
            raise VideoError(f"{plain.peculiarity}.")
        reader = NvdecReader(path, plain, wanted)
    except (MissingDependencyError, RunnerError, VideoError) as exc:
        plain.close()
        plain = VideoReader(path)  # its first picture may be gone
        plain.facts = replace(plain.facts, note=f"frames were decoded on the CPU, not by NVDEC: {exc}")
        return plain
    plain.close()
    return reader


class NvdecReader:
    """The pictures of a video, which lie on the GPU; see `Reader`.

    Args:
        path: A file.
        plain: The same for the CPU, not yet iterated: it tells what the file is, and what its first picture looks like.
        wanted: See `Wanted`; pictures lie as the engine reads them where it neither scales them nor pads on the right.

    Attributes:
        facts: What is known of the pictures.

    Raises:
        MissingDependencyError: PyNvVideoCodec is not installed.
        RunnerError: There is no GPU to use, or its memory is full.
        VideoError: The GPU does not decode it, or not to the pixels of FFmpeg.
    """

    def __init__(self, path: Path, plain: VideoReader, wanted: Wanted) -> None:
        self._name, self._wanted = str(path), wanted
        self._times = RepairedTimes(plain.facts.time_base, plain.facts.rate)
        self._demuxer: Any = None
        self._decoder: Any = None
        self._durations: dict[int, int] = {}
        self._held: list[DevicePicture] = []
        self._memory = _Memory(wanted.padding)
        try:
            with _its_errors():
                self._open(path)
            self._pictures = self._decoded()
            self._held.append(self._checked(next(self._pictures, None), next(iter(plain)).rgb()))
        except BaseException:
            self.close()
            raise
        fitting, note = wanted.fitting(plain.facts.size_hw), None
        if not self._held[0].image.lies_as(fitting.engine_hw):
            note = f"frames were copied from the GPU and brought to {format_size(fitting.engine_hw)} on the CPU."
        self.facts = replace(plain.facts, decoded_on="nvdec", note=note)

    def __iter__(self) -> Iterator[DevicePicture]:
        while self._held:  # which must not hold the memory of the first picture to the end
            yield self._held.pop()
        yield from self._pictures

    def close(self) -> None:
        """Close the file; the memory of a picture lives as long as the picture. May be called again."""
        self._held.clear()
        self._demuxer = self._decoder = None  # before the context that it is in
        self._memory.close()

    def _open(self, path: Path) -> None:
        nvc: Any = require("PyNvVideoCodec", extra="nvdec", purpose="decoding on the GPU")
        self._demuxer = nvc.CreateDemuxer(filename=f"file:{path}")  # without it, "a:b" would be a protocol
        self._decoder = nvc.CreateDecoder(
            gpuid=0,
            codec=self._demuxer.GetNvCodecId(),
            cudacontext=self._memory.cuda.context,
            cudastream=self._memory.stream,
            usedevicememory=True,
            outputColorType=nvc.OutputColorType.RGB,
        )

    def _decoded(self) -> Iterator[DevicePicture]:
        """Decode the file; nothing here holds a picture that was given out."""
        packets, count = iter(self._demuxer), 0
        while True:
            try:
                with _its_errors():
                    packet = next(packets, None)  # the last one is empty: it flushes the decoder
                    pictures = [] if packet is None else self._pictures_of(packet)
            except VideoError as exc:
                if count:
                    raise BrokenOffError(self._name, count, str(exc).rstrip(".")) from exc
                raise
            if packet is None:
                return
            while pictures:
                count += 1
                yield pictures.pop(0)

    def _pictures_of(self, packet: Any) -> list[DevicePicture]:
        if packet.bsl:
            self._durations[packet.pts] = packet.duration
        pictures, frames = [], self._decoder.Decode(packet)
        if frames:
            # Documented to wait for the pictures; without `enableasyncallocations` it need not. They are converted on
            # the stream that the decoder was given, and the copy follows on it.
            self._decoder.SyncOnCUStream()
        for frame in frames:
            image, own = self._copied(frame), frame.getPTS()
            pts, duration = self._times(own, self._durations.pop(own, 0) or None)
            pictures.append(DevicePicture(pts=pts, duration=duration, rgb=image.download, image=image))
        return pictures

    def _copied(self, frame: Any) -> DeviceImage:
        (view,) = (one.__cuda_array_interface__ for one in frame.cuda())
        shape, (address, _) = tuple(view["shape"]), view["data"]
        dense = (shape[1] * 3, 3, 1)
        if view["typestr"] != "|u1" or shape[2:] != (3,) or tuple(view.get("strides") or dense) != dense:
            raise VideoError(f"expected dense pictures (H, W, 3) of uint8, got {view}.")
        size_hw: Size = shape[:2]
        fitting = self._wanted.fitting(size_hw)
        in_place = fitting.content_hw == size_hw and size_hw[1] == fitting.engine_hw[1]
        return self._memory.copied(address, size_hw, fitting.engine_hw if in_place else size_hw)

    def _checked(self, picture: DevicePicture | None, expected: np.ndarray) -> DevicePicture:
        if picture is None:
            raise VideoError("expected pictures, NVDEC gives none.")
        rgb = picture.rgb()
        if rgb.shape != expected.shape:
            raise VideoError(f"its pictures are {format_size(rgb.shape[:2])}, not {format_size(expected.shape[:2])}.")
        difference = float(np.abs(rgb.astype(np.int16) - expected).mean())
        if difference > _LARGEST_DIFFERENCE:
            raise VideoError(f"its colours differ from FFmpeg's by {difference:.1f} of 255 in the mean.")
        return picture


class _Memory:
    """Memory for pictures of one reader, its context and streams; they live until the last picture has gone.

    Args:
        padding: See `Wanted`.
    """

    def __init__(self, padding: np.ndarray) -> None:
        self._padding, self._lock = padding, RLock()  # a picture may be collected while this thread holds the lock
        self._free: dict[Size, list[int]] = defaultdict(list)  # addresses
        self._out, self._closed = 0, False
        with ExitStack() as stack:
            self.cuda = load_cuda()
            stack.callback(self.cuda.close)
            if self.cuda.facts().integrated:
                raise VideoError("this is a Jetson, where jetson://FILE does it.")
            with self.cuda.current():
                self.stream, self._copies = self.cuda.create_stream(), self.cuda.create_stream()
            self._staging = Buffer(self.cuda, mapped=False)  # the one way to and from the host
            self._context = stack.pop_all()

    def copied(self, address: int, size_hw: Size, room_hw: Size) -> DeviceImage:
        """Copy a picture on the device, above padding where there is more room, and wait for it."""
        with self.cuda.current():
            room = self._take(room_hw, padded=room_hw != size_hw)
            try:
                self.cuda.copy(room, address, nbytes_of((*size_hw, 3), _BYTE), self.stream)
                self.cuda.synchronize(self.stream)  # also for the decoder, which writes there again
            except BaseException:
                self._give_back(room, room_hw)
                raise
        tensor = DeviceTensor(address=room, shape=(*room_hw, 3), dtype=_BYTE)
        image = DeviceImage(tensor=tensor, size_hw=size_hw, download=partial(self._download, room, size_hw))
        weakref.finalize(image, self._give_back, room, room_hw).atexit = False
        return image

    def close(self) -> None:
        """Free what no picture holds; may be called again."""
        with self._lock:
            if not self._closed:
                self._closed, unused = True, [room for free in self._free.values() for room in free]
                self._release(unused)

    def _take(self, room_hw: Size, *, padded: bool) -> int:
        nbytes = nbytes_of((*room_hw, 3), _BYTE)
        with self._lock:
            if self._free[room_hw]:
                self._out += 1
                return self._free[room_hw].pop()
            room = self.cuda.allocate(nbytes)
            self._out += 1
            if padded:
                self._staging.reserve(nbytes)
                self._staging.fill(np.broadcast_to(self._padding, (*room_hw, 3)))
                self._staging.upload(self._copies)
                self.cuda.copy(room, self._staging.device, nbytes, self._copies)
                self.cuda.synchronize(self._copies)
            return room

    def _download(self, room: int, size_hw: Size) -> np.ndarray:
        nbytes = nbytes_of((*size_hw, 3), _BYTE)
        with self._lock, self.cuda.current():
            self._staging.reserve(nbytes)
            self.cuda.copy(self._staging.device, room, nbytes, self._copies)
            self._staging.download(self._copies)
            self.cuda.synchronize(self._copies)
            return self._staging.read((*size_hw, 3), _BYTE)

    def _give_back(self, room: int, room_hw: Size) -> None:
        with self._lock:
            self._out -= 1
            if self._closed:
                self._release([room])
            else:
                self._free[room_hw].append(room)

    def _release(self, rooms: list[int]) -> None:
        with self.cuda.current():
            for room in rooms:
                self.cuda.free(room)
            if self._out == 0:
                self._staging.release()
                for stream in (self.stream, self._copies):
                    self.cuda.destroy_stream(stream)
        if self._out == 0:
            self._context.close()


@contextmanager
def _its_errors() -> Iterator[None]:
    """Turn the errors of PyNvVideoCodec, which have no common base, into `VideoError`."""
    try:
        yield
    except Exception as exc:
        traceback.clear_frames(exc.__traceback__)  # which hold its objects, and they may live longer than the context
        if isinstance(exc, NrdTrtError):
            raise
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        raise VideoError(f"PyNvVideoCodec says: {' '.join(lines[:2]) or type(exc).__name__}") from exc
