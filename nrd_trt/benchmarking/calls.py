"""One run of a runner, as it is timed: on host arrays, or on a device, where events time the engine alone too.

A runner on a device is told by what `nrd_trt.runtime.base.DeviceRunner` has beyond the Runner contract. Every part of a
run is a range of NVTX where the package is installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import numpy as np

from nrd_trt.benchmarking.record import LayerTime
from nrd_trt.benchmarking.timing import Call, Times
from nrd_trt.errors import NrdTrtError, RunnerError
from nrd_trt.machine.clocks import DeviceMonitor, ProbedDevice, open_probe
from nrd_trt.machine.cuda import Cuda, open_cuda
from nrd_trt.optional import nvtx_range
from nrd_trt.runtime.base import DeviceRunner, DeviceTensor, ProfilingRunner, Runner
from nrd_trt.runtime.buffers import Buffer
from nrd_trt.specs import Provider

Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What is timed of a runner; its calls may come from any thread, one at a time.

    Attributes:
        whole: Runs once, with a device's copies where they are timed.
        alone: Tells what the engine takes on the device; None without one.
        layers: Tells what every layer takes in so many runs; None where the runner does not tell.
    """

    whole: Call
    alone: Call | None = None
    layers: Callable[[int], tuple[LayerTime, ...]] | None = None


def watch_device(stack: ExitStack) -> tuple[DeviceMonitor | None, ProbedDevice | None, Sequence[str]]:
    """Open the instrument of the GPU in use.

    Args:
        stack: Closes the instrument.

    Returns:
        What reads its clocks from now on, the device, and what a reader of the figures must know; None without one.
    """
    probe, reason = open_probe()
    if probe is None:
        return None, None, [reason] if reason else []
    stack.callback(probe.close)
    return DeviceMonitor(probe), probe.device(), probe.notes


def on_device(runner: Runner) -> TypeGuard[DeviceRunner]:
    """Whether a runner, entered or not, works on a device, so that its arrays have to be copied."""
    return hasattr(runner, "infer_device")


def profiles(runner: Runner) -> TypeGuard[ProfilingRunner]:
    """Whether a runner on the host, entered or not, tells what its layers take."""
    return hasattr(runner, "layer_times")


def timed_call(
    stack: ExitStack, runner: Runner, feed: Feed, *, copies: bool | None, cuda: Provider, target: str
) -> Timed:
    """Return the calls to time on an entered runner.

    Args:
        stack: Frees what the calls hold on the device; closed on this thread, before the runner is left.
        runner: The runner, entered.
        feed: Its input on the host.
        copies: Whether a device's copies from and to the host are timed; None is True.
        cuda: Provider of the runner's CUDA calls.
        target: Name of the target, for messages.

    Raises:
        RunnerError: The device has no room for input and output.
    """

    def guarded(call: Call) -> Times:
        try:
            return call()
        except (NrdTrtError, RuntimeError, MemoryError) as exc:  # out of memory is a RuntimeError in most backends
            raise RunnerError(
                f"{target}: a run failed while it was timed ({type(exc).__name__}: {exc}); nothing was measured. "
                "Validate it, or try a smaller size= or batch=."
            ) from exc

    if not on_device(runner):
        layers = partial(_layers_on_host, runner, feed) if profiles(runner) else None
        return Timed(whole=partial(guarded, partial(call_on_host, runner, feed)), layers=layers)
    device = stack.enter_context(_opened(runner, feed, cuda))
    whole = partial(guarded, device.call_without_copies if copies is False else device.call)
    layers = partial(_layers_on_device, runner, whole)
    return Timed(whole=whole, alone=partial(guarded, device.call_alone), layers=layers)


def call_on_host(runner: Runner, feed: Feed) -> Times:
    """Run once on host arrays."""
    begin = time.perf_counter()
    with nvtx_range("infer"):
        runner.infer(feed)
    return Times(latency_ms=_ms_since(begin))


def _layers_on_device(runner: DeviceRunner, call: Call, runs: int) -> tuple[LayerTime, ...]:
    """Return what every layer takes in calls of a runner, which uses no CUDA graphs from now on.

    Args:
        runner: The runner, entered.
        call: Runs it once.
        runs: Calls to take the mean of; one more comes before them.
    """
    sums: dict[str, float] = {}

    def add(name: str, milliseconds: float) -> None:
        sums[name] = sums.get(name, 0.0) + milliseconds  # parts of a loop have one name

    runner.profile_layers(add)
    call()
    sums.clear()
    for _ in range(runs):
        call()
    total = sum(sums.values()) or 1.0
    return tuple(LayerTime(name=name, ms=ms / runs, share=ms / total) for name, ms in sums.items())


