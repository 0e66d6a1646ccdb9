"""From what a kernel executed to cycles and microseconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .devices import ARCHITECTURES, DEVICES, WARPS_PER_BLOCK, Device
from .listing import Instruction
from .multiprocessor import COUNTS, Multiprocessor
from .phases import phase_of
from .pipes import QUARTERS, timing_of

SCHEDULERS = 4
_ALONE = 8


@dataclass(frozen=True, kw_only=True)
class Time:
    """Predicted microseconds of one launch, without the launch itself.

    Attributes:
        us: If the multiprocessor with most blocks takes what the simulation says.
        lower_us: If its busiest pipe never waits.
        upper_us: If a block's latency is hidden by nothing but the other blocks' latency.
        waves: Blocks of the launch over those that are resident at a time.
    """

    us: float
    lower_us: float
    upper_us: float
    waves: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one block costs on average.

    Attributes:
        warp_instructions: Instructions that its warps issue.
        cycles: Between the ends of two blocks on a multiprocessor that is full, by simulation: the headline.
        busy_cycles: Cycles of the pipe that is busy longest; `cycles` is never below.
        path_cycles: What a block takes alone: the slowest warp between barriers, latencies included.
        pipes: Busy cycles by pipe; those of a scheduler are of the one that has most to do.
        phases: Warp instructions by phase.
        shared_wavefronts: Passes through shared memory.
        fewest_shared_wavefronts: The same without bank conflicts.
        global_sectors: Sectors of 32 bytes.
        fewest_global_sectors: The same if every access were dense.
        registers: Number that a thread has.
        stack_bytes: Local memory of a thread.
        shared_bytes: Dynamic shared memory.
        resident_warps: On a multiprocessor.
        times: By device.
    """

    warp_instructions: float
    cycles: float
    busy_cycles: float
    path_cycles: float
    pipes: Mapping[str, float]
    phases: Mapping[str, float]
    shared_wavefronts: float
    fewest_shared_wavefronts: float
    global_sectors: float
    fewest_global_sectors: float
    registers: int
    stack_bytes: int
    shared_bytes: int
    resident_warps: int
    times: Mapping[str, Time]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The launch whose cost is asked for.

    Attributes:
        kernel: Its name.
        blocks: Number of blocks.
        shared_bytes: Dynamic shared memory of each.
        bytes_per_block: That memory must move for a block at least.
    """

    kernel: str
    blocks: int
    shared_bytes: int
    bytes_per_block: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Blocks of one kind that were executed.

    Attributes:
        counts: `COUNTS` for each instruction, of all of them.
        blocks: Their number.
        share: Share of the launch's blocks that are of this kind.
    """

    counts: NDArray[np.void]
    blocks: int
    share: float


