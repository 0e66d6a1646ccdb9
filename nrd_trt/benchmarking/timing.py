"""One call of a runner, and the latency of calls that are timed in turn so that a noisy machine disturbs them alike.

A runner on a device is told by what `nrd_trt.runtime.base.DeviceRunner` has beyond the Runner contract.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import numpy as np

from nrd_trt.errors import NrdTrtError, RunnerError
from nrd_trt.machine.clocks import DeviceMonitor, ProbedDevice, open_probe
from nrd_trt.machine.cuda import host_view, open_cuda
from nrd_trt.runtime.base import DeviceRunner, DeviceTensor, Runner

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What the timed calls of one callable took.

    Attributes:
        samples_ms: Every call in the order of the run, in milliseconds.
    """

    samples_ms: tuple[float, ...]

    @property
    def runs(self) -> int:
        """Number of timed calls."""
        return len(self.samples_ms)

    @property
    def p50(self) -> float:
        """Median in milliseconds."""
        return self.percentile(50)

    @property
    def p90(self) -> float:
        """90th percentile in milliseconds."""
        return self.percentile(90)

    @property
    def p99(self) -> float:
        """99th percentile in milliseconds; of fewer than 100 calls it is close to the slowest one."""
        return self.percentile(99)

    def percentile(self, share: float) -> float:
        """Return a percentile in milliseconds, interpolated between calls; `share` is in 0-100."""
        return float(np.percentile(self.samples_ms, share))

    def to_dict(self) -> dict[str, float]:
        """Return ``p50, p90, p99, mean, min`` in milliseconds."""
        mean = sum(self.samples_ms) / self.runs
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99, "mean": mean, "min": min(self.samples_ms)}

    def throughput_fps(self, batch: int) -> float:
        """Return images per second over the timed calls: their images by their total time."""
        return batch * self.runs * 1000 / sum(self.samples_ms)


def time_in_turn(
    calls: Mapping[str, Call], *, warmup: int, runs: int, between: Call | None = None
) -> dict[str, Latency]:
    """Time several callables in alternation.

    Args:
        calls: By name; each waits for its own end.
        warmup: Untimed calls of each.
        runs: Timed calls of each, at least 1.
        between: Called after every round, untimed, e.g. to read clocks.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    samples_ms: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples_ms[name].append((time.perf_counter() - start) * 1000)
        if between is not None:
            between()
    return {name: Latency(samples_ms=tuple(values)) for name, values in samples_ms.items()}


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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


def timed_call(
    stack: ExitStack, runner: Runner, feed: Mapping[str, np.ndarray], *, copies: bool | None, target: str
) -> Call:
    """Return the call to time on an entered runner.

    Args:
        stack: Frees what the call holds on the device.
        runner: The runner, entered.
        feed: Its input on the host.
        copies: Whether a device's copies from and to the host are timed; None is True.
        target: Name of the target, for messages.
    """
    call: Call = partial(runner.infer, feed)
    if copies is False and on_device(runner):
        call = device_call(stack, runner, feed)

    def guarded() -> object:
        try:
            return call()
        except (NrdTrtError, RuntimeError, MemoryError) as exc:  # out of memory is a RuntimeError in most backends
            raise RunnerError(
                f"{target}: a run failed while it was timed ({type(exc).__name__}: {exc}); nothing was measured. "
                "Validate it, or try a smaller size= or batch=."
            ) from exc

    return guarded


def device_call(stack: ExitStack, runner: DeviceRunner, feed: Mapping[str, np.ndarray]) -> Call:
    """Copy a feed to the device and return the call that runs on it there and waits for the end. CUDA is loaded here.

    Args:
        stack: Frees the memory and the stream; it is closed on this thread, where the call is made too.
        runner: The runner, entered.
        feed: Host arrays; not needed afterwards.
    """
    cuda = stack.enter_context(open_cuda())
    stream = cuda.create_stream()
    stack.callback(cuda.destroy_stream, stream)
    tensors = {}
    for name, array in feed.items():
        host, _ = cuda.allocate_host(array.nbytes, mapped=False)
        stack.callback(cuda.free_host, host)
        device = cuda.allocate(array.nbytes)
        stack.callback(cuda.free, device)
        host_view(host, array.nbytes)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        cuda.upload(device, host, array.nbytes, stream)
        tensors[name] = DeviceTensor(address=device, shape=array.shape, dtype=array.dtype)
    cuda.synchronize(stream)

    def call() -> None:
        runner.infer_device(tensors, stream)
        cuda.synchronize(stream)

    return call
