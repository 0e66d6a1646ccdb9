"""GPUs and their driver, as nvidia-smi and the kernel's files tell; no package is needed for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from nrd_trt.machine.host import Machine, memory_bytes
from nrd_trt.machine.jetson import Jetson

DRIVER_OF_CUDA = {12: 525, 13: 580}
"""The oldest driver branch for each major version of CUDA."""
THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clock setting",
    0x200: "board limit",
    0x400: "reliability",
}
"""Bits of the driver's clock event reasons; 0x1 (idle) and 0x2 (clocks set by a user) are no throttling."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU; what is not told is None.

    Attributes:
        name: Marketing name.
        compute_capability: Such as ``"8.7"``.
        driver: Version of the NVIDIA driver, ``"540.4.0"``.
        cuda: Newest CUDA version that the driver supports, ``"12.6"``.
        integrated: Whether CPU and GPU share memory (Jetson).
        memory_bytes: Total device memory.
        free_bytes: Free device memory now.
        pci_bus_id: Where it is on the PCI bus, ``"0000:65:00.0"``: the name that all of NVIDIA's libraries share.
        multiprocessors: Their number, in which GPUs of one name differ: every Orin is called Orin.
        uuid: ``"GPU-…"``, or ``"MIG-…"`` of a part of one.
    """

    name: str
    compute_capability: str | None
    driver: str | None = None
    cuda: str | None = None
    integrated: bool = False
    memory_bytes: int | None = None
    free_bytes: int | None = None
    pci_bus_id: str | None = None
    uuid: str | None = None
    multiprocessors: int | None = None


@dataclass(frozen=True, kw_only=True)
class Graphics:
    """GPUs and driver.

    Attributes:
        gpus: In the driver's order.
        driver: Version of the NVIDIA driver, or None where there is none (or a Jetson's does not tell).
        cuda: Newest CUDA version that the driver supports, ``"12.6"``.
        problem: What nvidia-smi complains of.
        hardware: An NVIDIA GPU is on the PCI bus, whether or not a driver serves it.
        used: Which of several programs use, as CUDA tells it; None where there is one, or CUDA does not tell.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str | None = None
    hardware: bool = False
    used: Gpu | None = None

    @property
    def first(self) -> Gpu | None:
        """The GPU that programs use, as far as that is known."""
        return self.used or next(iter(self.gpus), None)

    @property
    def cuda_major(self) -> int | None:
        """Major version of `cuda`."""
        return int(self.cuda.split(".")[0]) if self.cuda else None

    def supports(self, cuda_major: int | None) -> bool:
        """Whether programs made for this major version of CUDA can run."""
        return bool(self.gpus) and (cuda_major is None or self.cuda_major is None or self.cuda_major >= cuda_major)


def find_graphics(machine: Machine, jetson: Jetson | None) -> Graphics:
    """Look at the GPUs and the driver."""
    header = machine.run(["nvidia-smi"]) or ""
    version = re.search(r"(?:Driver|KMD) Version\s*:\s*(\d[\d.]*)", header)
    newest = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+\.\d+)", header)
    driver, cuda = version[1] if version else kernel_driver(machine), newest[1] if newest else None
    gpus = _listed(machine, driver, cuda) if header else []
    if jetson is not None:
        unlisted = Gpu(name=f"GPU of {jetson.model}", compute_capability=None, driver=driver, cuda=cuda)
        gpus = [_integrated(machine, jetson, gpus[0] if gpus else unlisted)]
    return Graphics(
        gpus=tuple(gpus),
        driver=driver,
        cuda=cuda,
        problem=None if gpus or not header else header.strip().splitlines()[0],
        hardware=jetson is not None or _on_the_bus(machine),
    )


def kernel_driver(machine: Machine) -> str | None:
    """Return the version of the loaded NVIDIA driver, or None where there is none (or a Jetson's does not tell)."""
    found = re.search(r"Kernel Module.*?\s(\d{3}\.[\d.]+)", machine.read("proc/driver/nvidia/version"))
    return found[1] if found else None


def query(machine: Machine, fields: str, gpu: Gpu | None = None) -> list[list[str]]:
    """Ask nvidia-smi for comma-separated fields; return the values per GPU, none where it does not know a field.

    Args:
        machine: Which has it.
        fields: As nvidia-smi calls them.
        gpu: The only one to ask about, where its place on the bus is known; None asks about all.
    """
    chosen = ["-i", gpu.pci_bus_id] if gpu and gpu.pci_bus_id else []
    output = machine.run(f"nvidia-smi --format=csv,noheader,nounits --query-gpu={fields}".split() + chosen) or ""
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    return [row for row in rows if len(row) == fields.count(",") + 1]


def throttle_reasons(mask: int) -> tuple[str, ...]:
    """Name the bits of the driver's clock event reasons, idleness and a user's setting left out."""
    bits = [1 << index for index in range(mask.bit_length()) if mask >> index & 1]
    return tuple(THROTTLE_REASONS.get(bit, f"reason {bit:#x}") for bit in bits if bit > 0x2)


def _listed(machine: Machine, driver: str | None, cuda: str | None) -> list[Gpu]:
    """Return what nvidia-smi lists; drivers before 510 do not know ``compute_cap``."""
    fields = "name,memory.total,memory.free"
    rows = query(machine, f"{fields},compute_cap") or [[*row, ""] for row in query(machine, fields)]
    return [
        Gpu(
            name=name,
            compute_capability=capability if re.fullmatch(r"\d+\.\d", capability) else None,
            driver=driver,
            cuda=cuda,
            memory_bytes=int(total) << 20 if total.isdigit() else None,
            free_bytes=int(free) << 20 if free.isdigit() else None,
        )
        for name, total, free, capability in rows
    ]


def _integrated(machine: Machine, jetson: Jetson, gpu: Gpu) -> Gpu:
    """Complete a Jetson's GPU: it has no memory of its own, and nvidia-smi knows little of it."""
    total, free = memory_bytes(machine) or (None, None)
    capability = gpu.compute_capability or jetson.compute_capability
    return replace(gpu, compute_capability=capability, integrated=True, memory_bytes=total, free_bytes=free)


def _on_the_bus(machine: Machine) -> bool:
    """Whether the PCI bus holds a display or 3D controller of NVIDIA's."""
    return any(
        machine.read(device / "vendor").strip() == "0x10de" and machine.read(device / "class").startswith("0x03")
        for device in (machine.root / "sys/bus/pci/devices").glob("*")
    )
