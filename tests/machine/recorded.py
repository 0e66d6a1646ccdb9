"""Machines as commands and files tell of them: what `nrd-trt doctor` would see there.

Thor's release line, AGX Orin's tegrastats, the headers of drivers 540 to 610 and nvidia-smi's complaints are from
public bug reports; the H200's name, memory and driver were read on one; the rest is written after NVIDIA's formats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nrd_trt.machine.host import Machine

PYTHON = "python3"
QUERY = "nvidia-smi --format=csv,noheader,nounits --query-gpu=name,memory.total,memory.free,compute_cap"
TEGRASTATS = "sh -c timeout 5 tegrastats"
CLOCKS = "nvidia-smi --format=csv,noheader,nounits --query-gpu=clocks.sm"
REASONS = "nvidia-smi --format=csv,noheader,nounits --query-gpu=clocks_event_reasons.active"
OLD_REASONS = "nvidia-smi --format=csv,noheader,nounits --query-gpu=clocks_throttle_reasons.active"
UBUNTU = 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nNAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n'
MEMORY = "MemTotal:       65870956 kB\nMemFree:        52000000 kB\nMemAvailable:   60102144 kB\n"
PCI_GPU = {
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
}


def header(driver: str, cuda: str, form: str = "Driver Version: {driver}      CUDA Version: {cuda}") -> str:
    """The first lines of nvidia-smi."""
    line = f"| NVIDIA-SMI {driver}              {form.format(driver=driver, cuda=cuda)}     |"
    return f"Sun Jun  7 08:16:57 2026\n+{'-' * 89}+\n{line}\n|{'-' * 41}+\n"


def clock(now: int, lowest: int, highest: int) -> dict[str, str]:
    """The files of a Jetson's GPU clock in sysfs, in Hz."""
    values = {"cur": now, "min": lowest, "max": highest}
    return {f"sys/class/devfreq/17000000.gpu/{name}_freq": f"{value}\n" for name, value in values.items()}


def hwmon(number: int, chip: str, rails: Sequence[tuple[str, int, int]]) -> dict[str, str]:
    """The files of a power monitor in sysfs: labels, millivolts and milliamperes, counted from 1."""
    files = {"name": chip}
    for index, (label, millivolts, milliamperes) in enumerate(rails, 1):
        values = {f"in{index}_label": label, f"in{index}_input": millivolts, f"curr{index}_input": milliamperes}
        files |= {name: str(value) for name, value in values.items()}
    return {f"sys/class/hwmon/hwmon{number}/{name}": f"{text}\n" for name, text in files.items()}