def cost_of(
    machine: Multiprocessor, launch: Launch, samples: Sequence[Sample], phases: Mapping[str, Sequence[str]]
) -> Cost:
    """Add up what the samples executed, and simulate a multiprocessor that is full of such blocks.

    Args:
        machine: That executed the samples, one after the other, since the kernel was reset.
        launch: What is asked for.
        samples: Whose shares add up to 1.
        phases: Names of functions by phase.
    """
    instructions, image = machine.code[launch.kernel], machine.images[launch.kernel]
    issues = _mean(samples, "issues")
    pipes = _pipes(instructions, issues, samples, machine.architecture)
    shared = launch.shared_bytes + image.shared_bytes - machine.kept_shared_bytes
    resident = ARCHITECTURES[machine.architecture].resident_blocks(image.registers, shared)
    stream = make_stream(samples)
    alone = stream[: len(stream) // _ALONE * _ALONE : len(stream) // _ALONE]
    path = float(np.mean([machine.simulate(launch.kernel, [block], 1)[-1] for block in alone]))
    by_phase: dict[str, float] = defaultdict(float)
    for instruction, count in zip(instructions, issues.sum(axis=1), strict=True):
        if count:
            by_phase[phase_of(instruction, phases)] += float(count)
    sums = {name: float(_mean(samples, name).sum()) for name in COUNTS.names or () if name != "issues"}
    return Cost(
        warp_instructions=float(issues.sum()),
        cycles=_steady_cycles(machine, launch, stream, resident),
        busy_cycles=max(pipes.values()),
        path_cycles=path,
        pipes=pipes,
        phases=dict(by_phase),
        shared_wavefronts=sums["wavefronts"],
        fewest_shared_wavefronts=sums["fewest_wavefronts"],
        global_sectors=sums["sectors"],
        fewest_global_sectors=sums["fewest_sectors"],
        registers=image.registers,
        stack_bytes=image.stack_bytes,
        shared_bytes=launch.shared_bytes,
        resident_warps=resident * WARPS_PER_BLOCK,
        times=_times(machine, launch, stream, max(pipes.values()), path, resident),
    )


def _times(
    machine: Multiprocessor, launch: Launch, stream: Sequence[int], busy: float, path: float, resident: int
) -> dict[str, Time]:
    devices = [device for device in DEVICES if device.architecture == machine.architecture]
    counts = {-(-launch.blocks // device.multiprocessors) for device in devices}
    simulated = {most: simulate_launch(machine, launch, stream, resident, most) for most in counts}
    return {
        device.name: predict_time(
            device, launch, simulated[-(-launch.blocks // device.multiprocessors)], busy, path, resident
        )
        for device in devices
    }


def make_stream(samples: Sequence[Sample]) -> list[int]:
    """Return an order of blocks of all kinds, each kind as often as its share asks for.

    Blocks are numbered as they were executed. The first kind comes once each, the others are spread among it.
    """
    first = samples[0]
    stream = [*range(first.blocks)]
    rng, begin = np.random.default_rng(0), first.blocks
    for sample in samples[1:]:
        wanted = round(first.blocks * sample.share / first.share)
        stream += [begin + i % sample.blocks for i in range(wanted)]
        begin += sample.blocks
    return [stream[i] for i in rng.permutation(len(stream))]


def _mean(samples: Sequence[Sample], field: str) -> NDArray[np.float64]:
    """Return what an average block does at each instruction."""
    parts = [sample.share / sample.blocks * sample.counts[field] for sample in samples]
    return np.sum(parts, axis=0)  # type: ignore[no-any-return]


def _pipes(
    instructions: Sequence[Instruction], issues: NDArray[np.float64], samples: Sequence[Sample], architecture: int
) -> dict[str, float]:
    """Return busy cycles: of a scheduler's pipes for the busiest scheduler, of the shared ones for all warps."""
    by_scheduler: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(SCHEDULERS))
    for instruction, count in zip(instructions, issues, strict=True):
        timing = timing_of(instruction, architecture)
        by_scheduler["issue"] += count
        by_scheduler[timing.pipe] += count * timing.interval / QUARTERS
    # The fma pipe has two halves; one of them takes the integers. Each needs two cycles for a warp.
    by_scheduler["fma"] += by_scheduler["imad"] / 2 + by_scheduler["half"]
    pipes = {name: float(cycles.max()) for name, cycles in by_scheduler.items() if cycles.any()}
    pipes["shared"] = float(_mean(samples, "wavefronts").sum() + _mean(samples, "lines").sum())
    return pipes


def _steady_cycles(machine: Multiprocessor, launch: Launch, stream: Sequence[int], resident: int) -> float:
    """Return cycles per block while the multiprocessor is full: what a second round of the blocks adds to the first."""
    once, twice = (machine.simulate(launch.kernel, [*stream] * rounds, resident)[-1] for rounds in (1, 2))
    return float(twice - once) / len(stream)


def simulate_launch(machine: Multiprocessor, launch: Launch, stream: Sequence[int], resident: int, most: int) -> float:
    """Return the cycles of a multiprocessor that gets `most` blocks, from its first to its last."""
    if most > len(stream):
        once = float(machine.simulate(launch.kernel, stream, resident)[-1])
        return once + (most - len(stream)) * _steady_cycles(machine, launch, stream, resident)
    parts = [stream[at : at + most] for at in range(0, len(stream) - most + 1, most)]
    return float(np.mean([machine.simulate(launch.kernel, part, resident)[-1] for part in parts]))


def predict_time(device: Device, launch: Launch, simulated: float, busy: float, path: float, resident: int) -> Time:
    """Return how long a launch takes. The multiprocessor that has most blocks decides, or memory."""
    most = -(-launch.blocks // device.multiprocessors)
    per_us = device.clock_ghz * 1000
    memory = launch.blocks * launch.bytes_per_block / device.bytes_per_us
    return Time(
        us=max(memory, simulated / per_us),
        lower_us=max(memory, most * busy / per_us),
        upper_us=max(memory, (most * busy + -(-most // resident) * path) / per_us),
        waves=launch.blocks / (device.multiprocessors * resident),
    )
