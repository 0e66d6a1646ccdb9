"""Jetson boards: release of Jetson Linux, power mode, the GPU's clock, power rails, and lines of tegrastats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nrd_trt.machine.host import Machine

# L4T release -> JetPack; the text of /etc/nv_tegra_release does not name the JetPack.
_JETPACKS = {
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
_CAPABILITIES = {"tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
_PACKAGES = ("nvidia-jetpack", "nvidia-jetpack-dev", "python3-libnvinfer")
# One line: it prints until it is stopped, and nothing where it cannot read the board.
_TEGRASTATS = ("sh", "-c", "timeout 5 tegrastats --interval 200 | head -n 1")

_INPUT_RAILS = ("VIN", "VDD_IN")
_RAIL = "V[A-Z0-9_]*"  # others are not connected, or sums
_MONITORS = {"ina3221": None, "ina238": "VIN"}  # chips that measure rails, and the rail of one that has no labels

Figure = TypeVar("Figure")


@dataclass(frozen=True, kw_only=True)
class Jetson:
    """A Jetson board.

    Attributes:
        model: Such as ``"NVIDIA Jetson AGX Orin Developer Kit"``.
        compute_capability: That of its GPU, or None for a chip that this version does not know.
        l4t: Release of Jetson Linux such as ``"36.4.3"``, or None.
        packages: Versions of NVIDIA's packages that apt installed.
    """

    model: str
    compute_capability: str | None
    l4t: str | None
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def jetpack(self) -> str | None:
        """The JetPack version, from its package or else from the release."""
        package = self.packages.get("nvidia-jetpack") or self.packages.get("nvidia-jetpack-dev")
        return re.split(r"[+-]", package)[0] if package else _JETPACKS.get(self.l4t or "")


@dataclass(frozen=True, kw_only=True)
class PowerMode:
    """A mode of nvpmodel, e.g. ``"MAXN"`` with number 0; the number is None where it is not told."""

    name: str
    number: int | None


@dataclass(frozen=True, kw_only=True)
class GpuClock:
    """The GPU's clock in MHz, now and within what the power mode allows; None where it is not told."""

    now: float | None = None
    lowest: float | None = None
    highest: float | None = None


@dataclass(frozen=True, kw_only=True)
class TegraStats:
    """One line of tegrastats; what it does not tell is None.

    Attributes:
        clock_mhz: The fastest of the GPU's clocks, parts of it may be switched off; 0 is a GPU that is off.
        power_w: Power of the board where a rail measures its input, otherwise the sum of the module's rails.
        rails: Number of rails in that sum, 0 where a rail measures the input.
        temperature_c: That of the GPU, or of the junction where the GPU's sensor is off.
        memory_used_mib: Memory in use by all processes.
        memory_mib: Memory of the board.
    """

    clock_mhz: float | None = None
    power_w: float | None = None
    rails: int = 0
    temperature_c: float | None = None
    memory_used_mib: int | None = None
    memory_mib: int | None = None


def find_jetson(machine: Machine) -> Jetson | None:
    """Return the board, or None where this is no Jetson."""
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", machine.read("etc/nv_tegra_release"))
    chip = re.search(r"nvidia,(tegra\d+)", machine.read("proc/device-tree/compatible"))
    if release is None and chip is None:
        return None
    listing = machine.run(["dpkg-query", "-W", *_PACKAGES]) or ""
    return Jetson(
        model=machine.read("proc/device-tree/model").strip() or "Jetson",
        compute_capability=_CAPABILITIES.get(chip[1]) if chip else None,
        l4t=f"{release[1]}.{release[2]}".removesuffix(".0") if release else None,
        packages=dict(re.findall(r"^([\w.+-]+)(?::\w+)?\t(\S+)$", listing, re.MULTILINE)),
    )


def power_mode(machine: Machine) -> PowerMode | str:
    """Return the mode that nvpmodel has set, or why it cannot be read."""
    output = machine.run(["nvpmodel", "-q"])
    if output is None:
        return "nvpmodel is not there"
    mode = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+))?", output)
    if mode is None:
        return "nvpmodel does not tell"
    return PowerMode(name=mode[1], number=int(mode[2]) if mode[2] else None)