ORIN_NX_RAILS = {
    **hwmon(0, "tj_thermal", ()),
    **hwmon(1, "ina3221", (("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 280))),
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
}
AGX_ORIN_RAILS = {
    **hwmon(2, "ina3221", (("VDD_GPU_SOC", 20000, 120), ("VDD_CPU_CV", 20000, 25), ("VIN_SYS_5V0", 5000, 800))),
    **hwmon(3, "ina3221", (("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 250), ("NC", 0, 0))),
}
THOR_RAILS = {
    **hwmon(4, "ina3221", (("VDD_GPU", 20000, 500), ("VDD_CPU_SOC_MSS", 20000, 400), ("VIN_SYS_5V0", 5000, 900))),
    "sys/class/hwmon/hwmon5/name": "ina238\n",  # it has no labels, and measures what comes in
    "sys/class/hwmon/hwmon5/in0_input": "3\n",
    "sys/class/hwmon/hwmon5/in1_input": "20000\n",
    "sys/class/hwmon/hwmon5/curr1_input": "2062\n",
    "sys/class/hwmon/hwmon5/power1_input": "41250000\n",
}


def torch(version: str = "2.13.0+cpu", cuda: str | None = None, gpu: str | None = None) -> str:
    """What the child that imports PyTorch prints."""
    return json.dumps({"version": version, "cuda": cuda, "available": gpu is not None, "gpu": gpu}) + "\n"


def trial(version: str, *, builds: bool = True, knows_gpu: bool | None = None) -> str:
    """What the child that tries TensorRT prints."""
    return json.dumps({"version": version, "builds": builds, "knows_gpu": knows_gpu}) + "\n"


def opened(name: str, cuda: str, capability: str) -> str:
    """What the child that opens the GPU prints."""
    return json.dumps({"name": name, "compute_capability": capability, "cuda": cuda, "memory_bytes": 1 << 33}) + "\n"


ORT = json.dumps({"version": "1.31.1", "providers": ["AzureExecutionProvider", "CPUExecutionProvider"]})
BASE_VERSIONS = {"onnx": "1.23.2", "onnxruntime": "1.31.1"}
TORCH_VERSIONS = {**BASE_VERSIONS, "torch": "2.13.0", "onnxscript": "0.7.2"}
RTX_VERSIONS = {**TORCH_VERSIONS, "tensorrt-rtx-cu13": "1.7.1.116"}
AGX_ORIN_JP6 = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C GPU@-256C tj@44.343C "
    "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW\n"
)
ORIN: dict[str, Any] = {
    "commands": {
        "nvidia-smi": header("540.4.0", "12.6"),
        QUERY: "Orin (nvgpu), [N/A], [N/A], [N/A]\n",
        "nvcc -V": "Cuda compilation tools, release 12.6, V12.6.68\nBuild cuda_12.6.r12.6/compiler.34714021_0\n",
        "dpkg-query": "nvidia-jetpack\t6.2+b77\npython3-libnvinfer\t10.3.0.30-1+cuda12.5\n",
        "nvpmodel -q": "NV Power Mode: MAXN\n0\n",
        TEGRASTATS: AGX_ORIN_JP6,
        "trial tensorrt": trial("10.3.0"),
        "trial cuda": opened("Orin", "12.6", "8.7"),
        "ort": ORT,
    },
    "files": {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        **clock(1300500000, 1300500000, 1300500000),
        "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
        "proc/meminfo": MEMORY,
        "etc/os-release": UBUNTU,
    },
    "versions": {**BASE_VERSIONS, "tensorrt": "10.3.0", "pycuda": "2026.1"},
    "changes": {"architecture": "aarch64", "cores": 12, "flavours": ("tensorrt",)},
}
THOR: dict[str, Any] = {
    "commands": {
        "nvidia-smi": header("580.00", "13.0"),
        QUERY: "NVIDIA Thor, [N/A], [N/A], 11.0\n",
        "dpkg-query": "nvidia-jetpack-dev\t7.0-b128\n",
        "nvpmodel -q": "NV Power Mode: 120W\n1\n",
        "trial cuda": (
            "CUDA: cuInit failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (system has unsupported display driver); the "
            "driver was updated and not loaded yet, restart the machine.\n"
        ),
        "ort": ORT,
    },
    "files": {
        "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n",
        "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
        "proc/meminfo": MEMORY,
    },
    "versions": BASE_VERSIONS,
    "changes": {"architecture": "aarch64", "cores": 14},
}
DESKTOP: dict[str, Any] = {
    "commands": {
        "nvidia-smi": header("580.82.07", "13.0"),
        QUERY: "NVIDIA GeForce RTX 4070, 12282, 11500, 8.9\n",
        CLOCKS: "2475, 3105, 10501, 186.42, 200.00, 64, P2\n",
        REASONS: "0x0000000000000001\n",
        "nvcc -V": "Cuda compilation tools, release 13.0, V13.0.88\n",
        "torch": torch("2.13.0+cu130", "13.0", "NVIDIA GeForce RTX 4070"),
        "ort": ORT,
        "trial tensorrt-rtx 8.9": trial("1.7.1.116", knows_gpu=True),
        "trial tensorrt-rtx": trial("1.7.1.116"),
        "trial cuda": opened("NVIDIA GeForce RTX 4070", "13.0", "8.9"),
    },
    "files": {**PCI_GPU, "proc/meminfo": MEMORY, "etc/os-release": UBUNTU},
    "versions": RTX_VERSIONS,
    "changes": {"cores": 16, "flavours": ("tensorrt-rtx",)},
}
H200: dict[str, Any] = {
    "commands": {
        "nvidia-smi": header("580.159.03", "13.0"),
        QUERY: "NVIDIA H200, 143771, 143154, 9.0\n" * 2,
        CLOCKS: "345, 1980, 3201, 76.90, 700.00, 29, P0\n",
        REASONS: "0x0000000000000000\n",
        "torch": torch("2.11.0+cu130", "13.0", "NVIDIA H200"),
        "ort": ORT,
        "trial tensorrt-rtx 9.0": trial("1.7.1.116", knows_gpu=False),
        "trial tensorrt 9.0": trial("11.4.0.106"),
        "trial cuda": opened("NVIDIA H200", "13.0", "9.0"),
    },
    "files": {**PCI_GPU, "proc/meminfo": MEMORY},
    "versions": {**RTX_VERSIONS, "tensorrt": "11.4.0.106", "tensorrt-cu13": "11.4.0.106"},
    "changes": {"cores": 16, "flavours": ("tensorrt", "tensorrt-rtx")},
}
NO_GPU: dict[str, Any] = {
    "commands": {"torch": torch(), "ort": ORT, "trial tensorrt-rtx": trial("1.7.1.116")},
    "files": {"proc/meminfo": MEMORY},
    "versions": {**TORCH_VERSIONS, "tensorrt-rtx-cu13": "1.7.1.116"},
    "changes": {"cores": 2, "flavours": ("tensorrt-rtx",)},
}
OLD_DRIVER: dict[str, Any] = {
    "commands": {
        "nvidia-smi": header("535.183.01", "12.2"),
        QUERY: "NVIDIA GeForce RTX 3070, 8192, 7900, 8.6\n",
        CLOCKS: "1980, 2100, 7001, 219.80, 220.00, 83, P2\n",
        REASONS: 'Field "clocks_event_reasons.active" is not a valid field to query.\n',
        OLD_REASONS: "0x0000000000000024\n",
        "torch": torch("2.13.0+cu130", "13.0", None),
        "ort": ORT,
        "trial tensorrt-rtx 8.6": trial("1.7.1.116", knows_gpu=True),
    },
    "files": {**PCI_GPU, "proc/meminfo": MEMORY, "etc/os-release": UBUNTU},
    "versions": RTX_VERSIONS,
    "changes": {"cores": 8, "flavours": ("tensorrt-rtx",)},
}
MACHINES = {
    "orin": ORIN, "thor": THOR, "desktop": DESKTOP, "h200": H200, "no gpu": NO_GPU, "old driver": OLD_DRIVER,
    "nothing": {"commands": {}, "files": {}, "versions": {}, "changes": {}},
}  # fmt: skip


def recorded(
    root: Path,
    source: Mapping[str, Any],
    *,
    commands: Mapping[str, str | None] | None = None,
    files: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    **changes: Any,
) -> Machine:
    """Return a recorded machine with changes; its files are written below `root`."""
    known: dict[str, str | None] = {**source["commands"], **(commands or {})}
    for name, text in {**source["files"], **(files or {})}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    installed = {**source["versions"], **(versions or {})}
    machine = Machine(
        run=lambda command: _answer(known, command), version_of=installed.get, root=root, environ={}, folder=root,
        checkout=None, flavours=(), architecture="x86_64", cores=1, python=PYTHON,
    )  # fmt: skip
    return replace(machine, **{**source["changes"], **changes})


def _answer(known: Mapping[str, str | None], command: Sequence[str]) -> str | None:
    """Return the output of the longest recorded command that this one begins with; nvidia-smi takes no options."""
    text = " ".join(command)
    if command[0] == PYTHON:
        asked = next((name for name in ("torch", "cv2") if name in command[2]), "ort")  # which package a child imports
        text = f"trial {' '.join(command[3:])}" if command[1] == "-m" else asked
    fitting = [key for key in known if text == key or (key != "nvidia-smi" and text.startswith(key))]
    return known[max(fitting, key=len)] if fitting else None
