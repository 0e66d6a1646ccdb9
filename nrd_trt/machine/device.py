"""Clocks, power, temperature and throttling of the device under test, by NVML or by tegrastats. Both are optional."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from types import ModuleType
from typing import Any

from nrd_trt.errors import MissingDependencyError
from nrd_trt.machine import tegrastats
from nrd_trt.machine.readings import DeviceLog, Probe, Reading
from nrd_trt.optional import require

_GLANCE_EVERY_S = 0.2

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
"""NVML's bits by what they mean; 0x1 (idle) and 0x2 (clocks set by a user) are no throttling."""


def throttle_reasons(mask: int) -> tuple[str, ...]:
    """Name the bits of NVML's clock event reasons, idleness and a user's setting left out; unknown bits by number."""
    bits = [1 << index for index in range(mask.bit_length()) if mask >> index & 1]
    return tuple(THROTTLE_REASONS.get(bit, f"reason {bit:#x}") for bit in bits if bit > 0x2)


def open_probe(bus_id: str | None = None) -> tuple[Probe | None, str | None]:
    """Return the instrument for the GPU in use, or None and a sentence about why there is none.

    Args:
        bus_id: PCI bus id of the GPU, where the runner tells it.
    """
    if shutil.which("tegrastats"):
        return TegraProbe(), None
    try:
        nvml = require("pynvml", extra="gpu", purpose="reading clocks, power and throttling")
    except MissingDependencyError as exc:
        return None, f"clocks and throttling were not read: {exc}"
    try:
        return NvmlProbe(nvml, bus_id), None
    except nvml.NVMLError as exc:
        return None, f"clocks and throttling were not read: NVML says {exc}"


class NvmlProbe:
    """NVML on one GPU.

    Args:
        nvml: The module ``pynvml``.
        bus_id: PCI bus id; None takes the first visible GPU.
    """

    source = "nvml"

    def __init__(self, nvml: ModuleType, bus_id: str | None = None) -> None:
        self.notes: list[str] = []
        self._nvml: Any = nvml
        nvml.nvmlInit()
        try:
            self._handle = self._find(bus_id)
        except nvml.NVMLError:
            nvml.nvmlShutdown()
            raise

    def facts(self) -> dict[str, Any]:
        """Return name and driver."""
        return {
            "name": _text(self._get("nvmlDeviceGetName")),
            "driver": _text(self._ask(self._nvml.nvmlSystemGetDriverVersion)),
        }

    def read(self) -> Reading:
        """Return the whole reading."""
        nvml = self._nvml
        power, memory = self._get("nvmlDeviceGetPowerUsage"), self._get("nvmlDeviceGetMemoryInfo")
        maximum = self._get("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)
        return replace(
            self.glance(),
            clock_max_mhz=_number(maximum),
            power_w=None if power is None else power / 1000,
            temperature_c=_number(self._get("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)),
            memory_used_mib=None if memory is None else memory.used / 2**20,
        )

    def glance(self) -> Reading:
        """Return clock, power, memory and throttle reasons."""
        power, memory = self._get("nvmlDeviceGetPowerUsage"), self._get("nvmlDeviceGetMemoryInfo")
        return Reading(
            clock_mhz=_number(self._get("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)),
            power_w=None if power is None else power / 1000,
            memory_used_mib=None if memory is None else memory.used / 2**20,
            throttle=throttle_reasons(self._reasons()),
        )

    def close(self) -> None:
        """Release NVML."""
        self._nvml.nvmlShutdown()

    def _find(self, bus_id: str | None) -> Any:
        if bus_id is not None:
            return self._nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if first.startswith("GPU-"):
            return self._nvml.nvmlDeviceGetHandleByUUID(first)
        if not first and self._nvml.nvmlDeviceGetCount() > 1:
            self.notes.append("several GPUs: clocks are those of NVML's first, which may not be the one that ran")
        return self._nvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)

    def _reasons(self) -> int:
        """Return the mask of clock event reasons, which drivers before 535 know by its older name only."""
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            mask = self._get(name) if hasattr(self._nvml, name) else None
            if mask is not None:
                return int(mask)
        return 0

    def _get(self, function: str, *arguments: Any) -> Any:
        return self._ask(getattr(self._nvml, function), self._handle, *arguments)

    def _ask(self, function: Any, *arguments: Any) -> Any:
        """Return an answer, or None for a figure that this GPU or driver does not tell."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


class TegraProbe:
    """tegrastats before and after, the clock in sysfs during a run."""

    source = "tegrastats"

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._events = tegrastats.over_current_events()

    def facts(self) -> dict[str, Any]:
        """Return the power mode."""
        return {"power_mode": tegrastats.power_mode()}

    def read(self) -> Reading:
        """Return one line of tegrastats with the clocks of sysfs; takes a fraction of a second."""
        reading, glance = tegrastats.parse_line(tegrastats.read_line()), self.glance()
        return replace(
            reading,
            clock_mhz=reading.clock_mhz if reading.clock_mhz is not None else glance.clock_mhz,
            clock_max_mhz=glance.clock_max_mhz,
            throttle=self._throttle(),
        )

    def glance(self) -> Reading:
        """Return the clocks."""
        clock, maximum = tegrastats.gpu_clock_mhz()
        return Reading(clock_mhz=clock, clock_max_mhz=maximum)

    def close(self) -> None:
        """Nothing is held."""

    def _throttle(self) -> tuple[str, ...]:
        """Over-current events since this probe was made."""
        events = tegrastats.over_current_events()
        grown = events is not None and self._events is not None and events > self._events
        return ("over-current protection",) if grown else ()


class Recorder:
    """Looks at a device before, during and after a run; `glance` is cheap and looks at most every fifth of a second."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._before = probe.read()
        self._during: list[Reading] = []
        self._last = float("-inf")

    def glance(self) -> None:
        """Look, unless it looked just before."""
        now = time.monotonic()
        if now - self._last >= _GLANCE_EVERY_S:
            self._during.append(self._probe.glance())
            self._last = time.monotonic()

    def finish(self) -> DeviceLog:
        """Look a last time."""
        return DeviceLog(before=self._before, during=tuple(self._during), after=self._probe.read())


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
