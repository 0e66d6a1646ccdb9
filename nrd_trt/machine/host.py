"""The host of a run: processor, cores and how busy it was. Standard library only."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_DRIVER = Path("/proc/driver/nvidia/version")
_BOARD = Path("/proc/device-tree/model")  # Arm kernels name the board and not the processor


def host_facts() -> dict[str, Any]:
    """Return processor, machine type and the number of cores that this process may use."""
    return {"cpu": cpu_model(), "machine": platform.machine(), "cores": available_cores()}


def load_average() -> float | None:
    """Return the load average of the last minute, or None where the system has none."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str | None:
    """Return the processor's name, on Arm the board's, or None where neither is told."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(_CPUINFO), re.MULTILINE)
    name = found[1] if found else _text(_BOARD).rstrip("\0")
    return name.strip() or platform.processor() or None


def nvidia_driver() -> str | None:
    """Return the version of the loaded NVIDIA driver, or None where there is none (or a Jetson's does not tell)."""
    found = re.search(r"Kernel Module.*?\s(\d{3}\.[\d.]+)", _text(_DRIVER))
    return found[1] if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
