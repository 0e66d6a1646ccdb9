"""GPUs, the driver and the CUDA toolkit, as nvidia-smi, the kernel's files and nvcc tell."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nrd_trt.machine.doctor.jetson import Jetson
from nrd_trt.machine.doctor.machine import Machine, Row, mib

Version = tuple[int, int]

DRIVER_OF_CUDA = {12: 525, 13: 580}
"""The oldest driver branch for each major version of CUDA."""
_DRIVER_PAGE = "https://www.nvidia.com/drivers"
_NVCC_PLACES = ("usr/local/cuda/bin/nvcc", "opt/cuda/bin/nvcc")
_THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; what the driver does not tell is None."""

    name: str
    compute_capability: str | None
    total_mib: int | None
    free_mib: int | None
    shared: bool = False

    @property
    def described(self) -> str:
        """Name, compute capability and memory in words."""
        parts = [self.name, f"compute capability {self.compute_capability or 'unknown'}"]
        if self.total_mib is not None and self.free_mib is not None:
            shared = " shared with the CPU" if self.shared else ""
            parts.append(f"{mib(self.total_mib)}{shared}, {mib(self.free_mib)} free")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Graphics:
    """GPUs and driver.

    Attributes:
        gpus: In the driver's order.
        driver: Its version, or None where there is none (or a Jetson's does not tell).
        cuda: The newest CUDA version that the driver supports.
        problem: What nvidia-smi complains of.
        hardware: An NVIDIA GPU is on the PCI bus, whether or not a driver serves it.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: Version | None = None
    problem: str | None = None
    hardware: bool = False

    def supports(self, cuda_major: int | None) -> bool:
        """Whether programs made for this major version of CUDA can run."""
        return bool(self.gpus) and (cuda_major is None or self.cuda is None or self.cuda[0] >= cuda_major)


def find_graphics(machine: Machine, jetson: Jetson | None) -> Graphics:
    """Look at the GPUs and the driver."""
    header = machine.run(["nvidia-smi"])
    kernel = re.search(r"Kernel Module.*?\s(\d{3}\.[\d.]+)", machine.read("proc/driver/nvidia/version") or "")
    driver = re.search(r"(?:Driver|KMD) Version\s*:\s*(\d[\d.]*)", header or "")
    cuda = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+)\.(\d+)", header or "")
    gpus = _query(machine) if header else []
    if jetson is not None:
        gpus = [_integrated(machine, jetson, gpus[0] if gpus else None)]
    complaint = None if gpus or not header else header.strip().splitlines()[0]
    return Graphics(
        gpus=tuple(gpus),
        driver=driver[1] if driver else kernel[1] if kernel else None,
        cuda=(int(cuda[1]), int(cuda[2])) if cuda else None,
        problem=complaint,
        hardware=jetson is not None or _on_the_bus(machine),
    )


def _query(machine: Machine) -> list[Gpu]:
    """Return what nvidia-smi lists; drivers before 510 do not know ``compute_cap``."""
    for fields in ("name,memory.total,memory.free,compute_cap", "name,memory.total,memory.free"):
        output = machine.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]) or ""
        rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
        if found := [row for row in rows if len(row) == fields.count(",") + 1]:
            return [
                Gpu(
                    name=row[0],
                    compute_capability=row[3] if len(row) > 3 and re.fullmatch(r"\d+\.\d", row[3]) else None,
                    total_mib=_whole(row[1]),
                    free_mib=_whole(row[2]),
                )
                for row in found
            ]
    return []


def _integrated(machine: Machine, jetson: Jetson, listed: Gpu | None) -> Gpu:
    """Return a Jetson's GPU: it has no memory of its own, and nvidia-smi knows little of it."""
    memory = machine.read("proc/meminfo") or ""
    total, free = (re.search(rf"^{key}:\s+(\d+) kB", memory, re.MULTILINE) for key in ("MemTotal", "MemAvailable"))
    known = listed.compute_capability if listed else None
    return Gpu(
        name=listed.name if listed else f"GPU of {jetson.model}",
        compute_capability=known or jetson.compute_capability,
        total_mib=int(total[1]) // 1024 if total else None,
        free_mib=int(free[1]) // 1024 if free else None,
        shared=True,
    )


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _on_the_bus(machine: Machine) -> bool:
    """Whether the PCI bus holds a display or 3D controller of NVIDIA's."""
    for device in sorted((machine.root / "sys/bus/pci/devices").glob("*")):
        path = f"sys/bus/pci/devices/{device.name}"
        vendor, kind = machine.read(f"{path}/vendor") or "", machine.read(f"{path}/class") or ""
        if vendor.strip() == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def gpu_rows(machine: Machine, graphics: Graphics) -> list[Row]:
    """One row per GPU, or one that says why there is none."""
    if graphics.gpus:
        many = len(graphics.gpus) > 1
        return [_gpu_row(machine, f"GPU {index}" if many else "GPU", gpu) for index, gpu in enumerate(graphics.gpus)]
    if graphics.hardware or graphics.problem or graphics.driver:
        found = "an NVIDIA GPU is there and cannot be used" if graphics.hardware else "no GPU that can be used"
        detail = f": {graphics.problem}" if graphics.problem else ""
        return [Row(name="GPU", status="missing", found=found + detail, remedy=_driver_remedy(machine, graphics))]
    return [
        Row(
            name="GPU",
            status="missing",
            found="no NVIDIA GPU",
            remedy="none is needed to export, validate, and build with TensorRT-RTX; plans run on a machine with one",
        )
    ]


