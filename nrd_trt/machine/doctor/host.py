"""The rest of the host: Python, processor, memory, disk, and the files that the examples use."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from nrd_trt.errors import ConfigError
from nrd_trt.machine.doctor.machine import Machine, Row, mib
from nrd_trt.zoo import checkpoint_path

_LOW_MEMORY_MIB, _LOW_DISK_MIB = 2048, 2048


def python_row(machine: Machine) -> Row:
    """Say which Python runs this, on what."""
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', machine.read("etc/os-release") or "", re.MULTILINE)
    found = f"{platform.python_version()}, {machine.python}; {system[1] if system else platform.system()}"
    return Row(name="Python", status="ok", found=f"{found}, {machine.architecture}")


def cpu_row(machine: Machine) -> Row:
    """Say how many cores this process may use."""
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", machine.read("proc/cpuinfo") or "", re.MULTILINE)
    cores = f"{machine.cores} core{'s' if machine.cores != 1 else ''}"
    return Row(name="CPU", status="ok", found=f"{cores}, {model[1].strip() if model else machine.architecture}")


def memory_row(machine: Machine) -> Row:
    """Say how much memory is free, within the limit of a container where there is one."""
    memory = machine.read("proc/meminfo") or ""
    total, free = (re.search(rf"^{key}:\s+(\d+) kB", memory, re.MULTILINE) for key in ("MemTotal", "MemAvailable"))
    if total is None or free is None:
        return Row(name="Memory", status="missing", found="/proc/meminfo does not tell", remedy="free -h")
    total_mib, free_mib = int(total[1]) / 1024, int(free[1]) / 1024
    limit, used = ((machine.read(f"sys/fs/cgroup/memory.{name}") or "").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit() and int(limit) >> 20 < total_mib:
        total_mib = int(limit) / 2**20
        free_mib = min(free_mib, total_mib - int(used) / 2**20)
    found = f"{mib(free_mib)} free of {mib(total_mib)}"
    if free_mib < _LOW_MEMORY_MIB:
        found += "; builds and training need about 2 GiB"
        return Row(name="Memory", status="limited", found=found, remedy="end other programs, or add swap")
    return Row(name="Memory", status="ok", found=found)


def disk_row(machine: Machine) -> Row:
    """Say how much room the current folder has."""
    try:
        usage = shutil.disk_usage(machine.folder)
    except OSError as exc:
        return Row(name="Disk", status="missing", found=f"{machine.folder}: {exc}", remedy="cd to another folder")
    found = f"{mib(usage.free / 2**20)} free of {mib(usage.total / 2**20)} in {machine.folder}"
    if usage.free < _LOW_DISK_MIB << 20:
        return Row(name="Disk", status="limited", found=found, remedy="free some space, or write bundles elsewhere")
    return Row(name="Disk", status="ok", found=found)


def zoo_row(name: str = "nrd_mobilenetv2_camvid") -> Row:
    """Say whether the checkpoint of the package is there."""
    try:
        path = checkpoint_path(name)
    except ConfigError as exc:
        remedy = "pip install --force-reinstall nrd-trt   (in a checkout: git lfs pull)"
        return Row(name="Zoo checkpoint", status="missing", found=str(exc), remedy=remedy)
    return Row(name="Zoo checkpoint", status="ok", found=f"{name}, {mib(path.stat().st_size / 2**20)}")


def camvid_row(machine: Machine) -> Row:
    """Say whether CamVid is where the tests and the demo look."""
    given = machine.environ.get("NRD_TRT_CAMVID")
    places = [Path(given)] if given else []
    if not given and machine.checkout:
        places = [machine.checkout.parent / "shared" / "data" / "camvid"]
    for place in places:
        parts = {part: len(list((place / part / "images").glob("*"))) for part in ("train", "val")}
        if parts["val"]:
            found = f"{place}: {parts['train']} training and {parts['val']} validation images"
            return Row(name="CamVid", status="ok", found=found)
    return Row(
        name="CamVid",
        status="missing",
        found=f"not in {places[0]}" if places else "NRD_TRT_CAMVID is not set",
        remedy="export NRD_TRT_CAMVID=DIR with DIR/{train,val}/{images,labels}; without it: drawn scenes",
    )
