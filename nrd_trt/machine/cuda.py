"""Device memory, streams and graphs behind a few functions: the driver itself, or PyCUDA where that is asked for.

Both are opened on use, and both work in the primary context of the device, which TensorRT, PyTorch and everything else
over the CUDA runtime share. Addresses and handles are plain integers, so callers know neither library.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Literal

import numpy as np

from nrd_trt.errors import RunnerError
from nrd_trt.machine.gpu import Gpu
from nrd_trt.specs import check_choice

Provider = Literal["driver", "pycuda"]


class Cuda(ABC):
    """The CUDA calls that a runner needs, on the first device.

    Opening one retains the device's primary context, and `close` gives it back. Every other method but `facts` belongs
    into a ``with cuda.current():`` block of its thread: a thread that was just started has no context, and another one
    may have that of somebody else.

    Attributes:
        name: ``"driver"`` or ``"pycuda"``.
        has_graphs: Whether `begin_capture` to `destroy_graph` are for use; PyCUDA has no graphs.
    """

    name: Provider
    has_graphs: bool

    @abstractmethod
    def facts(self) -> Gpu:
        """Describe the device, with the memory that is free now."""

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Make the primary context the calling thread's for a block; may be nested."""

    @abstractmethod
    def close(self) -> None:
        """Give the primary context back; once, and after everything that was made in it."""

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
    def create_event(self, *, timed: bool = False) -> int:
        """Return an event; only a timed one is for `elapsed_ms`."""

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

    @abstractmethod
    def elapsed_ms(self, start: int, end: int) -> float:
        """Return the milliseconds between two timed events, which both were waited for."""

    @abstractmethod
    def check_address(self, address: int) -> None:
        """Raise `RunnerError` where an address that a caller gives is certainly not for this device and context."""

    @abstractmethod
    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues on a stream instead of running it; other threads go on as usual."""

    @abstractmethod
    def end_capture(self, stream: int) -> int:
        """Return an executable graph of what was recorded."""

    @abstractmethod
    def abort_capture(self, stream: int) -> None:
        """Leave capture mode after a failure; what was recorded is dropped."""

    @abstractmethod
    def launch_graph(self, graph: int, stream: int) -> None:
        """Queue a graph."""

    @abstractmethod
    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""


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
    # Both are made of this module's contract.
    if provider == "pycuda":
        from nrd_trt.machine.cuda_pycuda import PyCuda

        return PyCuda()
    from nrd_trt.machine.cuda_driver import DriverCuda

    return DriverCuda()


@contextmanager
def open_cuda(provider: Provider = "driver") -> Iterator[Cuda]:
    """Open the first device for a block of one thread, in its context; see `load_cuda`."""
    with closing(load_cuda(provider)) as cuda, cuda.current():
        yield cuda


def probe_device() -> Gpu | None:
    """Describe the GPU that engines would run on, free memory left out, or return None where there is none to use."""
    from nrd_trt.machine.cuda_driver import describe_device

    try:
        return describe_device()
    except RunnerError:
        return None


def host_view(address: int, nbytes: int) -> np.ndarray:
    """Return host memory as a ``(nbytes,) uint8`` array that shares it."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (nbytes,))