def _gpu_row(machine: Machine, name: str, gpu: Gpu) -> Row:
    visible = machine.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        found = f"{gpu.described}; hidden by CUDA_VISIBLE_DEVICES={visible!r}"
        return Row(name=name, status="limited", found=found, remedy="unset CUDA_VISIBLE_DEVICES")
    return Row(name=name, status="ok", found=gpu.described)


def driver_row(machine: Machine, graphics: Graphics, needed: dict[str, int], *, jetson: Jetson | None) -> Row:
    """Say which driver is there and whether it is new enough.

    Args:
        machine: To find the command that installs one.
        graphics: What was found.
        needed: Major version of CUDA by the package that needs it.
        jetson: The board whose system brings the driver along, or None.
    """
    if graphics.driver is None and graphics.cuda is None:
        if jetson is not None:
            found = f"part of L4T {jetson.l4t or 'of unknown release'}; nvidia-smi is not there to tell more"
            return Row(name="Driver", status="ok", found=found)
        if not graphics.hardware:
            return Row(name="Driver", status="n/a", found="no NVIDIA GPU")
        remedy = _driver_remedy(machine, graphics)
        return Row(name="Driver", status="missing", found="no driver answers", remedy=remedy)
    cuda = "supports CUDA {}.{}".format(*graphics.cuda) if graphics.cuda else "CUDA version not told"
    found = f"{graphics.driver or 'version not told'}, {cuda}"
    if graphics.problem:
        remedy = _driver_remedy(machine, graphics)
        return Row(name="Driver", status="limited", found=f"{found}: {graphics.problem}", remedy=remedy)
    newest = graphics.cuda[0] if graphics.cuda else 99
    short = {package: major for package, major in needed.items() if major > newest}
    if not short:
        return Row(name="Driver", status="ok", found=found)
    wanted = max(short.values())
    packages = ", ".join(f"{package} (CUDA {major})" for package, major in short.items())
    return Row(
        name="Driver",
        status="limited",
        found=f"{found}: too old for {packages}",
        remedy=install_driver(machine, DRIVER_OF_CUDA.get(wanted, 580)),
    )


def install_driver(machine: Machine, branch: int = 580) -> str:
    """Return what installs a driver of at least this branch."""
    system = machine.read("etc/os-release") or ""
    if re.search(r"^ID=ubuntu", system, re.MULTILINE):
        return f"sudo apt install nvidia-driver-{branch}-open && sudo reboot"
    return f"install NVIDIA driver {branch} or newer and reboot: {_DRIVER_PAGE}"


def _driver_remedy(machine: Machine, graphics: Graphics) -> str:
    """Return what makes a GPU usable that is there and does not answer."""
    if "mismatch" in (graphics.problem or ""):
        return "sudo reboot   (the driver was updated under a running kernel module)"
    if (machine.root / ".dockerenv").exists():
        return "start the container with the GPU: docker run --gpus all …"
    return install_driver(machine)


def toolkit_row(machine: Machine) -> Row:
    """Say which CUDA toolkit is there; only building the plugin library needs one."""
    version = re.search(r"release (\d+\.\d+)(?:, V([\d.]+))?", machine.run(["nvcc", "--version"]) or "")
    if version:
        return Row(name="CUDA toolkit", status="ok", found=f"nvcc {version[2] or version[1]}")
    for place in _NVCC_PLACES:
        if (machine.root / place).exists():
            folder = "/" + place.rpartition("/")[0]
            found = f"/{place}, not on PATH"
            return Row(name="CUDA toolkit", status="limited", found=found, remedy=f"export PATH={folder}:$PATH")
    return Row(
        name="CUDA toolkit",
        status="missing",
        found="no nvcc; only compiling the plugin library needs it",
        remedy="https://developer.nvidia.com/cuda-downloads",
    )


def clocks_row(machine: Machine, graphics: Graphics) -> Row:
    """Say how fast a desktop's or a server's first GPU runs now, what it draws, and whether it is held back."""
    name = "Clocks and power"
    if not graphics.gpus:
        return Row(name=name, status="n/a", found="no GPU that can be used")
    fields = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,pstate"
    output = machine.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]) or ""
    cells = [cell.strip() for cell in (output.splitlines() or [""])[0].split(",")]
    if len(cells) != fields.count(",") + 1:
        return Row(name=name, status="missing", found="nvidia-smi does not tell", remedy="nvidia-smi -q -d CLOCK,POWER")
    clock, highest, memory, draw, limit, heat, state = cells
    found = f"SM {clock} of {highest} MHz, memory {memory} MHz, {draw} of {limit} W, {heat} °C, {state}"
    if reasons := _throttles(machine):
        return Row(
            name=name,
            status="limited",
            found=f"{found}; held back: {', '.join(reasons)}",
            remedy="nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER   (let it cool or raise the limit before timing)",
        )
    return Row(name=name, status="ok", found=f"{found}; not throttled")


def _throttles(machine: Machine) -> list[str]:
    """Return why the first GPU's clocks are held back; being idle does not count."""
    for field in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):  # renamed with driver 535
        output = machine.run(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]) or ""
        if mask := re.match(r"0x[0-9a-fA-F]+", output.strip()):
            return [reason for bit, reason in _THROTTLES.items() if int(mask[0], 16) & bit]
    return []
