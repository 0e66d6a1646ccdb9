"""Rows of `nrd_trt.machine.doctor` on hardware and host: GPUs, the driver, clocks, Jetson boards, memory, disk."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from nrd_trt.engine.compat import lacks
from nrd_trt.errors import ConfigError
from nrd_trt.machine.findings import Inventory, Row
from nrd_trt.machine.gpu import DRIVER_OF_CUDA, query, throttle_reasons
from nrd_trt.machine.host import Machine, host_facts, memory_bytes
from nrd_trt.machine.jetson import PowerMode, TegraStats, gpu_clock, power_mode, read_tegrastats
from nrd_trt.machine.package_rows import REINSTALL, TITLES
from nrd_trt.zoo import checkpoint_path

_NVCC_PLACES = ("usr/local/cuda/bin/nvcc", "opt/cuda/bin/nvcc")
_OLDEST_L4T = (36, 4)  # JetPack 6.1, the first with TensorRT 10.3
_LOW_MEMORY_MIB, _LOW_DISK_MIB = 2048, 2048


# --- GPU and driver --------------------------------------------------------------------------------------------------


def gpu_rows(have: Inventory) -> Iterator[Row]:
    """One row per GPU, or one that says why there is none."""
    graphics, visible = have.graphics, have.machine.environ.get("CUDA_VISIBLE_DEVICES")
    for index, gpu in enumerate(graphics.gpus):
        name = f"GPU {index}" if len(graphics.gpus) > 1 else "GPU"
        found = f"{gpu.name}, compute capability {gpu.compute_capability or 'unknown'}"
        if gpu.memory_bytes is not None and gpu.free_bytes is not None:
            shared = " shared with the CPU" if gpu.integrated else ""
            found += f", {_size(gpu.memory_bytes)}{shared}, {_size(gpu.free_bytes)} free"
        if lacks("fp8", gpu.compute_capability):
            found += "; no plans in fp8"
        if visible in ("", "-1"):
            hidden = f"{found}; hidden by CUDA_VISIBLE_DEVICES={visible!r}"
            yield Row(name, "limited", hidden, "unset CUDA_VISIBLE_DEVICES")
        else:
            yield Row(name, "ok", found)
    if graphics.gpus:
        return
    if graphics.hardware or graphics.problem or graphics.driver:
        found = "an NVIDIA GPU is there and cannot be used" if graphics.hardware else "no GPU that can be used"
        yield Row("GPU", "missing", f"{found}: {graphics.problem}" if graphics.problem else found, _driver_remedy(have))
    else:
        remedy = "none is needed to export, validate, and build with TensorRT-RTX; plans run on a machine with one"
        yield Row("GPU", "missing", "no NVIDIA GPU", remedy)


def driver_row(have: Inventory) -> Row:
    """Say which driver is there and whether it is new enough for the packages that are made for CUDA."""
    graphics = have.graphics
    if graphics.driver is None and graphics.cuda is None:
        if have.jetson is not None:
            release = have.jetson.l4t or "of unknown release"
            return Row("Driver", "ok", f"part of L4T {release}; nvidia-smi is not there to tell more")
        if not graphics.hardware:
            return Row("Driver", "n/a", "no NVIDIA GPU")
        return Row("Driver", "missing", "no driver answers", _driver_remedy(have))
    cuda = f"supports CUDA {graphics.cuda}" if graphics.cuda else "CUDA version not told"
    found = f"{graphics.driver or 'version not told'}, {cuda}"
    if graphics.problem:
        return Row("Driver", "limited", f"{found}: {graphics.problem}", _driver_remedy(have))
    needed = {TITLES[name]: flavour.cuda_major or 0 for name, flavour in have.flavours.items()}
    needed["PyTorch"] = int((have.torch.cuda or "0").split(".")[0])
    short = {package: major for package, major in needed.items() if major > (graphics.cuda_major or 99)}
    if not short:
        return Row("Driver", "ok", found)
    packages = ", ".join(f"{package} (CUDA {major})" for package, major in short.items())
    branch = DRIVER_OF_CUDA.get(max(short.values()), 580)
    return Row("Driver", "limited", f"{found}: too old for {packages}", _install_driver(have.machine, branch))


def _driver_remedy(have: Inventory) -> str:
    """Return what makes a GPU usable that is there and does not answer."""
    if "mismatch" in (have.graphics.problem or ""):
        return "sudo reboot   (the driver was updated under a running kernel module)"
    if (have.machine.root / ".dockerenv").exists():
        return "start the container with the GPU: docker run --gpus all …"
    return _install_driver(have.machine, 580)


def _install_driver(machine: Machine, branch: int) -> str:
    if re.search(r"^ID=ubuntu", machine.read("etc/os-release"), re.MULTILINE):
        return f"sudo apt install nvidia-driver-{branch}-open && sudo reboot"
    return f"install NVIDIA driver {branch} or newer and reboot: https://www.nvidia.com/drivers"


def toolkit_row(machine: Machine) -> Row:
    """Say which CUDA toolkit is there; only building the plugin library needs one."""
    name = "CUDA toolkit"
    version = re.search(r"release (\d+\.\d+)(?:, V([\d.]+))?", machine.run(["nvcc", "-V"]) or "")
    if version:
        return Row(name, "ok", f"nvcc {version[2] or version[1]}")
    for place in _NVCC_PLACES:
        if (machine.root / place).exists():
            folder = "/" + place.rpartition("/")[0]
            return Row(name, "limited", f"/{place}, not on PATH", f"export PATH={folder}:$PATH")
    found = "no nvcc; only compiling the plugin library needs it"
    return Row(name, "missing", found, "https://developer.nvidia.com/cuda-downloads")


def clocks_row(have: Inventory) -> Row:
    """Say how fast the GPU that programs use runs now, what it draws, and what holds it back; not of a Jetson."""
    name = "Clocks and power"
    if not have.graphics.gpus:
        return Row(name, "n/a", "no GPU that can be used")
    fields = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,pstate"
    told = query(have.machine, fields, have.graphics.used)
    if not told:
        return Row(name, "missing", "nvidia-smi does not tell", "nvidia-smi -q -d CLOCK,POWER")
    clock, highest, memory, draw, limit, heat, state = told[0]
    found = f"SM {clock} of {highest} MHz, memory {memory} MHz, {draw} of {limit} W, {heat} °C, {state}"
    renamed = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # the older name until driver 535
    masks = [
        row[0] for field in renamed for row in query(have.machine, field, have.graphics.used) if row[0].startswith("0x")
    ]
    if reasons := throttle_reasons(int(masks[0], 16)) if masks else ():
        remedy = "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER   (let it cool or raise the limit before timing)"
        return Row(name, "limited", f"{found}; held back: {', '.join(reasons)}", remedy)
    return Row(name, "ok", f"{found}; not throttled")


# --- Jetson ----------------------------------------------------------------------------------------------------------


def jetpack_row(have: Inventory) -> Row:
    """Say which JetPack is there, and whether its TensorRT is new enough."""
    name, jetson = "JetPack / L4T", have.jetson
    if jetson is None:
        return Row(name, "n/a", "not a Jetson")
    if jetson.l4t is None:
        found = f"{jetson.model}; /etc/nv_tegra_release is not readable (in a container?)"
        remedy = "docker run --runtime nvidia -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro …"
        return Row(name, "limited", found, remedy)
    found = f"{jetson.model}: L4T {jetson.l4t}, JetPack {jetson.jetpack or 'of unknown version'}"
    if tuple(int(part) for part in jetson.l4t.split(".")[:2]) < _OLDEST_L4T:
        remedy = "flash JetPack 6.2 or later: https://developer.nvidia.com/embedded/jetpack"
        return Row(name, "limited", f"{found}; its TensorRT is older than 10.3", remedy)
    if not {"nvidia-jetpack", "nvidia-jetpack-dev"} & set(jetson.packages):
        remedy = "sudo apt update && sudo apt install nvidia-jetpack"
        return Row(name, "limited", f"{found}; the JetPack packages are not installed", remedy)
    return Row(name, "ok", found)


def power_mode_row(have: Inventory) -> Row:
    """Say which nvpmodel mode is set."""
    name = "Power mode (nvpmodel)"
    if have.jetson is None:
        return Row(name, "n/a", "not a Jetson")
    mode = power_mode(have.machine)
    if not isinstance(mode, PowerMode):
        return Row(name, "missing", mode, "sudo nvpmodel -q")
    found = mode.name if mode.number is None else f"{mode.name} (mode {mode.number})"
    if mode.name.startswith("MAXN"):
        return Row(name, "ok", found)
    remedy = "sudo nvpmodel -m 0   (MAXN on most boards; `sudo nvpmodel -p --verbose` lists the modes)"
    return Row(name, "limited", f"{found}: a power budget caps the clocks", remedy)


def jetson_clocks_row(machine: Machine) -> Row:
    """Say whether the clocks of a Jetson are held, and what it draws."""
    name = "Clocks and power"
    clock, sample = gpu_clock(machine), _sample(read_tegrastats(machine))
    if clock.now is None or clock.lowest is None or clock.highest is None:
        found = "; ".join(filter(None, ("sysfs does not tell the GPU's clock", sample)))
        return Row(name, "limited" if sample else "missing", found, "sudo jetson_clocks --show")
    found = f"GPU {clock.now:.0f} MHz of {clock.lowest:.0f}–{clock.highest:.0f}" + (f"; {sample}" if sample else "")
    if clock.lowest < clock.highest:
        remedy = "sudo jetson_clocks   (until the next boot)"
        return Row(name, "limited", f"{found}; the clocks follow the load, so timings scatter", remedy)
    return Row(name, "ok", f"{found}; held")


def _sample(stats: TegraStats) -> str | None:
    """Return memory, temperature and power in words."""
    if stats.memory_mib is None:
        return None
    parts = [f"RAM {stats.memory_used_mib} of {stats.memory_mib} MB"]
    if stats.temperature_c is not None:
        parts.append(f"{stats.temperature_c:.0f} °C")
    if stats.power_w is not None:
        parts.append(f"{stats.power_w:.1f} W" + (f" over {stats.rails} rails" if stats.rails else ""))
    return ", ".join(parts)


# --- the host --------------------------------------------------------------------------------------------------------


def cpu_row(machine: Machine) -> Row:
    """Say how many cores this process may use, and which instructions they have for the types of files."""
    facts = host_facts(machine)
    cores = f"{facts.cores} core{'s' if facts.cores != 1 else ''}"
    return Row("CPU", "ok", ", ".join([cores, facts.cpu or facts.machine, " ".join(facts.instructions)]).rstrip(", "))


def memory_row(machine: Machine) -> Row:
    """Say how much memory is free, within the limit of a container where there is one."""
    told = memory_bytes(machine)
    if told is None:
        return Row("Memory", "missing", "/proc/meminfo does not tell", "free -h")
    total, free = told
    limit, used = (machine.read_number(f"sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit is not None and used is not None and limit < total:
        total, free = limit, min(free, limit - used)
    found = f"{_size(free)} free of {_size(total)}"
    if free < _LOW_MEMORY_MIB << 20:
        found = f"{found}; builds and training need about 2 GiB"
        return Row("Memory", "limited", found, "end other programs, or add swap")
    return Row("Memory", "ok", found)


def disk_row(machine: Machine) -> Row:
    """Say how much room the current folder has."""
    try:
        usage = shutil.disk_usage(machine.folder)
    except OSError as exc:
        return Row("Disk", "missing", f"{machine.folder}: {exc}", "cd to another folder")
    found = f"{_size(usage.free)} free of {_size(usage.total)} in {machine.folder}"
    if usage.free < _LOW_DISK_MIB << 20:
        return Row("Disk", "limited", found, "free some space, or write bundles elsewhere")
    return Row("Disk", "ok", found)


def zoo_row(name: str = "nrd_mobilenetv2_camvid") -> Row:
    """Say whether the checkpoint of the package is there."""
    try:
        path = checkpoint_path(name)
    except ConfigError as exc:
        return Row("Zoo checkpoint", "missing", str(exc), f"{REINSTALL} nrd-trt   (in a checkout: git lfs pull)")
    return Row("Zoo checkpoint", "ok", f"{name}, {_size(path.stat().st_size)}")


def camvid_row(machine: Machine) -> Row:
    """Say whether CamVid is where the tests and the demo look."""
    given, checkout = machine.environ.get("NRD_TRT_CAMVID"), machine.checkout
    place = Path(given) if given else checkout and checkout.parent / "shared" / "data" / "camvid"
    if place is not None:
        train, val = (len(list((place / part / "images").glob("*"))) for part in ("train", "val"))
        if val:
            return Row("CamVid", "ok", f"{place}: {train} training and {val} validation images")
    found = f"not in {place}" if place else "NRD_TRT_CAMVID is not set"
    remedy = "export NRD_TRT_CAMVID=DIR with DIR/{train,val}/{images,labels}; without it: drawn scenes"
    return Row("CamVid", "missing", found, remedy)


def _size(count: float) -> str:
    """Format a number of bytes."""
    mib = count / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