def _layers_on_host(runner: ProfilingRunner, feed: Feed, runs: int) -> tuple[LayerTime, ...]:
    """Return what every layer takes in runs of a runner on the host."""
    found = runner.layer_times(feed, runs)
    total = sum(layer.ms for layer in found) or 1.0
    return tuple(LayerTime(**vars(layer), share=layer.ms / total) for layer in found)


@contextmanager
def _opened(runner: DeviceRunner, feed: Feed, cuda: Provider) -> Iterator[_Device]:
    """Yield the calls on a device, with the feed there."""
    with open_cuda(cuda) as opened, ExitStack() as stack:
        yield _Device(opened, stack, runner, feed)


class _Device:
    """Calls of a runner on one stream, with their memory and events."""

    def __init__(self, cuda: Cuda, stack: ExitStack, runner: DeviceRunner, feed: Feed) -> None:
        self._cuda, self._runner, self._feed = cuda, runner, feed
        self._stream = cuda.create_stream()
        stack.callback(cuda.destroy_stream, self._stream)
        self._start, self._end = cuda.create_event(timed=True), cuda.create_event(timed=True)
        for event in (self._start, self._end):
            stack.callback(cuda.destroy_event, event)
        mapped = cuda.facts().integrated
        self._buffers = {name: Buffer(cuda, mapped=mapped) for name in [*runner.inputs, *runner.outputs]}
        for buffer in self._buffers.values():
            stack.callback(buffer.release)
        stack.callback(cuda.synchronize, self._stream)  # the first to be called: nothing runs when memory goes
        for name, array in feed.items():
            self._buffers[name].reserve(array.nbytes)
        self._upload()
        cuda.synchronize(self._stream)
        self._inputs = {
            name: DeviceTensor(address=self._buffers[name].device, shape=array.shape, dtype=array.dtype)
            for name, array in feed.items()
        }

    def call(self) -> Times:
        """Run once from the host and back to it."""
        with self._cuda.current():
            begin = time.perf_counter()
            with nvtx_range("upload"):
                self._upload()
            outputs, enqueue_ms = self._enqueue()
            with nvtx_range("download"):
                for name in outputs:
                    self._buffers[name].download(self._stream)
            self._wait()
            for name, tensor in outputs.items():
                self._buffers[name].read(tensor.shape, tensor.dtype)  # as a runner does: a fresh array
            return Times(latency_ms=_ms_since(begin), enqueue_ms=enqueue_ms)

    def call_without_copies(self) -> Times:
        """Run once on the device."""
        with self._cuda.current():
            begin = time.perf_counter()
            _, enqueue_ms = self._enqueue()
            self._wait()
            return Times(latency_ms=_ms_since(begin), enqueue_ms=enqueue_ms)

    def call_alone(self) -> Times:
        """Run twice on the device, without a wait in between, and time the second run there.

        On an idle stream the first event would have its time at once and that of the host's queueing be taken for the
        engine's. The first run keeps the device busy until the second is queued, unless queueing takes longer than it.
        """
        with self._cuda.current(), nvtx_range("alone"):
            begin = time.perf_counter()
            self._infer()
            self._cuda.record_event(self._start, self._stream)
            self._infer()
            self._cuda.record_event(self._end, self._stream)
            self._cuda.synchronize(self._stream)
            latency_ms = _ms_since(begin)
            return Times(latency_ms=latency_ms, gpu_compute_ms=self._cuda.elapsed_ms(self._start, self._end))

    def _upload(self) -> None:
        for name, array in self._feed.items():
            self._buffers[name].fill(array)
            self._buffers[name].upload(self._stream)

    def _infer(self) -> dict[str, DeviceTensor]:
        return self._runner.infer_device(self._inputs, self._stream, self._place)

    def _enqueue(self) -> tuple[dict[str, DeviceTensor], float]:
        """Queue the engine's work; return its outputs and what that took."""
        begin = time.perf_counter()
        with nvtx_range("enqueue"):
            outputs = self._infer()
        return outputs, _ms_since(begin)

    def _place(self, name: str, nbytes: int) -> int:
        self._buffers[name].reserve(nbytes)
        return self._buffers[name].device

    def _wait(self) -> None:
        with nvtx_range("wait"):
            self._cuda.synchronize(self._stream)


def _ms_since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000
