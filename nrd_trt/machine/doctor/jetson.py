"""Jetson boards: which JetPack, which power mode, whether the clocks are held."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nrd_trt.machine.doctor.machine import Machine, Row

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
_OLDEST_L4T = (36, 4)  # JetPack 6.1, the first with TensorRT 10.3
_PACKAGES = ("nvidia-jetpack", "nvidia-jetpack-dev", "python3-libnvinfer")


@dataclass(frozen=True, kw_only=True)
class Jetson:
    """A Jetson board.

    Attributes:
        model: Such as ``"NVIDIA Jetson AGX Orin Developer Kit"``.
        compute_capability: Of its GPU, or None for a chip that this version does not know.
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


def find_jetson(machine: Machine) -> Jetson | None:
    """Return the board, or None where this is no Jetson."""
    release = machine.read("etc/nv_tegra_release") or ""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    compatible = machine.read("proc/device-tree/compatible") or ""
    chip = re.search(r"nvidia,(tegra\d+)", compatible)
    if found is None and chip is None:
        return None
    listing = machine.run(["dpkg-query", "-W", *_PACKAGES]) or ""
    packages = re.findall(r"^([\w.+-]+)(?::\w+)?\t(\S+)$", listing, re.MULTILINE)
    return Jetson(
        model=(machine.read("proc/device-tree/model") or "Jetson").strip(),
        compute_capability=_CAPABILITIES.get(chip[1]) if chip else None,
        l4t=f"{found[1]}.{found[2]}".removesuffix(".0") if found else None,
        packages=dict(packages),
    )


def jetpack_row(jetson: Jetson | None) -> Row:
    """Say which JetPack is there, and whether its TensorRT is new enough."""
    if jetson is None:
        return Row(name="JetPack / L4T", status="n/a", found="not a Jetson")
    if jetson.l4t is None:
        return Row(
            name="JetPack / L4T",
            status="limited",
            found=f"{jetson.model}; /etc/nv_tegra_release is not readable (in a container?)",
            remedy="docker run --runtime nvidia -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro …",
        )
    found = f"{jetson.model}: L4T {jetson.l4t}, JetPack {jetson.jetpack or 'of unknown version'}"
    if tuple(int(part) for part in jetson.l4t.split(".")[:2]) < _OLDEST_L4T:
        return Row(
            name="JetPack / L4T",
            status="limited",
            found=f"{found}; its TensorRT is older than 10.3",
            remedy="flash JetPack 6.2 or later: https://developer.nvidia.com/embedded/jetpack",
        )
    if "nvidia-jetpack" not in jetson.packages and "nvidia-jetpack-dev" not in jetson.packages:
        return Row(
            name="JetPack / L4T",
            status="limited",
            found=f"{found}; the JetPack packages are not installed",
            remedy="sudo apt update && sudo apt install nvidia-jetpack",
        )
    return Row(name="JetPack / L4T", status="ok", found=found)


def power_mode_row(machine: Machine, jetson: Jetson | None) -> Row:
    """Say which nvpmodel mode is set."""
    name = "Power mode (nvpmodel)"
    if jetson is None:
        return Row(name=name, status="n/a", found="not a Jetson")
    output = machine.run(["nvpmodel", "-q"])
    mode = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+))?", output or "")
    if mode is None:
        found = "nvpmodel is not there" if output is None else "nvpmodel does not tell"
        return Row(name=name, status="missing", found=found, remedy="sudo nvpmodel -q")
    found = f"{mode[1]} (mode {mode[2]})" if mode[2] else mode[1]
    if mode[1].startswith("MAXN"):
        return Row(name=name, status="ok", found=found)
    return Row(
        name=name,
        status="limited",
        found=f"{found}: a power budget caps the clocks",
        remedy="sudo nvpmodel -m 0   (MAXN on most boards; `sudo nvpmodel -p --verbose` lists the modes)",
    )


def clocks_row(machine: Machine) -> Row:
    """Say whether the clocks of a Jetson are held, and what it draws."""
    name = "Clocks and power"
    clocks = machine.run(["jetson_clocks", "--show"])
    sample = _tegrastats(machine)
    gpu = re.search(r"^GPU MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", clocks or "", re.MULTILINE)
    if gpu is None:
        why = "jetson_clocks is not there" if clocks is None else "jetson_clocks tells the clocks to root only"
        found = "; ".join(part for part in (why, sample) if part)
        remedy = "sudo jetson_clocks --show"
        return Row(name=name, status="limited" if sample else "missing", found=found, remedy=remedy)
    low, high, now = (int(value) / 1e6 for value in gpu.groups())
    found = f"GPU {now:.0f} MHz of {low:.0f}–{high:.0f}" + (f"; {sample}" if sample else "")
    if low < high:
        return Row(
            name=name,
            status="limited",
            found=f"{found}; the clocks follow the load, so timings scatter",
            remedy="sudo jetson_clocks   (until the next boot)",
        )
    return Row(name=name, status="ok", found=f"{found}; held")


def _tegrastats(machine: Machine) -> str | None:
    """Return temperature, power and memory of one sample of tegrastats, which prints until it is stopped."""
    output = machine.run(["sh", "-c", "tegrastats --interval 200 | head -n 1"]) or ""
    memory = re.search(r"RAM (\d+)/(\d+)MB", output)
    if memory is None:
        return None
    parts = [f"RAM {memory[1]} of {memory[2]} MB"]
    if hottest := re.search(r"\btj@([\d.]+)C", output):
        parts.append(f"{float(hottest[1]):.0f} °C")
    rails = [int(value) for value in re.findall(r"\bV\w+ (\d+)mW/", output)]
    if total := re.search(r"\b(?:VDD_IN|VIN) (\d+)mW/", output):
        parts.append(f"{int(total[1]) / 1000:.1f} W")
    elif rails:
        parts.append(f"{sum(rails) / 1000:.1f} W over {len(rails)} rails")
    return ", ".join(parts)
