"""Device memory, streams and graphs behind a few functions: cuda-python, or pycuda where only that is installed.

Both are imported on use. pycuda has no graphs here; `Cuda.has_graphs` says so. Addresses are plain integers, so callers
know neither library.
"""

from __future__ import annotations

import ctypes
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from nrd_trt.errors import MissingDependencyError, RunnerError
from nrd_trt.machine.gpu import Gpu, kernel_driver
from nrd_trt.machine.host import Machine
from nrd_trt.optional import require

_NO_GRAPHS = "CUDA graphs need cuda-python; install it with `pip install nrd-trt[cuda]`."
_REMEDIES = {
    "cudaErrorInsufficientDriver": "; the NVIDIA driver is absent or older than this CUDA, install or update it",
    "cudaErrorNoDevice": "; no GPU is visible, check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
    "cudaErrorMemoryAllocation": "; the device is out of memory, close other programs or build a smaller size",
}


class Cuda(ABC):
    """The CUDA calls that a runner needs, on the current device; a binding without graphs leaves those methods out.

    Attributes:
        name: ``"cuda-python"`` or ``"pycuda"``.
        has_graphs: Whether `begin_capture` to `destroy_graph` work.
    """

    name: str
    has_graphs: bool

    @abstractmethod
    def facts(self) -> Gpu:
        """Describe the current device."""

    @abstractmethod
    def allocate(self, nbytes: int) -> int:
        """Return the address of `nbytes` of device memory."""

    @abstractmethod
    def free(self, address: int) -> None:
        """Free device memory."""

    @abstractmethod
    def allocate_host(self, nbytes: int, *, mapped: bool) -> tuple[int, int]:
        """Return host and device address of page-locked memory; the device address is 0 unless `mapped`."""

    @abstractmethod
    def free_host(self, address: int) -> None:
        """Free page-locked memory."""

    @abstractmethod
    def upload(self, device: int, host: int, nbytes: int, stream: int) -> None:
        """Queue a copy from page-locked host memory to the device."""

    @abstractmethod
    def download(self, host: int, device: int, nbytes: int, stream: int) -> None:
        """Queue a copy from the device to page-locked host memory."""

    @abstractmethod
    def create_stream(self) -> int:
        """Return a stream that does not wait for the default stream."""

    @abstractmethod
    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""

    @abstractmethod
    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""

    @abstractmethod
    def create_event(self) -> int:
        """Return an event that takes no times."""

    @abstractmethod
    def record_event(self, event: int, stream: int) -> None:
        """Let an event stand for what was queued on a stream so far."""

    @abstractmethod
    def wait_event(self, stream: int, event: int) -> None:
        """Let what is queued on a stream from now on wait for an event, as it was last recorded."""

    @abstractmethod
    def synchronize_event(self, event: int) -> None:
        """Wait for an event, as it was last recorded."""

    @abstractmethod
    def destroy_event(self, event: int) -> None:
        """Destroy an event."""

    def begin_capture(self, stream: int) -> None:
        """Record what is queued on a stream instead of running it."""
        raise RunnerError(_NO_GRAPHS)

    def end_capture(self, stream: int) -> int:
        """Return an executable graph of what was recorded."""
        raise RunnerError(_NO_GRAPHS)

    def abort_capture(self, stream: int) -> None:
        """Leave capture mode after a failure; what was recorded is dropped."""
        raise RunnerError(_NO_GRAPHS)

    def launch_graph(self, graph: int, stream: int) -> None:
        """Queue a graph."""
        raise RunnerError(_NO_GRAPHS)

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""
        raise RunnerError(_NO_GRAPHS)


def load_cuda() -> Cuda:
    """Return the installed CUDA binding, cuda-python first.

    Raises:
        MissingDependencyError: Neither binding is installed.
        RunnerError: There is no usable GPU; the message says why.
    """
    try:
        return _CudaPython()
    except MissingDependencyError:
        if importlib.util.find_spec("pycuda") is None:
            raise
    return _PyCuda()


def probe_device() -> Gpu | None:
    """Describe the GPU that engines would run on, or return None where there is none to use."""
    try:
        return load_cuda().facts()
    except (MissingDependencyError, RunnerError):
        return None


