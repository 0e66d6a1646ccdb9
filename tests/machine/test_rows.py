"""The report of recorded machines: what is found, how it is judged, and what the reader is told to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.engine.plugins import BUILD_COMMAND, LIBRARY
from nrd_trt.machine.doctor import DoctorReport, examine
from nrd_trt.machine.findings import Row
from nrd_trt.machine.hardware_rows import zoo_row
from tests.machine.recorded import (
    CLOCKS,
    DESKTOP,
    H200,
    MACHINES,
    NO_GPU,
    ORIN,
    PCI_GPU,
    QUERY,
    REASONS,
    TEGRASTATS,
    THOR,
    UBUNTU,
    clock,
    recorded,
    torch,
    trial,
)

Expected = dict[str, tuple[str, str, str | None]]  # row -> status, part of what is found, part of the remedy

ZEN = "avx2 avx512f avx512_vnni avx512_bf16"
TOO_OLD = "too old for TensorRT-RTX (CUDA 13), PyTorch (CUDA 13)"
ROWS: dict[str, Expected] = {
    "orin": {
        "PyTorch": ("missing", "not to rebuild or run bundles", "nrd-trt[torch]"),
        "ONNX Runtime": ("ok", "1.31.1, providers Azure, CPU", None),
        "TensorRT": ("ok", "10.3.0: builds plans here, runs plans here (on Orin (nvgpu))", None),
        "TensorRT-RTX": ("n/a", "a Jetson's GPU is not among its targets", None),
        "GPU": (
            "ok",
            "Orin (nvgpu), compute capability 8.7, 62.8 GiB shared with the CPU, 57.3 GiB free; no plans in fp8",
            None,
        ),
        "Driver": ("ok", "540.4.0, supports CUDA 12.6", None),
        "CUDA toolkit": ("ok", "nvcc 12.6.68", None),
        "libcuda": ("ok", "the driver opens Orin, for CUDA 12.6; PyCUDA 2026.1", None),
        "JetPack / L4T": ("ok", "AGX Orin Developer Kit: L4T 36.4.3, JetPack 6.2", None),
        "Power mode (nvpmodel)": ("ok", "MAXN (mode 0)", None),
        "Clocks and power": ("ok", "1300–1300; RAM 4321 of 62801 MB, 44 °C, 6.8 W over 3 rails; held", None),
        "CPU": ("ok", "12 cores, NVIDIA Jetson AGX Orin Developer Kit", None),
    },
    "thor": {
        "TensorRT": ("missing", "not installed", "sudo apt install python3-libnvinfer && /usr/bin/python3 -m venv"),
        "GPU": ("ok", "NVIDIA Thor, compute capability 11.0, 62.8 GiB shared", None),
        "libcuda": ("missing", "cuInit failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "the driver was updated and"),
        "JetPack / L4T": ("ok", "L4T 38.2, JetPack 7.0", None),
        "Power mode (nvpmodel)": ("limited", "120W (mode 1): a power budget", "sudo nvpmodel -m 0"),
        "Clocks and power": ("missing", "sysfs does not tell the GPU's clock", "sudo jetson_clocks --show"),
    },
    "desktop": {
        "PyTorch": ("ok", "2.13.0+cu130, CUDA 13.0 build, sees NVIDIA GeForce RTX 4070", None),
        "ONNX": ("ok", "onnx 1.23.2, onnxscript 0.7.2", None),
        "TensorRT": ("missing", "not installed", "pip install 'nrd-trt[trt]'"),
        "TensorRT-RTX": ("ok", "1.7.1.116: builds plans here, runs plans here", None),
        "TensorRT lean runtime": ("n/a", "not installed", None),
        "GPU": ("ok", "NVIDIA GeForce RTX 4070, compute capability 8.9, 12.0 GiB, 11.2 GiB free", None),
        "Driver": ("ok", "580.82.07, supports CUDA 13.0", None),
        "libcuda": ("ok", "the driver opens NVIDIA GeForce RTX 4070, for CUDA 13.0", None),
        "JetPack / L4T": ("n/a", "not a Jetson", None),
        "Clocks and power": ("ok", "SM 2475 of 3105 MHz, memory 10501 MHz, 186.42 of 200.00 W, 64 °C, P2; not", None),
        "Memory": ("ok", "57.3 GiB free of 62.8 GiB", None),
    },
    "h200": {
        "TensorRT": ("ok", "11.4.0.106: builds plans here, runs plans here (on NVIDIA H200)", None),
        "Plugin library": ("missing", "with the same masks", BUILD_COMMAND),
        "TensorRT-RTX": ("limited", "may not run plans here (compute capability 9.0", "pip install 'nrd-trt[trt]'"),
        "GPU 0": ("ok", "NVIDIA H200, compute capability 9.0, 140.4 GiB, 139.8 GiB free", None),
        "GPU 1": ("ok", "NVIDIA H200", None),
    },
    "no gpu": {
        "PyTorch": ("ok", "CPU build; CUDA not available (no GPU)", None),
        "TensorRT": ("missing", "needs an NVIDIA GPU to build and to run", "on a machine with a GPU: pip install"),
        "TensorRT-RTX": ("limited", "builds plans here, cannot run plans here (no NVIDIA GPU", "see GPU"),
        "GPU": ("missing", "no NVIDIA GPU", "none is needed to export"),
        "Driver": ("n/a", "no NVIDIA GPU", None),
        "CUDA toolkit": ("missing", "no nvcc", "cuda-downloads"),
        "libcuda": ("n/a", "no GPU to open", None),
        "Clocks and power": ("n/a", "no GPU", None),
        "Video files, streams": ("missing", "PyAV is not installed", "nrd-trt[video]"),
        "Cameras, windows": ("missing", "OpenCV is not installed", "nrd-trt[camera]"),
        "GStreamer": ("missing", "no gst-launch-1.0", "gstreamer1.0-tools"),
        "Web page": ("missing", "fastapi, uvicorn, prometheus_client not installed", "nrd-trt[serve]"),
        "Plugin library": ("n/a", "none; only TensorRT loads it", None),
        "Zoo checkpoint": ("ok", "nrd_mobilenetv2_camvid", None),
        "CamVid": ("missing", "NRD_TRT_CAMVID is not set", "export NRD_TRT_CAMVID"),
    },
    "old driver": {
        "PyTorch": ("limited", "CUDA 13.0 build; CUDA not available", "branch 580 or newer"),
        "TensorRT": ("missing", "not installed", "pip install tensorrt-cu12"),
        "TensorRT-RTX": ("limited", "made for CUDA 13, the driver supports 12.2: driver 580", "tensorrt-rtx-cu12"),
        "GPU": ("ok", "RTX 3070, compute capability 8.6", None),
        "Driver": ("limited", f"535.183.01, supports CUDA 12.2: {TOO_OLD}", "sudo apt install nvidia-driver-580-open"),
        "Clocks and power": ("limited", "held back: power cap, software thermal slowdown", "nvidia-smi -q -d"),
    },
    "nothing": {
        "ONNX": ("missing", "not installed", "pip install nrd-trt"),
        "ONNX Runtime": ("missing", "not installed", "nrd-trt[ort]"),
        "Memory": ("missing", "/proc/meminfo", "free -h"),
    },
}
ON_CPU = {"build: onnxruntime", "run: onnxruntime"}
WITH_TORCH = ON_CPU | {"train", "export", "run: torch", "build: tensorrt-rtx"}
POSSIBLE = {
    "orin": ON_CPU | {"build: tensorrt", "run: tensorrt"},
    "thor": ON_CPU,
    "desktop": WITH_TORCH | {"run: tensorrt-rtx"},
    "h200": WITH_TORCH | {"build: tensorrt", "run: tensorrt"},
    "no gpu": WITH_TORCH,
    "old driver": WITH_TORCH,
    "nothing": set(),
}


def row_of(report: DoctorReport, name: str) -> Row:
    (row,) = [row for row in report.rows if row.name == name]
    return row


def check(row: Row, status: str, found: str, remedy: str | None) -> None:
    assert (row.status, found in row.found, row.remedy is None) == (status, True, remedy is None), row
    assert remedy is None or remedy in (row.remedy or ""), row


@pytest.mark.parametrize("name", MACHINES)
def test_recorded_machines(name: str, tmp_path: Path) -> None:
    report = examine(recorded(tmp_path, MACHINES[name]))
    for title, (status, found, remedy) in ROWS[name].items():
        check(row_of(report, title), status, found, remedy)
    assert [row for row in report.rows if (row.status in ("limited", "missing")) != bool(row.remedy)] == []
    assert len({row.name for row in report.rows}) == len(report.rows)
    assert {ability.name for ability in report.abilities if ability.possible} == POSSIBLE[name]
    assert len(report.abilities) == 10
    assert [one for one in report.abilities if not one.why or (one.remedy is None) != one.possible] == []


def without(machine: dict[str, Any], *versions: str) -> dict[str, Any]:
    """A recorded machine without some packages."""
    return {**machine, "versions": {name: v for name, v in machine["versions"].items() if name not in versions}}


UNRELEASED = {**ORIN, "files": {name: text for name, text in ORIN["files"].items() if "nv_tegra" not in name}}
CGROUP = "sys/fs/cgroup/memory"
NOT_FOR_IT = trial("1.7.1.116", knows_gpu=False)
PAGE = {"fastapi": "0.165.0", "uvicorn": "0.54", "prometheus_client": "0.23"}
VIDEO = {"av": "18.1.0", "pynvvideocodec": "2.2.4", "opencv-python": "4.12.0"}
RELEASE = "etc/nv_tegra_release"
CLASS = "sys/bus/pci/devices/0000:01:00.0/class"
NO_SMI = {"nvidia-smi": None, QUERY: None}
MISMATCH = {"nvidia-smi": "Failed to initialize NVML: Driver/library version mismatch\n", QUERY: None}
MODULE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (dvs-builder)\n"
SILENT = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
GSTREAMER = {"gst-launch-1.0 --version": "gst-launch-1.0 version 1.22.0\nGStreamer 1.22.0\n"}
RAILS = "RAM 2448/7620MB (lfb 4x4MB) tj@49.5C VDD_IN 4812mW/4800mW VDD_CPU_GPU_CV 520mW/520mW VDD_SOC 1400mW/1400mW"
NVLIB = "libnvinfer.so.10: cannot open shared object file"

GPU, DRIVER, CLOCK, POWER = "GPU", "Driver", "Clocks and power", "Power mode (nvpmodel)"
JETPACK, RTX, LEAN, CAMERAS = "JetPack / L4T", "TensorRT-RTX", "TensorRT lean runtime", "Cameras, windows"
PLUGIN = "Plugin library"

# A machine, its changes, and what is expected of some rows.
CASES: list[tuple[dict[str, Any], dict[str, Any], Expected]] = [
    # a GPU whose driver does not work
    (DESKTOP, {"commands": NO_SMI}, {
        GPU: ("missing", "is there and cannot be used", "nvidia-driver-580-open"),
        DRIVER: ("missing", "no driver answers", "nvidia-driver-580-open"),
        RTX: ("limited", "cannot run plans here", "see GPU"),
    }),
    (DESKTOP, {"commands": NO_SMI, "files": {".dockerenv": ""}}, {
        DRIVER: ("missing", "no driver answers", "docker run --gpus all"),
    }),
    (DESKTOP, {"commands": MISMATCH, "files": {"proc/driver/nvidia/version": MODULE}}, {
        GPU: ("missing", "is there and cannot be used: Failed", "updated under a running kernel module"),
        DRIVER: ("limited", "580.82.07, CUDA version not told: Failed to initialize", "sudo reboot"),
    }),
    (NO_GPU, {"commands": MISMATCH}, {GPU: ("missing", "no GPU that can be used: Failed", "sudo reboot")}),
    (DESKTOP, {"commands": {"nvidia-smi": SILENT, QUERY: ""}, "files": {"etc/os-release": "ID=fedora\n"}}, {
        GPU: ("missing", "couldn't communicate", "https://www.nvidia.com/drivers"),
    }),
    (NO_GPU, {"files": {**PCI_GPU, CLASS: "0x040300\n"}}, {GPU: ("missing", "no NVIDIA GPU", "none is needed")}),
    # the GPU
    (DESKTOP, {"environ": {"CUDA_VISIBLE_DEVICES": ""}}, {
        GPU: ("limited", "hidden by CUDA_VISIBLE_DEVICES=''", "unset CUDA_VISIBLE_DEVICES"),
    }),
    (DESKTOP, {"commands": {REASONS: "0x00000000000000C8\n"}}, {
        CLOCK: ("limited", "held back: hardware slowdown, hardware thermal slowdown, power brake", "let it cool"),
    }),
    (DESKTOP, {"commands": {CLOCKS: None}}, {CLOCK: ("missing", "does not tell", "nvidia-smi -q")}),
    (NO_GPU, {"files": {"usr/local/cuda/bin/nvcc": ""}}, {
        "CUDA toolkit": ("limited", "/usr/local/cuda/bin/nvcc, not on PATH", "PATH=/usr/local/cuda/bin:$PATH"),
    }),
    # Jetson boards
    (ORIN, {"files": {RELEASE: "# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic\n"}}, {
        JETPACK: ("limited", "L4T 36.3", "flash JetPack 6.2"),
    }),
    (ORIN, {"commands": {"dpkg-query": "dpkg-query: no packages found\n"}}, {
        JETPACK: ("limited", "JetPack 6.2; the JetPack packages", "sudo apt install nvidia-jetpack"),
    }),
    (UNRELEASED, {}, {JETPACK: ("limited", "not readable", "--runtime nvidia")}),
    (ORIN, {"commands": NO_SMI}, {
        DRIVER: ("ok", "part of L4T 36.4.3", None),
        GPU: ("ok", "GPU of NVIDIA Jetson AGX Orin Developer Kit, compute capability 8.7", None),
        "TensorRT": ("ok", "runs plans here", None),
    }),
    ({**ORIN, "versions": {}}, {"flavours": ()}, {
        "TensorRT": ("missing", "python3-libnvinfer 10.3.0.30-1+cuda12.5, which this Python does not see", "venv"),
    }),
    (ORIN, {"commands": {"nvpmodel -q": "NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W\n2\n"}}, {
        POWER: ("limited", "MODE_30W (mode 2)", "sudo nvpmodel -m 0"),
    }),
    (ORIN, {"commands": {"nvpmodel -q": "NV Power Mode: MAXN\n"}}, {POWER: ("ok", "MAXN", None)}),
    (ORIN, {"commands": {"nvpmodel -q": None}}, {POWER: ("missing", "nvpmodel is not there", "sudo nvpmodel -q")}),
    (ORIN, {"commands": {"nvpmodel -q": "NVPM ERROR: Error opening /var/lib/nvpmodel/status: 2\n"}}, {
        POWER: ("missing", "nvpmodel does not tell", "sudo nvpmodel -q"),
    }),
    (ORIN, {"files": clock(306000000, 306000000, 1300500000)}, {
        CLOCK: ("limited", "GPU 306 MHz of 306–1300; RAM 4321", "sudo jetson_clocks"),
    }),
    (ORIN, {"commands": {TEGRASTATS: None}}, {CLOCK: ("ok", "GPU 1300 MHz of 1300–1300; held", None)}),
    (THOR, {"commands": {TEGRASTATS: RAILS}}, {
        CLOCK: ("limited", "RAM 2448 of 7620 MB, 50 °C, 4.8 W", "sudo jetson_clocks --show"),
    }),
    (THOR, {"commands": {TEGRASTATS: "RAM 1/2MB"}}, {CLOCK: ("limited", "RAM 1 of 2 MB", "--show")}),
    # packages
    (DESKTOP, {"commands": {"torch": torch()}}, {
        "PyTorch": ("limited", "the GPU is not used", "pip install --force-reinstall torch"),
    }),
    (DESKTOP, {"commands": {"torch": torch("2.13.0+cu130", "13.0")}}, {
        "PyTorch": ("limited", "CUDA 13.0 build; CUDA not available", "prints the reason"),
    }),
    (H200, {"commands": {"trial tensorrt 9.0": f"{NVLIB}\n"}}, {
        "TensorRT": ("missing", f"cannot be imported: {NVLIB}", "pip install 'nrd-trt[trt]'"),
    }),
    (H200, {"commands": {"trial tensorrt 9.0": trial("11.4.0.106", builds=False)}}, {
        "TensorRT": ("limited", "cannot build plans here, runs plans here", "messages"),
    }),
    (DESKTOP, {"commands": {QUERY: "GeForce GTX 1080, 8192, 8000, 6.1\n", "trial tensorrt-rtx 6.1": NOT_FOR_IT}}, {
        RTX: ("limited", "cannot run plans here (compute capability 6.1", "nrd-trt[trt]"),
    }),
    (DESKTOP, {"commands": {"trial tensorrt-rtx 8.9": "A warning\n" + trial("9.9.9", knows_gpu=True)}}, {
        RTX: ("ok", "9.9.9: builds plans", None),
    }),
    (DESKTOP, {"versions": {"tensorrt-lean-cu13": "11.4.0.106"}}, {
        LEAN: ("ok", "11.4.0.106: builds no plans by design here, runs plans here", None),
    }),
    (without(DESKTOP, "onnxscript"), {}, {"ONNX": ("limited", "onnxscript", "nrd-trt[export]")}),
    (ORIN, {"environ": {"LD_LIBRARY_PATH": "/somewhere"}, "checkout": Path("/absent")}, {
        PLUGIN: ("missing", f"(NRD_TRT_PLUGIN, /absent/plugins/build/{LIBRARY}, /somewhere/{LIBRARY}, ", BUILD_COMMAND),
    }),
    (ORIN, {"environ": {"NRD_TRT_PLUGIN": "/absent.so"}}, {
        PLUGIN: ("missing", "NRD_TRT_PLUGIN=/absent.so: no such file", "unset NRD_TRT_PLUGIN"),
    }),
    # video
    (NO_GPU, {"commands": GSTREAMER, "versions": {**PAGE, **VIDEO}}, {
        "Video files, streams": ("ok", "PyAV 18.1.0, PyNvVideoCodec 2.2.4", None),
        CAMERAS: ("ok", "OpenCV 4.12.0", None),
        "GStreamer": ("ok", "gst-launch-1.0 1.22.0", None),
        "Web page": ("ok", "FastAPI 0.165.0", None),
    }),
    (NO_GPU, {"commands": {"cv2": "ImportError: …\n"}}, {CAMERAS: ("missing", "not installed", "camera")}),
    (NO_GPU, {"commands": {"cv2": "4.8.0\n"}}, {CAMERAS: ("ok", "OpenCV 4.8.0 of the system", None)}),
    (NO_GPU, {"versions": {"opencv-python-headless": "4.12.0"}}, {
        CAMERAS: ("limited", "without windows; cameras work", "pip install opencv-python"),
    }),
    # the host
    (NO_GPU, {"files": {f"{CGROUP}.max": f"{4 << 30}\n", f"{CGROUP}.current": f"{3 << 30}\n"}}, {
        "Memory": ("limited", "1.0 GiB free of 4.0 GiB", "swap"),
    }),
    (NO_GPU, {"files": {f"{CGROUP}.max": "max\n"}}, {"Memory": ("ok", "57.3 GiB free", None)}),
    (NO_GPU, {"folder": Path("/absent")}, {"Disk": ("missing", "/absent", "cd to another folder")}),
    (NO_GPU, {"checkout": Path("/absent/checkout")}, {"CamVid": ("missing", "not in /absent/shared", "export NRD")}),
    (NO_GPU, {"files": {"etc/os-release": UBUNTU, "proc/cpuinfo": "model name\t: AMD EPYC\n" * 2}}, {
        "Python": ("ok", "Ubuntu 22.04.5 LTS, x86_64", None),
        "CPU": ("ok", "2 cores, AMD EPYC", None),
        "OpenVINO": ("missing", "not installed; ONNX Runtime runs every file on a CPU", "nrd-trt[openvino]"),
    }),
    (NO_GPU, {"versions": {"openvino": "2026.4.1"}, "files": {"proc/cpuinfo": f"flags : {ZEN}\n"}}, {
        "CPU": ("ok", f", x86_64, {ZEN}", None),
        "OpenVINO": ("ok", "2026.4.1; this processor multiplies int8 by avx512_vnni and bf16 by avx512_bf16", None),
    }),
    (NO_GPU, {"versions": {"openvino": "2026.4.1"}, "files": {"proc/cpuinfo": "flags : avx2\n"}}, {
        "OpenVINO": ("ok", "2026.4.1; this processor multiplies neither int8 nor bf16 fast", None),
    }),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "changes", "expected"), CASES)
def test_rows(machine: dict[str, Any], changes: dict[str, Any], expected: Expected, tmp_path: Path) -> None:
    report = examine(recorded(tmp_path, machine, **changes))
    for name, (status, found, remedy) in expected.items():
        check(row_of(report, name), status, found, remedy)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (None, "did not answer in time"),
        ("Traceback (most recent call last):\nImportError: libcudnn.so.9: cannot open shared object\n", "libcudnn"),
        ("[]\n", "[]"),
    ],
)
def test_packages_that_cannot_be_imported(output: str | None, found: str, tmp_path: Path) -> None:
    broken = {"torch": output, "ort": output, "trial tensorrt-rtx": output, "trial tensorrt-rtx 8.9": output}
    report = examine(recorded(tmp_path, DESKTOP, commands=broken))
    for name in ("PyTorch", "ONNX Runtime", "TensorRT-RTX"):
        row = row_of(report, name)
        assert (row.status, found in row.found, "cannot be imported" in row.found) == ("missing", True, True), row
    assert not any(ability.possible for ability in report.abilities)


NOT_OPENED = {**DESKTOP, "commands": {**DESKTOP["commands"], "trial cuda": "Segmentation fault"}}


@pytest.mark.parametrize(
    ("machine", "name", "remedy"),
    [
        (without(DESKTOP, "onnxscript"), "export", "pip install 'nrd-trt[export]'"),
        (NOT_OPENED, "run: tensorrt-rtx", "nvidia-smi   (says how the driver is)"),
        (ORIN, "build: tensorrt-rtx", "use TensorRT, which JetPack brings"),
        (ORIN, "run: tensorrt-rtx", "use TensorRT, which JetPack brings"),
        (NO_GPU, "run: tensorrt", "use runner='onnxruntime' here"),
    ],
)
def test_what_makes_it_possible(machine: dict[str, Any], name: str, remedy: str, tmp_path: Path) -> None:
    (ability,) = [one for one in examine(recorded(tmp_path, machine)).abilities if one.name == name]
    assert (ability.possible, ability.remedy) == (False, remedy)


def test_data_that_is_found_and_a_checkpoint_that_is_not(tmp_path: Path) -> None:
    images = {f"camvid/{part}/images/{index}.png": "" for part in ("train", "val") for index in range(3)}
    machine = recorded(tmp_path, NO_GPU, files=images, environ={"NRD_TRT_CAMVID": str(tmp_path / "camvid")})
    check(row_of(examine(machine), "CamVid"), "ok", "3 training and 3 validation images", None)
    check(zoo_row("absent"), "missing", "'absent'", "git lfs pull")


def test_options_of_an_installed_tensorrt_are_listed(tmp_path: Path) -> None:
    """Also where it makes no builder: what is there does not depend on the machine."""
    told = {"version": "10.3.0", "builds": False, "options": {"max_aux_streams": "a number", "tactic_dram": "bytes"}}
    commands = {**ORIN["commands"], "trial tensorrt 8.7": json.dumps(told) + "\n"}
    rows = examine(recorded(tmp_path, ORIN, commands=commands)).rows
    (row,) = (row for row in rows if row.name.endswith(" options"))
    assert (row.name, row.status) == ("TensorRT options", "ok")
    assert row.found == "max_aux_streams: a number; tactic_dram: bytes"
