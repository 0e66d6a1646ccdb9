"""A double of PyNvVideoCodec on the fake driver, as strict as what its wheel 2.2.4 declares and documents.

Names, keywords and defaults are those of its bindings; what is not used is left out. PyAV decodes. As with the real
one, the end is an empty packet that flushes the decoder, pictures come some packets later, and they lie on the device,
in surfaces that its next call writes over, in the context that it was given. It works on a stream of its own, which is
the strictest reading of what is documented: what nothing orders, the fake driver sees.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from nrd_trt.machine.cuda import Cuda
from tests.runtime.fake_cuda import FakeDriver

GARBAGE = 0xAA


class OutputColorType(enum.Enum):
    NATIVE, RGB, RGBP = range(3)


class PyNvVCException(Exception):
    """Its text has lines, as the real one's."""


@dataclass(frozen=True)
class PacketData:
    bsl: int
    pts: int
    duration: int
    packet: Any = None


class DecodedFrame:
    def __init__(self, shape: tuple[int, ...], address: int, pts: int, view: dict[str, Any]) -> None:
        self.shape, self._address, self._pts, self._view = shape, address, pts, view

    def cuda(self) -> list[Any]:
        strides = (self.shape[1] * 3, 3, 1)
        view = {"shape": self.shape, "strides": strides, "typestr": "|u1", "data": (self._address, False), "version": 3}
        return [SimpleNamespace(__cuda_array_interface__={**view, **self._view})]

    def getPTS(self) -> int:
        return self._pts


@dataclass
class FakeNvdec:
    """The module's double, and what was asked of it.

    Attributes:
        driver: Whose device the surfaces are on.
        shift: Added to the colours.
        view: What views of pictures say otherwise.
        fails_at: The n-th packet cannot be decoded.
        damaged_at: The n-th packet is concealed, which the real one says by C's printf.
        refuses: The decoder cannot be made.
        decoders: How many were made.
        packets: How many they were given.
    """

    driver: FakeDriver
    shift: int = 0
    view: dict[str, Any] = field(default_factory=dict)
    fails_at: int = 0
    damaged_at: int = 0
    refuses: bool = False
    decoders: int = 0
    packets: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeNvdec:
        module: Any = ModuleType("PyNvVideoCodec")
        module.OutputColorType, module.PyNvVCException = OutputColorType, PyNvVCException
        module.CreateDemuxer, module.CreateDecoder = Demuxer, self.create_decoder
        monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)
        return self

    def create_decoder(
        self,
        gpuid: int = 0,
        codec: str = "h264",
        cudacontext: int = 0,
        cudastream: int = 0,
        usedevicememory: bool = False,
        maxwidth: int = 0,
        maxheight: int = 0,
        outputColorType: OutputColorType = OutputColorType.NATIVE,
    ) -> Decoder:
        if self.refuses:
            raise PyNvVCException("CreateDecoder :\nError code : 801\nat NvDecoder.cpp")
        assert (gpuid, usedevicememory, outputColorType) == (0, True, OutputColorType.RGB)
        assert cudastream in self.driver.list("stream")
        assert cudacontext == self.driver.list("context")[0]
        self.decoders += 1
        return Decoder(self, codec)


class Demuxer:
    def __init__(self, filename: str) -> None:
        try:
            self._container = av.open(filename)
        except OSError as exc:
            raise PyNvVCException(f"CreateFormatContext : \nError code : {exc.errno}") from exc

    def GetNvCodecId(self) -> str:
        return self._container.streams.video[0].codec_context.name

    def __iter__(self) -> Iterator[PacketData]:
        with self._container:
            for packet in self._container.demux(video=0):
                if packet.size:
                    yield PacketData(packet.size, int(packet.pts or 0), int(packet.duration or 0), packet)
            yield PacketData(0, 0, 0)


class Decoder:
    def __init__(self, owner: FakeNvdec, codec: str) -> None:
        self._owner, self._cuda = owner, Cuda()
        with self._cuda.current():
            self._stream = self._cuda.create_stream()
        self._context = av.CodecContext.create(codec, "r")
        self._surfaces: list[tuple[int, int, int]] = []

    def Decode(self, packet: PacketData) -> list[DecodedFrame]:
        self._owner.packets += 1
        if self._owner.packets == self._owner.fails_at:
            raise PyNvVCException("Decode :\nError code : 999")
        if self._owner.packets == self._owner.damaged_at:
            ctypes.CDLL(None).printf(b"Decode Error occurred for picture 3\n")
        if packet.packet is not None and self._context.extradata is None:
            self._context.extradata = packet.packet.stream.codec_context.extradata
        with self._cuda.current():
            self._cuda.synchronize(self._stream)  # the host's side of the surfaces is free then
            for index, (_, _, nbytes) in enumerate(self._surfaces):
                self._write(index, np.full(nbytes, GARBAGE, np.uint8))
            return [self._lying(index, frame) for index, frame in enumerate(self._context.decode(packet.packet))]

    def SyncOnCUStream(self) -> None:
        with self._cuda.current():
            self._cuda.synchronize(self._stream)

    def _lying(self, index: int, frame: Any) -> DecodedFrame:
        rgb = frame.to_ndarray(format="rgb24")
        rgb = np.minimum(rgb.astype(np.int16) + self._owner.shift, 255).astype(np.uint8)
        return DecodedFrame(rgb.shape, self._write(index, rgb.reshape(-1)), frame.pts, self._owner.view)

    def _write(self, index: int, pixels: np.ndarray) -> int:
        """Queue the writing of a surface and return its address."""
        if index == len(self._surfaces):
            host, _ = self._cuda.allocate_host(pixels.nbytes, mapped=False)
            self._surfaces.append((self._cuda.allocate(pixels.nbytes), host, pixels.nbytes))
        self._cuda.synchronize(self._stream)
        device, host, _ = self._surfaces[index]
        self._owner.driver.host_view(host, pixels.nbytes)[:] = pixels
        self._cuda.upload(device, host, pixels.nbytes, self._stream)
        return device

    def __del__(self) -> None:
        with self._cuda.current():
            self._cuda.synchronize(self._stream)
            for device, host, _ in self._surfaces:
                self._cuda.free(device)
                self._cuda.free_host(host)
            self._cuda.destroy_stream(self._stream)
        self._cuda.close()
