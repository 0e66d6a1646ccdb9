"""What a reader of a latency must know: the marks that make it doubtful, and notes on what it contains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nrd_trt.benchmarking.timing import Latency, on_device
from nrd_trt.machine.clocks import DeviceLog
from nrd_trt.runtime.base import Runner

_LOWEST_CLOCK_SHARE = 0.5
_CAPTURED_AFTER = 2
_WIDEST_SPREAD = 1.5
"""p90 over p50; on an idle machine with fixed clocks it is below 1.1."""


def load_marks(load_before: float | None, cores: int) -> Iterator[str]:
    """Mark a run that began on a busy host."""
    if load_before is not None and load_before > cores:
        yield f"other work was running: load average {load_before:.1f} on {cores} cores before the start"


def device_marks(log: DeviceLog | None) -> Iterator[str]:
    """Mark a run on a throttled device or at idle clocks."""
    if log is None:
        return
    if log.throttle:
        yield f"throttled: {', '.join(log.throttle)}"
    clock, largest = log.median("clock_mhz"), log.clock_max_mhz
    if clock is not None and largest and clock < _LOWEST_CLOCK_SHARE * largest:
        yield f"low clocks: the GPU ran at {clock:.0f} of {largest:.0f} MHz; warm it up longer or fix its clocks"


def spread_marks(latency: Latency) -> Iterator[str]:
    """Mark a run whose calls took very different times, whatever the reason."""
    spread = latency.p90 / latency.p50
    if spread > _WIDEST_SPREAD:
        yield f"unsteady: p90 is {spread:.1f} times p50; the machine was busy or its clocks moved"


def arithmetic_notes(arithmetic: str) -> Iterator[str]:
    """Say what an imitated run is not."""
    if imitated := {"simulated": "16-bit rounding", "tf32": "rounding to TF32"}.get(arithmetic):
        yield f"{arithmetic}: {imitated} is imitated in fp32, so this latency says nothing about the device"


def comparison_notes(sizes: Sequence[str]) -> Iterator[str]:
    """Say where the ratios of a comparison are not between equals."""
    if len(set(sizes)) > 1:
        yield f"sizes differ ({', '.join(dict.fromkeys(sizes))}): the ratio is not between equal work"


def graph_notes(runner: Runner, *, wanted: bool | None, warmup: int) -> Iterator[str]:
    """Say where a CUDA graph was asked for and not used, and where its capture was timed."""
    used = on_device(runner) and runner.cuda_graph
    if used and warmup < _CAPTURED_AFTER:
        yield f"the CUDA graph is captured on the second call; warm up with {_CAPTURED_AFTER} calls or more"
    if wanted and not used:
        yield f"no CUDA graph was used: {runner.name} {'captured none' if on_device(runner) else 'runs on the CPU'}"
