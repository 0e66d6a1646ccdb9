"""Device memory, streams and graphs behind a few functions: the driver itself, or PyCUDA where that is asked for.

Both are opened on use, and both work in the primary context of the device, which TensorRT, PyTorch and everything else
over the CUDA runtime share. Addresses and handles are plain integers, so callers know neither library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from uuid import UUID

import numpy as np

from nrd_trt.errors import RunnerError
from nrd_trt.machine import libcuda
from nrd_trt.machine.gpu import Gpu, kernel_driver
from nrd_trt.machine.host import Machine
from nrd_trt.specs import Provider, check_choice


class Cuda:
    """The CUDA calls that a runner needs, on the first device.

    Opening one retains the device's primary context, and `close` gives it back. Every other method but `facts` belongs
    into a ``with cuda.current():`` block of its thread: a thread that was just started has no context, and another one
    may have that of somebody else.

    Attributes:
        name: ``"driver"`` or ``"pycuda"``.
        has_graphs: Whether `begin_capture` to `destroy_graph` are for use; PyCUDA has no graphs.
    """

    name: Provider = "driver"
    has_graphs = True

    def __init__(self) -> None:
        self._lib = libcuda.LibCuda()
        self._device = self._lib.get("cuDeviceGet", 0)
        self._context = self._lib.get("cuDevicePrimaryCtxRetain", self._device)

    def facts(self) -> Gpu:
        """Describe the device, with the memory that is free now."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self.current():
            self._lib.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return replace(_describe(self._lib, self._device), free_bytes=free.value)

    @property
    def context(self) -> int:
        """Handle of the primary context, for libraries that work in one that they are given."""
        return int(self._context)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context the calling thread's for a block; may be nested."""
        self._lib.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._lib.get("cuCtxPopCurrent_v2")

    def close(self) -> None:
        """Give the primary context back; once, and after everything that was made in it."""
        self._lib.call("cuDevicePrimaryCtxRelease_v2", self._device)

    def allocate(self, nbytes: int) -> int:
        """Return the address of `nbytes` of device memory."""
        return int(self._lib.get("cuMemAlloc_v2", nbytes))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._lib.call("cuMemFree_v2", address)

    def allocate_host(self, nbytes: int, *, mapped: bool) -> tuple[int, int]:
        """Return host and device address of page-locked memory; the device address is 0 unless `mapped`."""
        host = int(self._lib.get("cuMemHostAlloc", nbytes, libcuda.CU_MEMHOSTALLOC_DEVICEMAP if mapped else 0))
        try:
            return host, int(self._lib.get("cuMemHostGetDevicePointer_v2", host, 0)) if mapped else 0
        except BaseException:
            self.free_host(host)
            raise

    def free_host(self, address: int) -> None:
        """Free page-locked memory."""
        self._lib.call("cuMemFreeHost", address)

    def upload(self, device: int, host: int, nbytes: int, stream: int) -> None:
        """Queue a copy from page-locked host memory to the device."""
        self._lib.call("cuMemcpyHtoDAsync_v2", device, host, nbytes, stream)

    def download(self, host: int, device: int, nbytes: int, stream: int) -> None:
        """Queue a copy from the device to page-locked host memory."""
        self._lib.call("cuMemcpyDtoHAsync_v2", host, device, nbytes, stream)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy on the device."""
        self._lib.call("cuMemcpyDtoDAsync_v2", target, source, nbytes, stream)

    def create_stream(self) -> int:
        """Return a stream that does not wait for the default stream."""
        return int(self._lib.get("cuStreamCreate", libcuda.CU_STREAM_NON_BLOCKING))

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._lib.call("cuStreamSynchronize", stream)

    def synchronize_context(self) -> None:
        """Wait for everything that anybody queued in this context."""
        self._lib.call("cuCtxSynchronize")

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._lib.call("cuStreamDestroy_v2", stream)

    def create_event(self, *, timed: bool = False) -> int:
        """Return an event; only a timed one is for `elapsed_ms`."""
        # Who waits for it sleeps: more work is queued behind it, so waking late costs the device nothing.
        flags = libcuda.CU_EVENT_BLOCKING_SYNC | (0 if timed else libcuda.CU_EVENT_DISABLE_TIMING)
        return int(self._lib.get("cuEventCreate", flags))

    def record_event(self, event: int, stream: int) -> None:
        """Let an event stand for what was queued on a stream so far."""
        self._lib.call("cuEventRecord", event, stream)

    def wait_event(self, stream: int, event: int) -> None:
        """Let what is queued on a stream from now on wait for an event, as it was last recorded."""
        self._lib.call("cuStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        """Wait for an event, as it was last recorded."""
        self._lib.call("cuEventSynchronize", event)

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        self._lib.call("cuEventDestroy_v2", event)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Return the milliseconds between two timed events, which both were waited for."""
        return float(self._lib.get("cuEventElapsedTime", start, end))

    def check_address(self, address: int) -> None:
        """Raise `RunnerError` where an address of a caller is certainly not for this device, or the driver fails."""
        kind, context = ctypes.c_uint(), ctypes.c_void_p()
        attribute = libcuda.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        code = self._lib.code_of("cuPointerGetAttribute", ctypes.byref(kind), attribute, address)
        if code == libcuda.CUDA_ERROR_INVALID_VALUE:
            raise RunnerError(
                f"expected memory of this GPU, got the address {address:#x}, which CUDA does not know; copy the array "
                "to the device."
            )
        self._lib.check("cuPointerGetAttribute", code)
        # Page-locked memory of the host is every context's. Memory of a pool tells no context: it is the device's.
        attribute = libcuda.CU_POINTER_ATTRIBUTE_CONTEXT
        self._lib.code_of("cuPointerGetAttribute", ctypes.byref(context), attribute, address)
        if kind.value == libcuda.CU_MEMORYTYPE_DEVICE and context.value not in (None, self._context):
            raise RunnerError(
                f"expected memory of the GPU's primary context, got the address {address:#x} of another context; with "
                "PyCUDA import pycuda.autoprimaryctx, not pycuda.autoinit, and choose the same GPU everywhere."
            )

    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues on a stream instead of running it; other threads go on as usual."""
        self._lib.call("cuStreamBeginCapture_v2", stream, libcuda.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Return an executable graph of what was recorded."""
        graph = ctypes.c_void_p()
        self._lib.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            return int(self._lib.get("cuGraphInstantiateWithFlags", graph, 0))
        finally:
            self._lib.call("cuGraphDestroy", graph)

    def abort_capture(self, stream: int) -> None:
        """Leave capture mode after a failure; what was recorded is dropped."""
        graph = ctypes.c_void_p()  # stays null where the capture is broken, which is an error by itself
        self._lib.code_of("cuStreamEndCapture", stream, ctypes.byref(graph))
        if graph:
            self._lib.call("cuGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        """Queue a graph."""
        self._lib.call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""
        self._lib.call("cuGraphExecDestroy", graph)


def _describe(lib: libcuda.LibCuda, device: int) -> Gpu:
    name, bus = ctypes.create_string_buffer(256), ctypes.create_string_buffer(16)
    lib.call("cuDeviceGetName", name, len(name), device)
    lib.code_of("cuDeviceGetPCIBusId", bus, len(bus), device)  # a GPU that is on no bus may have none
    known = not lib.code_of("cuDeviceGetUuid_v2", ctypes.byref(uuid := (ctypes.c_char * 16)()), device)
    kind = "MIG" if b" MIG " in name.value else "GPU"
    major, minor, integrated, multiprocessors = (
        lib.get("cuDeviceGetAttribute", attribute, device)
        for attribute in (
            libcuda.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            libcuda.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            libcuda.CU_DEVICE_ATTRIBUTE_INTEGRATED,
            libcuda.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major}.{minor}",
        driver=kernel_driver(Machine()),
        cuda=libcuda.version_text(lib.version),
        integrated=bool(integrated),
        memory_bytes=lib.get("cuDeviceTotalMem_v2", device),
        pci_bus_id=bus.value.decode() or None,
        uuid=f"{kind}-{UUID(bytes=uuid.raw)}" if known else None,
        multiprocessors=multiprocessors,
    )


def load_cuda(provider: Provider = "driver") -> Cuda:
    """Open the first device; close what is returned.

    Args:
        provider: ``"driver"`` needs nothing but the NVIDIA driver; ``"pycuda"`` is for programs that use PyCUDA, and
            has no graphs.

    Raises:
        ConfigError: The provider is not known.
        MissingDependencyError: PyCUDA is asked for and not installed.
        RunnerError: There is no usable GPU; the message says why.
    """
    check_choice("provider", provider, Provider)
    if provider == "driver":
        return Cuda()
    from nrd_trt.machine.cuda_pycuda import PyCuda  # which is made of this module's class

    return PyCuda()


@contextmanager
def open_cuda(provider: Provider = "driver") -> Iterator[Cuda]:
    """Open the first device for a block of one thread, in its context; see `load_cuda`."""
    with closing(load_cuda(provider)) as cuda, cuda.current():
        yield cuda


def visible_gpus() -> list[Gpu]:
    """Describe the GPUs that CUDA shows to this process, without their free memory.

    Raises:
        RunnerError: There is none; the message says why.
    """
    lib = libcuda.LibCuda()
    return [_describe(lib, lib.get("cuDeviceGet", index)) for index in range(lib.get("cuDeviceGetCount"))]


def find_device() -> Gpu:
    """Describe the GPU that engines would run on.

    Free memory is left out: that takes a context, which may take a second to make.

    Raises:
        NoDriverError: This machine has no driver.
        RunnerError: There is no GPU to use, or the driver fails; the message says why.
    """
    lib = libcuda.LibCuda()
    return _describe(lib, lib.get("cuDeviceGet", 0))


def probe_device() -> Gpu | None:
    """Return what `find_device` returns, or None where there is nothing to use."""
    try:
        return find_device()
    except RunnerError:
        return None


def host_view(address: int, nbytes: int) -> np.ndarray:
    """Return host memory as a ``(nbytes,) uint8`` array that shares it."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (nbytes,))
