"""Clocks, power, temperature and throttling of a GPU during a run, by NVML or by tegrastats. Both are optional.

The energy of the run is measured by the same instrument: by NVML's counter, or by the rails that a Jetson has in sysfs.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from nrd_trt.errors import MissingDependencyError
from nrd_trt.machine.cuda import probe_device
from nrd_trt.machine.energy import CounterMeter, Energy, EnergyMeter, SamplingMeter
from nrd_trt.machine.gpu import Gpu, kernel_driver, throttle_reasons
from nrd_trt.machine.host import Machine
from nrd_trt.machine.jetson import (
    PowerMode,
    find_jetson,
    find_rails,
    gpu_clock,
    over_current_events,
    power_mode,
    rails_power_w,
    read_tegrastats,
)
from nrd_trt.optional import require

_GLANCE_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One look at a device; None is not readable.

    Attributes:
        clock_mhz: GPU clock.
        clock_max_mhz: The largest that the GPU, or its power mode, allows.
        power_w: Power of the GPU, on a Jetson of the board.
        temperature_c: Temperature of the GPU.
        memory_used_mib: Memory of the device in use by all processes.
        throttle: Reasons for which clocks were lowered, other than idleness and a user's setting.
    """

    clock_mhz: float | None = None
    clock_max_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    memory_used_mib: float | None = None
    throttle: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProbedDevice:
    """What does not change during a run.

    Attributes:
        source: ``"nvml"`` or ``"tegrastats"``.
        name: Name of the GPU, on a Jetson of the board.
        driver: Version of the NVIDIA driver.
        power_mode: Mode of nvpmodel on a Jetson, e.g. ``"MAXN"``.
    """

    source: str
    name: str | None = None
    driver: str | None = None
    power_mode: str | None = None


