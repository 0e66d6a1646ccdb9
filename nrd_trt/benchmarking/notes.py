"""What a reader of a latency must know: the marks that make it doubtful, and notes on what it contains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nrd_trt.benchmarking.timing import Latency
from nrd_trt.machine.clocks import DeviceLog

_LOWEST_CLOCK_SHARE = 0.5
_COARSE_ENERGY_S = 2.0
"""A counter of energy moves in steps, and power is sampled some fifteen times a second."""
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
    """Say what an imitated run is not, and one in other types."""
    if imitated := {"simulated": "16-bit rounding", "tf32": "rounding to TF32"}.get(arithmetic):
        yield f"{arithmetic}: {imitated} is imitated in fp32, so this latency says nothing about the device"
    elif arithmetic != "native":
        yield f"executed in {arithmetic}: layers of the file have another type, so its masks may differ"


def comparison_notes(sizes: Sequence[str]) -> Iterator[str]:
    """Say where the ratios of a comparison are not between equals."""
    if len(set(sizes)) > 1:
        yield f"sizes differ ({', '.join(dict.fromkeys(sizes))}): the ratio is not between equal work"


def graph_notes(runner_name: str, used: bool | None, *, wanted: bool | None, warmup: int) -> Iterator[str]:
    """Say where a CUDA graph was asked for and not used, and where its capture was timed; used is None on a CPU."""
    if used and warmup < _CAPTURED_AFTER:
        yield f"the CUDA graph is captured on the second call; warm up with {_CAPTURED_AFTER} calls or more"
    if wanted and not used:
        yield f"no CUDA graph was used: {runner_name} {'runs on the CPU' if used is None else 'captured none'}"


def energy_notes(log: DeviceLog | None, *, sources: int) -> Iterator[str]:
    """Say why there is no energy where a device was watched, and where it was watched too shortly."""
    if log is None:
        return
    if sources > 1:
        yield "energy is not told of several sources, which share it; time them one by one"
    elif log.energy is None:
        yield "energy was not read: the GPU has no counter of it in NVML, or the board no rails in sysfs"
    elif log.energy.seconds < _COARSE_ENERGY_S:
        yield f"energy is a rough figure, taken over {log.energy.seconds:.1f} s only; measure it with duration=10"


def stream_notes(streams: int, *, threads: int | None, cores: int) -> Iterator[str]:
    """Say what streams share on a CPU."""
    if streams > 1:
        each = "as many threads as there are cores" if threads is None else f"threads={threads}"
        yield f"{streams} streams, each with {each}, shared {cores} CPU cores"


def layer_notes(runner_name: str, layers: Sequence[object] | None) -> Iterator[str]:
    """Say where a profile was asked for and tells nothing; layers are None where it was not asked for."""
    if layers is not None and not layers:
        yield f"no layer was told: {runner_name} does not profile this plan"
