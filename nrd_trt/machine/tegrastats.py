"""Jetson's own instruments: one line of tegrastats, the GPU's clock in sysfs, over-current events, the power mode.

The line differs between releases: ``GR3D_FREQ 0%@[305]`` (Orin Nano), ``0%@[1300,1300]`` (AGX Orin), ``@[1574,…]``
(Thor); ``GPU@`` or ``gpu@``; JetPack 7 adds the peak to temperatures and rails. -256 °C is a sensor switched off.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from nrd_trt.machine.readings import Reading

_COMMAND = ("tegrastats", "--interval", "200")
_TIMEOUT_S = 5.0
_BOARD_RAILS = ("VIN", "VDD_IN", "VIN_SYS_5V0")
"""Rails in the order of how much of the board they feed; the first one present is the board's power."""

_CLOCK = re.compile(r"\bGR3D_FREQ\s+(?:\d+%)?@\[?([\d,\s]*)")
_TEMPERATURE = re.compile(r"\b(gpu|tj)@(-?[\d.]+)C", re.IGNORECASE)
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*)\s+(\d+)mW/")
_MEMORY = re.compile(r"\bRAM\s+(\d+)/\d+MB")


def parse_line(line: str) -> Reading:
    """Read one line of tegrastats; what it does not tell is None.

    The temperature is the GPU's, or the junction's where that sensor is off. A GPU clock of 0 is a GPU that is switched
    off, which is what it is before a run.
    """
    temperatures = {name.lower(): float(value) for name, value in _TEMPERATURE.findall(line)}
    known = [temperatures[name] for name in ("gpu", "tj") if temperatures.get(name, -256.0) > -256.0]
    rails = {name: int(value) / 1000 for name, value in _RAIL.findall(line)}
    memory = _MEMORY.search(line)
    return Reading(
        clock_mhz=_clock(line),
        power_w=next((rails[name] for name in _BOARD_RAILS if name in rails), None),
        temperature_c=known[0] if known else None,
        memory_used_mib=float(memory[1]) if memory else None,
    )


def _clock(line: str) -> float | None:
    """Return the fastest of the GPU's clocks: parts of it may be switched off."""
    found = _CLOCK.search(line)
    values = [float(value) for value in re.findall(r"\d+", found[1])] if found else []
    return max(values, default=None)


def read_line(command: Sequence[str] = _COMMAND, timeout_s: float = _TIMEOUT_S) -> str:
    """Return the first line that tegrastats prints, or an empty one where it is absent or silent."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return ""
    with process:
        watchdog = threading.Timer(timeout_s, process.kill)
        watchdog.start()
        try:
            return process.stdout.readline() if process.stdout is not None else ""
        finally:
            watchdog.cancel()
            process.kill()


def gpu_clock_mhz(root: Path = Path("/sys/class/devfreq")) -> tuple[float | None, float | None]:
    """Return the GPU's clock now and the largest that the power mode allows, in MHz; cheap enough for every round."""
    for folder in sorted(root.glob("*")):
        if re.search(r"gpu|ga10b|gv11b", folder.name):
            return _mhz(folder / "cur_freq"), _mhz(folder / "max_freq")
    return None, None


def _mhz(path: Path) -> float | None:
    try:
        return int(path.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def over_current_events(root: Path = Path("/sys/class/hwmon")) -> int | None:
    """Return how often over-current protection has throttled since the start, or None where it is not counted."""
    counters = sorted(root.glob("hwmon*/oc*_event_cnt"))
    try:
        return sum(int(path.read_text()) for path in counters) if counters else None
    except (OSError, ValueError):
        return None


def power_mode(command: Sequence[str] = ("nvpmodel", "-q")) -> str | None:
    """Return the name of the power mode, e.g. ``"MAXN"``, or None where it cannot be read."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"NV Power Mode:\s*(\S+)", result.stdout)
    return found[1] if found else None
