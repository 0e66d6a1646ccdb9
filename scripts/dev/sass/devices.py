"""Multiprocessors that kernels are planned for, and the devices that have them. docs/kernel-costs.md has sources."""

from __future__ import annotations

from dataclasses import dataclass

WARPS_PER_BLOCK = 4
_REGISTERS = 65536
_REGISTERS_PER_ALLOCATION = 256
_WARP = 32
_KEPT_BY_DRIVER = 1024


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Limits of one multiprocessor.

    Attributes:
        number: Compute capability without its point.
        shared_bytes: Shared memory of all its blocks.
        block_shared_bytes: The most that one block may have.
        warps: Resident warps at most.
        blocks: Resident blocks at most.
    """

    number: int
    shared_bytes: int
    block_shared_bytes: int
    warps: int
    blocks: int

    @property
    def name(self) -> str:
        """Such as ``"sm_90"``."""
        return f"sm_{self.number}"

    def resident_blocks(self, registers: int, shared_bytes: int) -> int:
        """Return how many blocks of four warps run at a time.

        Args:
            registers: Number that a thread has.
            shared_bytes: Shared memory of a block, static and dynamic, without what the driver keeps.
        """
        of_warp = -(-registers * _WARP // _REGISTERS_PER_ALLOCATION) * _REGISTERS_PER_ALLOCATION
        by_registers = _REGISTERS // of_warp // WARPS_PER_BLOCK
        by_memory = self.shared_bytes // (shared_bytes + _KEPT_BY_DRIVER)
        return min(self.blocks, self.warps // WARPS_PER_BLOCK, by_registers, by_memory)


ARCHITECTURES = {
    87: Architecture(number=87, shared_bytes=164 * 1024, block_shared_bytes=163 * 1024, warps=48, blocks=16),
    90: Architecture(number=90, shared_bytes=228 * 1024, block_shared_bytes=227 * 1024, warps=64, blocks=32),
}


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU.

    Attributes:
        name: Its name.
        architecture: Compute capability without its point.
        multiprocessors: Number of them.
        clock_ghz: Highest clock of the GPU in its highest power mode.
        bytes_per_us: Bandwidth of memory: four fifths of the stated bandwidth.
    """

    name: str
    architecture: int
    multiprocessors: int
    clock_ghz: float
    bytes_per_us: float


DEVICES = (
    Device(name="H200", architecture=90, multiprocessors=132, clock_ghz=1.98, bytes_per_us=0.8 * 4.8e6),
    Device(name="H100", architecture=90, multiprocessors=132, clock_ghz=1.98, bytes_per_us=0.8 * 3.35e6),
    Device(name="AGX Orin", architecture=87, multiprocessors=16, clock_ghz=1.3, bytes_per_us=0.8 * 204.8e3),
    Device(name="Orin Nano", architecture=87, multiprocessors=8, clock_ghz=1.02, bytes_per_us=0.8 * 102e3),
)