def gpu_clock(machine: Machine) -> GpuClock:
    """Read the GPU's clock from sysfs, which is cheap enough for every round of a benchmark."""
    for folder in sorted((machine.root / "sys/class/devfreq").glob("*")):
        if re.search(r"gpu|ga10b|gv11b", folder.name):
            hertz = [machine.read_number(folder / f"{name}_freq") for name in ("cur", "min", "max")]
            now, lowest, highest = (None if value is None else value / 1e6 for value in hertz)
            return GpuClock(now=now, lowest=lowest, highest=highest)
    return GpuClock()


def over_current_events(machine: Machine) -> int | None:
    """Return how often over-current protection has throttled since the start, or None where it is not counted."""
    counters = (machine.root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")
    counts = [count for path in counters if (count := machine.read_number(path)) is not None]
    return sum(counts) if counts else None


@dataclass(frozen=True, kw_only=True)
class Rail:
    """A supply whose power is measured.

    Attributes:
        name: Such as ``"VDD_IN"``.
        factors: Files whose product is its power: millivolts and milliamperes, or microwatts alone.
    """

    name: str
    factors: tuple[Path, ...]

    def read_w(self, machine: Machine) -> float | None:
        """Return its power in watts now, or None where it cannot be read."""
        power = 1e-6
        for path in self.factors:
            value = machine.read_number(path)
            if value is None:
                return None
            power *= value
        return power


def find_rails(machine: Machine) -> tuple[Rail, ...]:
    """Return the rail of the board's input where it is measured, otherwise all rails of the module."""
    found = {}
    for folder in sorted((machine.root / "sys/class/hwmon").glob("hwmon*")):
        chip = machine.read(folder / "name").strip()
        for number in range(1, 4) if chip in _MONITORS else ():
            name = machine.read(folder / f"in{number}_label").strip() or _MONITORS[chip] or ""
            power = folder / f"power{number}_input"
            factors = (power,) if power.exists() else (folder / f"in{number}_input", folder / f"curr{number}_input")
            rail = Rail(name=name, factors=factors)
            if re.fullmatch(_RAIL, name) and name not in found and rail.read_w(machine) is not None:
                found[name] = rail
    return tuple(_counted(found).values())


def rails_power_w(machine: Machine, rails: tuple[Rail, ...]) -> float | None:
    """Return what rails take together, in watts; None where one cannot be read."""
    watts = [rail.read_w(machine) for rail in rails]
    known = [value for value in watts if value is not None]
    return sum(known) if known and len(known) == len(watts) else None


def read_tegrastats(machine: Machine) -> TegraStats:
    """Read one line of tegrastats; this takes a fraction of a second."""
    return parse_tegrastats(machine.run(_TEGRASTATS) or "")


def parse_tegrastats(line: str) -> TegraStats:
    """Read a line of tegrastats.

    It differs between releases: ``GR3D_FREQ 0%@[305]`` (Orin Nano), ``0%@[1300,1300]`` (AGX Orin), ``@[1574,…]``
    (Thor); ``GPU@`` or ``gpu@``; JetPack 7 adds the peak to temperatures and rails. -256 °C is a sensor switched off.
    """
    clocks = re.search(r"\bGR3D_FREQ\s+(?:\d+%)?@\[?([\d,\s]*)", line)
    memory = re.search(r"\bRAM\s+(\d+)/(\d+)MB", line)
    sensors = {name.lower(): float(value) for name, value in re.findall(r"(?i)\b(gpu|tj)@(-?[\d.]+)C", line)}
    rails = _counted({name: int(value) for name, value in re.findall(rf"\b({_RAIL})\s+(\d+)mW/", line)})
    return TegraStats(
        clock_mhz=max(map(float, re.findall(r"\d+", clocks[1] if clocks else "")), default=None),
        power_w=sum(rails.values()) / 1000 if rails else None,
        rails=0 if rails.keys() & set(_INPUT_RAILS) else len(rails),
        temperature_c=next((sensors[name] for name in ("gpu", "tj") if sensors.get(name, -256.0) > -256.0), None),
        memory_used_mib=int(memory[1]) if memory else None,
        memory_mib=int(memory[2]) if memory else None,
    )


def _counted(rails: Mapping[str, Figure]) -> Mapping[str, Figure]:
    """Return the rails that make up the power of the board: what comes in, or else all of them."""
    return next(({name: rails[name]} for name in _INPUT_RAILS if name in rails), rails)
