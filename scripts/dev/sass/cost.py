"""From what a kernel executed to cycles and microseconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .cubin import KernelImage
from .devices import ARCHITECTURES, DEVICES, WARPS_PER_BLOCK, Device
from .listing import Instruction
from .multiprocessor import Counted
from .phases import phase_of
from .pipes import QUARTERS, timing_of

SCHEDULERS = 4


@dataclass(frozen=True, kw_only=True)
class Time:
    """Predicted microseconds of one launch, without the launch itself.

    Attributes:
        us: With the headline's cycles.
        lower_us: If the blocks of a multiprocessor hide each other's latency without a gap.
        upper_us: If every wave of blocks took as long as a block alone and its work again.
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
        cycles: The headline: `busy_cycles` and the block's share of `path_cycles`, of which as many pass at once as
            blocks are resident.
        busy_cycles: Of the pipe that is busy longest.
        path_cycles: What a block takes alone: the slowest warp between barriers, latencies included.
        pipes: Busy cycles by pipe; those of a scheduler are of the one that has most to do.
        phases: Warp instructions by phase.
        shared_wavefronts: Passes through shared memory.
        fewest_shared_wavefronts: The same without bank conflicts.
        global_sectors: Sectors of 32 bytes.
        fewest_global_sectors: The same if every access were dense.
        registers: Of a thread.
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
class Sample:
    """Blocks of one kind and the share of the launch's blocks that are of it."""

    counted: Counted
    share: float


def cost_of(
    instructions: Sequence[Instruction],
    samples: Sequence[Sample],
    image: KernelImage,
    *,
    architecture: int,
    shared_bytes: int,
    blocks: int,
    bytes_per_block: float,
    phases: Mapping[str, Sequence[str]],
) -> Cost:
    """Add up what the samples executed.

    Args:
        instructions: Of the kernel.
        samples: Whose shares add up to 1.
        image: The kernel's resources.
        architecture: Compute capability without its point.
        shared_bytes: Dynamic shared memory of a block.
        blocks: Of the launch that is predicted.
        bytes_per_block: That memory must move for a block at least.
        phases: Names of functions by phase.
    """
    issues = _mean(samples, "issues")
    pipes = _pipes(instructions, issues, samples, architecture)
    path = sum(sample.share * sample.counted.cycles / sample.counted.blocks for sample in samples)
    kept = image.shared_bytes if architecture >= 90 else 0  # what the driver keeps is static memory there
    resident = ARCHITECTURES[architecture].resident_blocks(image.registers, shared_bytes + image.shared_bytes - kept)
    busy = max(pipes.values())
    by_phase: dict[str, float] = defaultdict(float)
    for instruction, count in zip(instructions, issues.sum(axis=1), strict=True):
        if count:
            by_phase[phase_of(instruction, phases)] += float(count)
    totals = {name: float(_mean(samples, name).sum()) for name in ("wavefronts", "fewest_wavefronts")}
    totals |= {name: float(_mean(samples, name).sum()) for name in ("sectors", "fewest_sectors")}
    return Cost(
        warp_instructions=float(issues.sum()),
        cycles=busy + path / resident,
        busy_cycles=busy,
        path_cycles=path,
        pipes=pipes,
        phases=dict(by_phase),
        shared_wavefronts=totals["wavefronts"],
        fewest_shared_wavefronts=totals["fewest_wavefronts"],
        global_sectors=totals["sectors"],
        fewest_global_sectors=totals["fewest_sectors"],
        registers=image.registers,
        stack_bytes=image.stack_bytes,
        shared_bytes=shared_bytes,
        resident_warps=resident * WARPS_PER_BLOCK,
        times={
            device.name: predict_time(device, busy, path, resident, blocks, bytes_per_block)
            for device in DEVICES
            if device.architecture == architecture
        },
    )


def _mean(samples: Sequence[Sample], field: str) -> np.ndarray:
    """Return what an average block does at each instruction."""
    parts = [sample.share / sample.counted.blocks * sample.counted.per_instruction[field] for sample in samples]
    return np.sum(parts, axis=0)  # type: ignore[no-any-return]


def _pipes(
    instructions: Sequence[Instruction], issues: np.ndarray, samples: Sequence[Sample], architecture: int
) -> dict[str, float]:
    """Return busy cycles: of a scheduler's pipes for the busiest scheduler, of the shared ones for all warps."""
    by_scheduler: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(SCHEDULERS))
    for instruction, count in zip(instructions, issues, strict=True):
        timing = timing_of(instruction, architecture)
        by_scheduler["issue"] += count
        by_scheduler[timing.pipe] += count * timing.interval / QUARTERS
    # The fma pipe has two halves; one of them takes the integers. Each needs two cycles for a warp.
    by_scheduler["fma"] += by_scheduler["imad"] / 2 + by_scheduler["half"]
    pipes = {name: float(cycles.max()) for name, cycles in by_scheduler.items() if cycles.any()}
    pipes["shared"] = float(_mean(samples, "wavefronts").sum() + _mean(samples, "lines").sum())
    return pipes


def predict_time(device: Device, busy: float, path: float, resident: int, blocks: int, bytes_per_block: float) -> Time:
    """Return how long a launch takes. The multiprocessor that has most blocks decides, or memory."""
    most = -(-blocks // device.multiprocessors)
    per_us = device.clock_ghz * 1000
    memory = blocks * bytes_per_block / device.bytes_per_us
    lower = max(busy, path / resident)
    return Time(
        us=max(memory, most * (busy + path / resident) / per_us),
        lower_us=max(memory, most * lower / per_us),
        upper_us=max(memory, (most * busy + -(-most // resident) * path) / per_us),
        waves=blocks / (device.multiprocessors * resident),
    )
