"""The CUDA calls of a runner by way of PyCUDA, which has no graphs."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from nrd_trt.errors import RunnerError
from nrd_trt.machine import libcuda
from nrd_trt.machine.cuda import Cuda, host_view
from nrd_trt.optional import require
from nrd_trt.specs import Provider


class PyCuda(Cuda):
    """PyCUDA's own memory, copies and streams, for programs that use it too; the rest is done as ever."""

    name: Provider = "pycuda"
    has_graphs = False

    def __init__(self) -> None:
        self._drv: Any = require("pycuda.driver", extra="pycuda", purpose="running engines by way of PyCUDA")
        super().__init__()
        self._shared = _primary_context(self._drv)
        self._objects: dict[int, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        try:
            self._shared.push()
            try:
                yield
            finally:
                self._drv.Context.pop()
        except self._drv.Error as exc:
            remedy = f"; {libcuda.OUT_OF_MEMORY}" if isinstance(exc, self._drv.MemoryError) else ""
            raise RunnerError(f"CUDA: {exc}{remedy}.") from exc

    def allocate(self, nbytes: int) -> int:
        allocation = self._drv.mem_alloc(nbytes)
        self._objects[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._objects.pop(address).free()

    def allocate_host(self, nbytes: int, *, mapped: bool) -> tuple[int, int]:
        flags = self._drv.host_alloc_flags.DEVICEMAP if mapped else 0
        array = self._drv.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        self._objects[array.ctypes.data] = array
        return array.ctypes.data, int(array.base.get_device_pointer()) if mapped else 0

    def free_host(self, address: int) -> None:
        self._objects.pop(address).base.free()

    def upload(self, device: int, host: int, nbytes: int, stream: int) -> None:
        self._drv.memcpy_htod_async(device, host_view(host, nbytes), self._objects[stream])

    def download(self, host: int, device: int, nbytes: int, stream: int) -> None:
        self._drv.memcpy_dtoh_async(host_view(host, nbytes), device, self._objects[stream])

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._drv.memcpy_dtod_async(target, source, nbytes, self._objects[stream])

    def create_stream(self) -> int:
        stream = self._drv.Stream(flags=1)  # CU_STREAM_NON_BLOCKING
        self._objects[int(stream.handle)] = stream
        return int(stream.handle)

    def synchronize(self, stream: int) -> None:
        if stream in self._objects:
            self._objects[stream].synchronize()
        else:
            super().synchronize(stream)  # somebody else's, of which PyCUDA has no object

    def destroy_stream(self, stream: int) -> None:
        del self._objects[stream]  # PyCUDA destroys it with the object


@cache
def _primary_context(drv: Any) -> Any:
    """Return PyCUDA's object for the primary context; one for the process, for it stays current when it is let go."""
    drv.init()
    context = drv.Device(0).retain_primary_context()
    atexit.register(context.detach)  # or its destructor would, in a way that is for other contexts only
    return context
