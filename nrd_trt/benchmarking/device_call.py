"""A run on inputs that already lie on the device. CUDA is loaded on use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from nrd_trt.benchmarking.timers import Call
from nrd_trt.machine.cuda import Cuda, host_view, load_cuda
from nrd_trt.runtime.base import DeviceTensor


def device_call(stack: ExitStack, runner: Any, feed: Mapping[str, np.ndarray]) -> Call:
    """Copy a feed to the device and return the call that runs on it there and waits for the end.

    Args:
        stack: Frees the memory and the stream.
        runner: Entered, with ``infer_device``.
        feed: Host arrays; not needed afterwards.
    """
    cuda = load_cuda()
    stream = cuda.create_stream()
    stack.callback(cuda.destroy_stream, stream)
    tensors = {name: _uploaded(stack, cuda, array, stream) for name, array in feed.items()}
    cuda.synchronize(stream)

    def call() -> None:
        runner.infer_device(tensors, stream)
        cuda.synchronize(stream)

    return call


def _uploaded(stack: ExitStack, cuda: Cuda, array: np.ndarray, stream: int) -> DeviceTensor:
    """Return a copy of an array on the device."""
    host, _ = cuda.allocate_host(array.nbytes, mapped=False)
    stack.callback(cuda.free_host, host)
    device = cuda.allocate(array.nbytes)
    stack.callback(cuda.free, device)
    host_view(host, array.nbytes)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    cuda.upload(device, host, array.nbytes, stream)
    return DeviceTensor(address=device, shape=array.shape, dtype=array.dtype)
