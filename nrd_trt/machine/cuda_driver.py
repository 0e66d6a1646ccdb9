"""The CUDA calls of a runner by way of the driver itself."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from nrd_trt.errors import RunnerError
from nrd_trt.machine import libcuda
from nrd_trt.machine.cuda import Cuda, Provider
from nrd_trt.machine.gpu import Gpu, kernel_driver
from nrd_trt.machine.host import Machine


class DriverCuda(Cuda):
    """The driver itself."""

    name: Provider = "driver"
    has_graphs = True

    def __init__(self) -> None:
        self._lib = libcuda.LibCuda()
        self._device = self._lib.get("cuDeviceGet", 0)
        self._context = self._lib.get("cuDevicePrimaryCtxRetain", self._device)

    def facts(self) -> Gpu:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self.current():
            self._lib.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return replace(_describe(self._lib, self._device), free_bytes=free.value)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._lib.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._lib.get("cuCtxPopCurrent_v2")

    def close(self) -> None:
        self._lib.call("cuDevicePrimaryCtxRelease_v2", self._device)

    def allocate(self, nbytes: int) -> int:
        return int(self._lib.get("cuMemAlloc_v2", nbytes))

    def free(self, address: int) -> None:
        self._lib.call("cuMemFree_v2", address)

    def allocate_host(self, nbytes: int, *, mapped: bool) -> tuple[int, int]:
        host = int(self._lib.get("cuMemHostAlloc", nbytes, libcuda.CU_MEMHOSTALLOC_DEVICEMAP if mapped else 0))
        return host, int(self._lib.get("cuMemHostGetDevicePointer_v2", host, 0)) if mapped else 0

    def free_host(self, address: int) -> None:
        self._lib.call("cuMemFreeHost", address)

    def upload(self, device: int, host: int, nbytes: int, stream: int) -> None:
        self._lib.call("cuMemcpyHtoDAsync_v2", device, host, nbytes, stream)

    def download(self, host: int, device: int, nbytes: int, stream: int) -> None:
        self._lib.call("cuMemcpyDtoHAsync_v2", host, device, nbytes, stream)

    def create_stream(self) -> int:
        return int(self._lib.get("cuStreamCreate", libcuda.CU_STREAM_NON_BLOCKING))

    def synchronize(self, stream: int) -> None:
        self._lib.call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        self._lib.call("cuStreamDestroy_v2", stream)

    def create_event(self, *, timed: bool = False) -> int:
        # Who waits for it sleeps: more work is queued behind it, so waking late costs the device nothing.
        flags = libcuda.CU_EVENT_BLOCKING_SYNC | (0 if timed else libcuda.CU_EVENT_DISABLE_TIMING)
        return int(self._lib.get("cuEventCreate", flags))

    def record_event(self, event: int, stream: int) -> None:
        self._lib.call("cuEventRecord", event, stream)

    def wait_event(self, stream: int, event: int) -> None:
        self._lib.call("cuStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        self._lib.call("cuEventSynchronize", event)

    def destroy_event(self, event: int) -> None:
        self._lib.call("cuEventDestroy_v2", event)

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._lib.get("cuEventElapsedTime", start, end))

    def check_address(self, address: int) -> None:
        kind, context = ctypes.c_uint(), ctypes.c_void_p()
        attribute = libcuda.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        if self._lib.code_of("cuPointerGetAttribute", ctypes.byref(kind), attribute, address):
            raise RunnerError(
                f"expected memory of this GPU, got the address {address:#x}, which CUDA does not know; copy the array "
                "to the device."
            )
        # Page-locked memory of the host is every context's. Memory of a pool tells no context: it is the device's.
        attribute = libcuda.CU_POINTER_ATTRIBUTE_CONTEXT
        self._lib.code_of("cuPointerGetAttribute", ctypes.byref(context), attribute, address)
        if kind.value == libcuda.CU_MEMORYTYPE_DEVICE and context.value not in (None, self._context):
            raise RunnerError(
                f"expected memory of the GPU's primary context, got the address {address:#x} of another context; with "
                "PyCUDA import pycuda.autoprimaryctx, not pycuda.autoinit, and choose the same GPU everywhere."
            )

    def begin_capture(self, stream: int) -> None:
        self._lib.call("cuStreamBeginCapture_v2", stream, libcuda.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        graph = ctypes.c_void_p()
        self._lib.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            return int(self._lib.get("cuGraphInstantiateWithFlags", graph, 0))
        finally:
            self._lib.call("cuGraphDestroy", graph)

    def abort_capture(self, stream: int) -> None:
        graph = ctypes.c_void_p()  # stays null where the capture is broken, which is an error by itself
        self._lib.code_of("cuStreamEndCapture", stream, ctypes.byref(graph))
        if graph:
            self._lib.call("cuGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._lib.call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._lib.call("cuGraphExecDestroy", graph)


def describe_device() -> Gpu:
    """Describe the first GPU, free memory left out: that takes a context, which may take a second to make.

    Raises:
        RunnerError: There is no usable GPU; the message says why.
    """
    lib = libcuda.LibCuda()
    return _describe(lib, lib.get("cuDeviceGet", 0))


def _describe(lib: libcuda.LibCuda, device: int) -> Gpu:
    name = ctypes.create_string_buffer(256)
    lib.call("cuDeviceGetName", name, len(name), device)
    major, minor, integrated = (
        lib.get("cuDeviceGetAttribute", attribute, device)
        for attribute in (
            libcuda.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            libcuda.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            libcuda.CU_DEVICE_ATTRIBUTE_INTEGRATED,
        )
    )
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major}.{minor}",
        driver=kernel_driver(Machine()),
        cuda=libcuda.version_text(lib.version),
        integrated=bool(integrated),
        memory_bytes=lib.get("cuDeviceTotalMem_v2", device),
    )
