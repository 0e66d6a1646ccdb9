"""What machine `gpu_check` runs on: GPU, clocks, tools and versions. Standard library only."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import shutil
import statistics
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

PACKAGES = (
    *("torch", "numpy", "onnx", "onnxruntime", "cuda-python", "cuda-bindings", "cupy-cuda12x", "cupy-cuda13x"),
    *("tensorrt", "tensorrt-rtx-cu13", "pytest"),
)
CUDA_FOLDER = Path("/usr/local/cuda")
CLOCK_FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
_NO_DEVICE = 100
_ATTRIBUTES = {"multiprocessors": 16, "clock_khz": 13, "major": 75, "minor": 76}
"""Numbers of ``CUdevice_attribute``."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU that programs see first.

    Attributes:
        name: Marketing name.
        compute_capability: ``"8.7"``.
        multiprocessors: Their number.
        clock_mhz: The highest of the multiprocessors.
        memory_bytes: Total device memory.
        cuda_driver: CUDA version that the driver supports.
        bus_id: As nvidia-smi takes it.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    clock_mhz: float
    memory_bytes: int
    cuda_driver: str
    bus_id: str

    @property
    def architecture(self) -> str:
        """As CMake takes it: ``"87"``."""
        return self.compute_capability.replace(".", "")


def find_gpu() -> Gpu | str:
    """Return the first GPU, or why there is none, asked of the driver itself: no package is needed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 was not found"
    if (code := driver.cuInit(0)) != 0:
        return (
            "the driver finds no NVIDIA GPU" if code == _NO_DEVICE else f"the driver does not start: CUDA error {code}"
        )
    device, version, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name, bus_id = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
    calls = (
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceGetPCIBusId(bus_id, len(bus_id), device),
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        driver.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(calls):
        return f"the driver does not describe its GPU: CUDA error {max(calls)}"
    values = {}
    for key, number in _ATTRIBUTES.items():
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        values[key] = value.value
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{values['major']}.{values['minor']}",
        multiprocessors=values["multiprocessors"],
        clock_mhz=values["clock_khz"] / 1000,
        memory_bytes=memory.value,
        cuda_driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
        bus_id=bus_id.value.decode(),
    )


def find_tool(name: str) -> Path | None:
    """Find a program on the path or in the CUDA toolkit, which JetPack leaves out of it."""
    places = os.pathsep.join(
        [os.environ.get("PATH", ""), str(CUDA_FOLDER / "bin"), str(CUDA_FOLDER / "compute-sanitizer")]
    )
    found = shutil.which(name, path=places)
    return Path(found) if found else None


def describe_machine(gpu: Gpu, root: Path) -> dict[str, Any]:
    """Return GPU, driver, host, tools and versions; what is absent is left out or None."""
    return {
        "gpu": {key: value for key, value in asdict(gpu).items() if key != "bus_id"},
        "driver": _smi(gpu, "driver_version"),
        "cores": len(os.sched_getaffinity(0)),
        "platform": f"{platform.system()} {platform.machine()}, glibc {platform.libc_ver()[1] or 'unknown'}",
        "python": platform.python_version(),
        "nvcc": _found("nvcc", "--version", r"release ([\d.]+)"),
        "cmake": _found("cmake", "--version", r"version ([\d.]+)"),
        "compute_sanitizer": _found("compute-sanitizer", "--version", r"Version ([\d.]+)"),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(root),
    }


class ClockLog:
    """Asks nvidia-smi for clocks, power and temperature five times a second while it is entered."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._process: subprocess.Popen[str] | None = None
        self._text = ""

    def __enter__(self) -> ClockLog:
        command = _smi_command(self._gpu, ",".join(CLOCK_FIELDS))
        if command is not None:
            self._process = subprocess.Popen(
                [*command, "-lms", "200"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._text, _ = self._process.communicate()

    def summary(self) -> dict[str, float] | None:
        """Return medians and maxima, or None where nvidia-smi said nothing (a Jetson's has no such figures)."""
        return summarise_clocks(self._text)


def summarise_clocks(text: str) -> dict[str, float] | None:
    """Reduce lines of `CLOCK_FIELDS` to ``NAME_median`` and ``NAME_max``; figures that are not given are left out."""
    columns: dict[str, list[float]] = {name: [] for name in CLOCK_FIELDS}
    for line in text.splitlines():
        for name, cell in zip(CLOCK_FIELDS, line.split(","), strict=False):
            if re.fullmatch(r"\s*[\d.]+\s*", cell):
                columns[name].append(float(cell))
    found: dict[str, float] = {}
    for name, values in columns.items():
        if values:
            key = name.replace(".", "_")
            found |= {f"{key}_median": statistics.median(values), f"{key}_max": max(values)}
    return found or None


def _smi_command(gpu: Gpu, fields: str) -> list[str] | None:
    tool = find_tool("nvidia-smi")
    return [str(tool), "-i", gpu.bus_id, f"--query-gpu={fields}", "--format=csv,noheader,nounits"] if tool else None


def _smi(gpu: Gpu, field: str) -> str | None:
    command = _smi_command(gpu, field)
    text = _output(command) if command else None
    return text.strip().splitlines()[0] if text and text.strip() else None


def _found(tool: str, option: str, pattern: str) -> str | None:
    path = find_tool(tool)
    found = re.search(pattern, _output([str(path), option]) or "") if path else None
    return found[1] if found else None


def _commit(root: Path) -> str | None:
    """The commit, marked where files differ from it."""
    head = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return f"{head.strip()}{' with changes' if changed and changed.strip() else ''}" if head else None


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