class NvmlProbe:
    """NVML on the first GPU that CUDA programs of this process see.

    Args:
        nvml: The module ``pynvml``.
        gpu: What CUDA tells of that GPU; None where it does not, so that the environment has to.

    Attributes:
        notes: What a reader of its figures must know.
    """

    def __init__(self, nvml: ModuleType, gpu: Gpu | None = None) -> None:
        self.notes: list[str] = []
        self._nvml: Any = nvml
        nvml.nvmlInit()
        try:
            self._handle = self._find(gpu)
        except nvml.NVMLError:
            nvml.nvmlShutdown()
            raise

    def device(self) -> ProbedDevice:
        """Return name and driver."""
        driver = self._ask(self._nvml.nvmlSystemGetDriverVersion)
        return ProbedDevice(source="nvml", name=self._get("nvmlDeviceGetName"), driver=driver)

    def read(self) -> Reading:
        """Return the whole reading, at leisure: before and after a run."""
        return replace(
            self.glance(),
            clock_max_mhz=self._get("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_SM),
            temperature_c=self._get("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
        )

    def glance(self) -> Reading:
        """Return clock, power, memory and throttle reasons within about a millisecond: during a run."""
        power, memory = self._get("nvmlDeviceGetPowerUsage"), self._get("nvmlDeviceGetMemoryInfo")
        # Drivers before 535 know the reasons by their older name only.
        reasons = self._get("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = self._get("nvmlDeviceGetCurrentClocksThrottleReasons")
        return Reading(
            clock_mhz=self._get("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            power_w=None if power is None else power / 1000,
            memory_used_mib=None if memory is None else memory.used / 2**20,
            throttle=throttle_reasons(reasons or 0),
        )

    def meter(self) -> EnergyMeter:
        """Return what measures the GPU's energy; NVML has a counter since Volta."""
        return CounterMeter(self._joules, "NVML's counter")

    def close(self) -> None:
        """Release NVML."""
        self._nvml.nvmlShutdown()

    def _joules(self) -> float | None:
        millijoules = self._get("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def _find(self, gpu: Gpu | None) -> Any:
        if gpu is not None and (gpu.uuid or "").startswith("MIG-"):
            self.notes.append("a part of a GPU ran (MIG): clocks, power and energy are those of the whole GPU")
        if gpu is not None and gpu.pci_bus_id is not None:
            return self._nvml.nvmlDeviceGetHandleByPciBusId(gpu.pci_bus_id)
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if first.startswith("GPU-"):
            return self._nvml.nvmlDeviceGetHandleByUUID(first)
        if not first and self._nvml.nvmlDeviceGetCount() > 1:
            self.notes.append("several GPUs: clocks are those of NVML's first, which may not be the one that ran")
        return self._nvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)

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

    def __init__(self, machine: Machine) -> None:
        self.notes: list[str] = []
        self._machine = machine
        self._events = over_current_events(machine)

    def device(self) -> ProbedDevice:
        """Return the board, its driver and its power mode."""
        board, mode = find_jetson(self._machine), power_mode(self._machine)
        return ProbedDevice(
            source="tegrastats",
            name=board.model if board else None,
            driver=kernel_driver(self._machine),
            power_mode=mode.name if isinstance(mode, PowerMode) else None,
        )

    def read(self) -> Reading:
        """Return one line of tegrastats with the clocks of sysfs; takes a fraction of a second."""
        stats, glance = read_tegrastats(self._machine), self.glance()
        events = over_current_events(self._machine)
        grown = events is not None and self._events is not None and events > self._events
        return Reading(
            clock_mhz=stats.clock_mhz if stats.clock_mhz is not None else glance.clock_mhz,
            clock_max_mhz=glance.clock_max_mhz,
            power_w=stats.power_w,
            temperature_c=stats.temperature_c,
            memory_used_mib=stats.memory_used_mib,
            throttle=("over-current protection",) if grown else (),
        )

    def glance(self) -> Reading:
        """Return the clocks."""
        clock = gpu_clock(self._machine)
        return Reading(clock_mhz=clock.now, clock_max_mhz=clock.highest)

    def meter(self) -> EnergyMeter:
        """Return what measures the board's energy, by the rails that tegrastats sums up too."""
        rails = find_rails(self._machine)
        source = f"rails {', '.join(rail.name for rail in rails)} in sysfs, sampled"
        return SamplingMeter(lambda: rails_power_w(self._machine, rails), source)

    def close(self) -> None:
        """Nothing is held."""


Probe = NvmlProbe | TegraProbe
"""An instrument."""


def open_probe() -> tuple[Probe | None, str | None]:
    """Return the instrument for the GPU in use, or None and a sentence about why there is none."""
    if shutil.which("tegrastats"):
        return TegraProbe(Machine()), None
    try:
        nvml = require("pynvml", extra="gpu", purpose="reading clocks, power and throttling")
    except MissingDependencyError as exc:
        return None, f"clocks, throttling and energy were not read: {exc}"
    try:
        return NvmlProbe(nvml, probe_device()), None
    except nvml.NVMLError as exc:
        return None, f"clocks, throttling and energy were not read: NVML says {exc}"


@dataclass(frozen=True, kw_only=True)
class DeviceLog:
    """The device before, during and after a run.

    Attributes:
        before: Before the warm-up.
        during: Now and then from the first timed call to the last.
        after: Right after the last.
        energy: What the timed calls took, or None where it was not told.
    """

    before: Reading
    during: Sequence[Reading]
    after: Reading
    energy: Energy | None = None

    @property
    def clock_max_mhz(self) -> float | None:
        """The largest clock that the device allows."""
        return _largest(reading.clock_max_mhz for reading in (self.before, *self.during, self.after))

    @property
    def throttle(self) -> list[str]:
        """Reasons seen during or right after the run; one from before it has passed."""
        return sorted({reason for reading in (*self.during, self.after) for reason in reading.throttle})

    @property
    def memory_grown_mib(self) -> float | None:
        """How much more memory the device held than before, at most; other processes count as well."""
        peak = _largest(reading.memory_used_mib for reading in (*self.during, self.after))
        if peak is None or self.before.memory_used_mib is None:
            return None
        return max(0.0, peak - self.before.memory_used_mib)

    def median(self, name: str) -> float | None:
        """Return the median during the run of a figure of `Reading`, or None where it was not told."""
        known = [value for reading in self.during if (value := getattr(reading, name)) is not None]
        return statistics.median(known) if known else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: clocks in MHz, watts, degrees Celsius."""
        return {
            "clock_mhz": {**self._course("clock_mhz"), "max": self.clock_max_mhz},
            "power_w": self._course("power_w"),
            "temperature_c": self._course("temperature_c"),
            "throttle": self.throttle,
        }

    def _course(self, name: str) -> dict[str, float | None]:
        return {"before": getattr(self.before, name), "during": self.median(name), "after": getattr(self.after, name)}


class DeviceMonitor:
    """Looks at a device before, during and after a run; `glance` is cheap and looks at most every fifth of a second.

    Attributes:
        meter: To be entered for what shall count as energy of the run.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.meter = probe.meter()
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
        after = self._probe.read()
        return DeviceLog(before=self._before, during=tuple(self._during), after=after, energy=self.meter.energy)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