class _CudaPython(Cuda):
    """NVIDIA's cuda-python."""

    name = "cuda-python"
    has_graphs = True

    def __init__(self) -> None:
        self._rt: Any = require("cuda.bindings.runtime", extra="cuda", purpose="running engines on a GPU")
        if self._call(self._rt.cudaGetDeviceCount) < 1:
            raise RunnerError("CUDA: no GPU is visible; check `nvidia-smi` and CUDA_VISIBLE_DEVICES.")
        self._call(self._rt.cudaFree, 0)  # creates the context, so that later errors are about later calls

    def facts(self) -> Gpu:
        properties = self._call(self._rt.cudaGetDeviceProperties, self._call(self._rt.cudaGetDevice))
        version = self._call(self._rt.cudaDriverGetVersion)
        free, total = self._call(self._rt.cudaMemGetInfo)
        return Gpu(
            name=properties.name.decode(),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=kernel_driver(Machine()),
            cuda=f"{version // 1000}.{version % 1000 // 10}",
            integrated=bool(properties.integrated),
            memory_bytes=int(total),
            free_bytes=int(free),
        )

    def allocate(self, nbytes: int) -> int:
        return int(self._call(self._rt.cudaMalloc, nbytes))

    def free(self, address: int) -> None:
        self._call(self._rt.cudaFree, address)

    def allocate_host(self, nbytes: int, *, mapped: bool) -> tuple[int, int]:
        flags = self._rt.cudaHostAllocMapped if mapped else self._rt.cudaHostAllocDefault
        host = int(self._call(self._rt.cudaHostAlloc, nbytes, flags))
        return host, int(self._call(self._rt.cudaHostGetDevicePointer, host, 0)) if mapped else 0

    def free_host(self, address: int) -> None:
        self._call(self._rt.cudaFreeHost, address)

    def upload(self, device: int, host: int, nbytes: int, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._rt.cudaMemcpyAsync, device, host, nbytes, kind, stream)

    def download(self, host: int, device: int, nbytes: int, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._rt.cudaMemcpyAsync, host, device, nbytes, kind, stream)

    def create_stream(self) -> int:
        return int(self._call(self._rt.cudaStreamCreateWithFlags, self._rt.cudaStreamNonBlocking))

    def synchronize(self, stream: int) -> None:
        self._call(self._rt.cudaStreamSynchronize, stream)

    def destroy_stream(self, stream: int) -> None:
        self._call(self._rt.cudaStreamDestroy, stream)

    def create_event(self) -> int:
        # Who waits for it sleeps: more work is queued behind it, so waking late costs the device nothing.
        flags = self._rt.cudaEventDisableTiming | self._rt.cudaEventBlockingSync
        return int(self._call(self._rt.cudaEventCreateWithFlags, flags))

    def record_event(self, event: int, stream: int) -> None:
        self._call(self._rt.cudaEventRecord, event, stream)

    def wait_event(self, stream: int, event: int) -> None:
        self._call(self._rt.cudaStreamWaitEvent, stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        self._call(self._rt.cudaEventSynchronize, event)

    def destroy_event(self, event: int) -> None:
        self._call(self._rt.cudaEventDestroy, event)

    def begin_capture(self, stream: int) -> None:
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._rt.cudaStreamBeginCapture, stream, mode)

    def end_capture(self, stream: int) -> int:
        graph = self._call(self._rt.cudaStreamEndCapture, stream)
        try:
            return int(self._call(self._rt.cudaGraphInstantiate, graph, 0))
        finally:
            self._call(self._rt.cudaGraphDestroy, graph)

    def abort_capture(self, stream: int) -> None:
        code, graph = self._rt.cudaStreamEndCapture(stream)  # fails by itself where the capture is broken
        if code == self._rt.cudaError_t.cudaSuccess and graph:
            self._call(self._rt.cudaGraphDestroy, graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call(self._rt.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call(self._rt.cudaGraphExecDestroy, graph)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call and unpack; the first item of every answer is the error code."""
        code, *values = function(*args)
        if code != self._rt.cudaError_t.cudaSuccess:
            text = self._rt.cudaGetErrorString(code)[1].decode()
            remedy = _REMEDIES.get(code.name, "")
            raise RunnerError(f"CUDA: {function.__name__} failed with {code.name} ({text}){remedy}.")
        return values[0] if len(values) == 1 else tuple(values)


class _PyCuda(Cuda):
    """pycuda, for machines that have only that; the driver API's names differ, the meaning does not."""

    name = "pycuda"
    has_graphs = False

    def __init__(self) -> None:
        self._drv: Any = require("pycuda.driver", extra="pycuda", purpose="running engines on a GPU")
        try:
            self._drv.init()
            # The primary context is the one that TensorRT and other runtime-API users share.
            self._device = self._drv.Device(0)
            self._context = self._device.retain_primary_context()
            self._context.push()
        except self._drv.Error as exc:
            raise RunnerError(
                f"CUDA: no GPU can be used ({exc}); check `nvidia-smi` and CUDA_VISIBLE_DEVICES."
            ) from exc
        self._objects: dict[int, Any] = {}

    def facts(self) -> Gpu:
        attributes, version = self._drv.device_attribute, self._drv.get_driver_version()
        free, total = self._drv.mem_get_info()
        return Gpu(
            name=self._device.name(),
            compute_capability=".".join(map(str, self._device.compute_capability())),
            driver=kernel_driver(Machine()),
            cuda=f"{version // 1000}.{version % 1000 // 10}",
            integrated=bool(self._device.get_attribute(attributes.INTEGRATED)),
            memory_bytes=int(total),
            free_bytes=int(free),
        )

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

    def create_stream(self) -> int:
        stream = self._drv.Stream(flags=1)  # CU_STREAM_NON_BLOCKING
        self._objects[int(stream.handle)] = stream
        return int(stream.handle)

    def synchronize(self, stream: int) -> None:
        # Another's stream is a number only, and pycuda waits for objects; the context is waited for in its place.
        self._objects.get(stream, self._context).synchronize()

    def destroy_stream(self, stream: int) -> None:
        del self._objects[stream]  # pycuda destroys it with the object

    def create_event(self) -> int:
        flags = self._drv.event_flags
        event = self._drv.Event(flags.DISABLE_TIMING | flags.BLOCKING_SYNC)
        self._objects[id(event)] = event  # it shows no handle; no address is that of another object that is alive
        return id(event)

    def record_event(self, event: int, stream: int) -> None:
        self._objects[event].record(self._objects[stream])

    def wait_event(self, stream: int, event: int) -> None:
        self._objects[stream].wait_for_event(self._objects[event])

    def synchronize_event(self, event: int) -> None:
        self._objects[event].synchronize()

    def destroy_event(self, event: int) -> None:
        del self._objects[event]


def host_view(address: int, nbytes: int) -> np.ndarray:
    """Return host memory as a ``(nbytes,) uint8`` array that shares it."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (nbytes,))
