"""Every probe on recorded machines: what it finds, how it judges it, and what it tells the reader to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.machine.doctor import gpu, host, jetson
from nrd_trt.machine.doctor.machine import Row, run_command
from nrd_trt.machine.doctor.report import Report, examine
from nrd_trt.machine.doctor.trial import try_flavour
from tests.machine.recorded import (
    CLOCKS,
    DESKTOP,
    H200,
    MACHINES,
    NO_GPU,
    OLD_QUERY,
    ORIN,
    PCI_GPU,
    QUERY,
    REASONS,
    THOR,
    UBUNTU,
    header,
    recorded,
    trial,
)

Expected = dict[str, tuple[str, str, str | None]]  # row -> status, part of what is found, part of the remedy

ROWS: dict[str, Expected] = {
    "orin": {
        "PyTorch": ("missing", "not to rebuild or run bundles", "nrd-trt[torch]"),
        "ONNX Runtime": ("ok", "1.31.1, providers Azure, CPU", None),
        "TensorRT": ("ok", "10.3.0: builds plans here, runs plans here (on Orin (nvgpu))", None),
        "TensorRT-RTX": ("n/a", "a Jetson's GPU is not among its targets", None),
        "GPU": ("ok", "Orin (nvgpu), compute capability 8.7, 62.8 GiB shared with the CPU, 57.3 GiB free", None),
        "Driver": ("ok", "540.4.0, supports CUDA 12.6", None),
        "CUDA toolkit": ("ok", "nvcc 12.6.68", None),
        "CUDA binding": ("ok", "pycuda 2026.1", None),
        "JetPack / L4T": ("ok", "AGX Orin Developer Kit: L4T 36.4.3, JetPack 6.2", None),
        "Power mode (nvpmodel)": ("ok", "MAXN (mode 0)", None),
        "Clocks and power": ("ok", "1300–1300; RAM 4321 of 62801 MB, 44 °C, 6.8 W over 3 rails; held", None),
        "CPU": ("ok", "12 cores, aarch64", None),
    },
    "thor": {
        "TensorRT": ("missing", "not installed", "sudo apt install python3-libnvinfer && /usr/bin/python3 -m venv"),
        "GPU": ("ok", "NVIDIA Thor, compute capability 11.0, 62.8 GiB shared", None),
        "Driver": ("ok", "580.00, supports CUDA 13.0", None),
        "CUDA binding": ("missing", "not installed", "cuda-python>=13,<14"),
        "JetPack / L4T": ("ok", "L4T 38.2, JetPack 7.0", None),
        "Power mode (nvpmodel)": ("limited", "120W (mode 1): a power budget", "sudo nvpmodel -m 0"),
        "Clocks and power": ("missing", "to root only", "sudo jetson_clocks --show"),
    },
    "desktop": {
        "PyTorch": ("ok", "2.13.0+cu130, CUDA 13.0 build, sees NVIDIA GeForce RTX 4070", None),
        "ONNX": ("ok", "onnx 1.23.2, onnxscript 0.7.2", None),
        "TensorRT": ("missing", "not installed", "pip install 'nrd-trt[trt]'"),
        "TensorRT-RTX": ("ok", "1.7.1.116: builds plans here, runs plans here", None),
        "TensorRT lean runtime": ("n/a", "not installed", None),
        "GPU": ("ok", "NVIDIA GeForce RTX 4070, compute capability 8.9, 12.0 GiB, 11.2 GiB free", None),
        "Driver": ("ok", "580.82.07, supports CUDA 13.0", None),
        "CUDA binding": ("ok", "cuda-python 13.4.4", None),
        "JetPack / L4T": ("n/a", "not a Jetson", None),
        "Clocks and power": ("ok", "SM 2475 of 3105 MHz, memory 10501 MHz, 186.42 of 200.00 W, 64 °C, P2; not", None),
        "Memory": ("ok", "57.3 GiB free of 62.8 GiB", None),
    },
    "h200": {
        "TensorRT": ("ok", "11.4.0.106: builds plans here, runs plans here (on NVIDIA H200)", None),
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
        "CUDA binding": ("n/a", "nothing to use it with", None),
        "Clocks and power": ("n/a", "no GPU", None),
    },
    "old driver": {
        "PyTorch": ("limited", "CUDA 13.0 build; CUDA not available", "branch 580 or newer"),
        "TensorRT": ("missing", "not installed", "pip install tensorrt-cu12"),
        "TensorRT-RTX": ("limited", "made for CUDA 13, the driver supports 12.2: driver 580", "tensorrt-rtx-cu12"),
        "GPU": ("ok", "RTX 3070, compute capability 8.6", None),
        "Driver": (
            "limited",
            "535.183.01, supports CUDA 12.2: too old for TensorRT-RTX (CUDA 13), PyTorch (CUDA 13)",
            "sudo apt install nvidia-driver-580-open",
        ),
        "Clocks and power": ("limited", "held back: power cap, software thermal slowdown", "nvidia-smi -q -d"),
    },
}
POSSIBLE = {
    "orin": {"build: onnxruntime", "build: tensorrt", "run: onnxruntime", "run: tensorrt"},
    "thor": {"build: onnxruntime", "run: onnxruntime"},
    "desktop": {
        "train", "export", "build: onnxruntime", "build: tensorrt-rtx", "run: torch", "run: onnxruntime",
        "run: tensorrt-rtx",
    },
    "h200": {
        "train", "export", "build: onnxruntime", "build: tensorrt-rtx", "build: tensorrt", "run: torch",
        "run: onnxruntime", "run: tensorrt",
    },
    "no gpu": {"train", "export", "build: onnxruntime", "build: tensorrt-rtx", "run: torch", "run: onnxruntime"},
    "old driver": {"train", "export", "build: onnxruntime", "build: tensorrt-rtx", "run: torch", "run: onnxruntime"},
}  # fmt: skip


def row_of(report: Report, name: str) -> Row:
    """The one row of that name."""
    (row,) = [row for row in report.rows if row.name == name]
    return row


def check(row: Row, status: str, found: str, remedy: str | None) -> None:
    assert (row.status, found in row.found, row.remedy is None) == (status, True, remedy is None), row
    assert remedy is None or remedy in (row.remedy or ""), row


@pytest.mark.parametrize("name", MACHINES)
def test_rows_of_recorded_machines(name: str, tmp_path: Path) -> None:
    report = examine(recorded(tmp_path, MACHINES[name]))
    for title, (status, found, remedy) in ROWS[name].items():
        check(row_of(report, title), status, found, remedy)


@pytest.mark.parametrize("name", MACHINES)
def test_summary_of_recorded_machines(name: str, tmp_path: Path) -> None:
    abilities = examine(recorded(tmp_path, MACHINES[name])).abilities
    assert {ability.name for ability in abilities if ability.possible} == POSSIBLE[name]
    assert len(abilities) == 9
    for ability in abilities:
        assert ability.why
        assert (ability.remedy is None) == ability.possible, ability


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_missing_has_a_remedy(name: str, tmp_path: Path) -> None:
    report = examine(recorded(tmp_path, MACHINES[name]))
    assert [row for row in report.rows if row.status in ("limited", "missing") and not row.remedy] == []
    assert [row for row in report.rows if row.status in ("ok", "n/a") and row.remedy] == []
    names = [row.name for row in report.rows]
    assert len(names) == len(set(names))


def test_nothing_at_all_is_a_report(tmp_path: Path) -> None:
    """A machine where no command, no file and no package answers."""
    nothing: dict[str, Any] = {"commands": {}, "files": {}, "versions": {}, "changes": {}}
    report = examine(recorded(tmp_path, nothing))
    assert {ability.name for ability in report.abilities if ability.possible} == set()
    check(row_of(report, "ONNX Runtime"), "missing", "not installed", "nrd-trt[ort]")
    check(row_of(report, "Memory"), "missing", "/proc/meminfo", "free -h")


# --- driver and GPU --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "driver", "cuda"),
    [
        (header("550.40.07", "12.4"), "550.40.07", (12, 4)),
        (header("610.43.02", "13.3", "KMD Version: {driver}     CUDA UMD Version: {cuda}"), "610.43.02", (13, 3)),
        (header("540.3.0", "12.2", "Driver Version: N/A          CUDA Version: {cuda}"), None, (12, 2)),
        (header("580.105.06", "Not Found"), "580.105.06", None),
    ],
)
def test_headers_of_nvidia_smi(text: str, driver: str | None, cuda: tuple[int, int] | None, tmp_path: Path) -> None:
    found = gpu.find_graphics(recorded(tmp_path, DESKTOP, commands={"nvidia-smi": text}), None)
    assert (found.driver, found.cuda) == (driver, cuda)


def test_driver_that_does_not_know_compute_cap(tmp_path: Path) -> None:
    refused = 'Field "compute_cap" is not a valid field to query.\n'
    machine = recorded(tmp_path, DESKTOP, commands={QUERY: refused, OLD_QUERY: "Tesla T4, 15109, 15000\n"})
    (found,) = gpu.find_graphics(machine, None).gpus
    assert (found.name, found.compute_capability, found.total_mib) == ("Tesla T4", None, 15109)


@pytest.mark.parametrize(
    ("changes", "files", "found", "remedy"),
    [
        ({"nvidia-smi": None, QUERY: None}, {}, "an NVIDIA GPU is there and cannot be used", "nvidia-driver-580-open"),
        (
            {"nvidia-smi": "Failed to initialize NVML: Driver/library version mismatch\n", QUERY: None},
            {},
            "version mismatch",
            "updated under a running kernel module",
        ),
        (
            {
                "nvidia-smi": "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
                QUERY: "",
            },
            {"etc/os-release": "ID=fedora\n"},
            "couldn't communicate",
            "https://www.nvidia.com/drivers",
        ),
        ({"nvidia-smi": None, QUERY: None}, {".dockerenv": ""}, "cannot be used", "docker run --gpus all"),
    ],
)
def test_gpu_without_a_working_driver(
    changes: dict[str, str | None], files: dict[str, str], found: str, remedy: str, tmp_path: Path
) -> None:
    report = examine(recorded(tmp_path, DESKTOP, commands=changes, files=files))
    check(row_of(report, "GPU"), "missing", found, remedy)
    assert remedy in (row_of(report, "Driver").remedy or "")
    assert row_of(report, "TensorRT-RTX").status == "limited"


def test_kernel_module_tells_the_driver(tmp_path: Path) -> None:
    module = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (dvs-builder)\n"
    machine = recorded(tmp_path, NO_GPU, files={"proc/driver/nvidia/version": module})
    assert gpu.find_graphics(machine, None).driver == "580.82.07"


def test_other_pci_devices_are_no_gpus(tmp_path: Path) -> None:
    sound = {
        "sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.1/class": "0x040300",
    }
    assert not gpu.find_graphics(recorded(tmp_path, NO_GPU, files=sound), None).hardware
    assert gpu.find_graphics(recorded(tmp_path, NO_GPU, files=PCI_GPU), None).hardware


def test_hidden_gpu(tmp_path: Path) -> None:
    report = examine(recorded(tmp_path, DESKTOP, environ={"CUDA_VISIBLE_DEVICES": ""}))
    check(row_of(report, "GPU"), "limited", "hidden by CUDA_VISIBLE_DEVICES=''", "unset CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("mask", "status", "reason"),
    [
        ("0x0000000000000000", "ok", "not throttled"),
        ("0x0000000000000001", "ok", "not throttled"),
        ("0x0000000000000004", "limited", "power cap"),
        ("0x00000000000000C8", "limited", "hardware slowdown, hardware thermal slowdown, power brake"),
    ],
)
def test_throttle_reasons(mask: str, status: str, reason: str, tmp_path: Path) -> None:
    row = row_of(examine(recorded(tmp_path, DESKTOP, commands={REASONS: mask + "\n"})), "Clocks and power")
    assert (row.status, row.found.endswith(reason)) == (status, True), row


def test_clocks_that_are_not_told(tmp_path: Path) -> None:
    report = examine(recorded(tmp_path, DESKTOP, commands={CLOCKS: None}))
    check(row_of(report, "Clocks and power"), "missing", "does not tell", "nvidia-smi -q")


def test_nvcc_off_the_path(tmp_path: Path) -> None:
    machine = recorded(tmp_path, NO_GPU, files={"usr/local/cuda/bin/nvcc": ""})
    check(gpu.toolkit_row(machine), "limited", "not on PATH", "export PATH=/usr/local/cuda/bin:$PATH")


# --- Jetson ----------------------------------------------------------------------------------------------------------


def test_jetpack_older_than_tensorrt_10_3(tmp_path: Path) -> None:
    old = {"etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic\n"}
    found = jetson.find_jetson(recorded(tmp_path, ORIN, files=old))
    check(jetson.jetpack_row(found), "limited", "L4T 36.3", "flash JetPack 6.2")


def test_jetpack_packages_not_installed(tmp_path: Path) -> None:
    found = jetson.find_jetson(recorded(tmp_path, ORIN, commands={"dpkg-query": "dpkg-query: no packages found\n"}))
    check(jetson.jetpack_row(found), "limited", "JetPack 6.2; the JetPack packages", "sudo apt install nvidia-jetpack")


def test_jetson_whose_release_is_hidden_by_a_container(tmp_path: Path) -> None:
    files = {name: text for name, text in ORIN["files"].items() if name != "etc/nv_tegra_release"}
    found = jetson.find_jetson(recorded(tmp_path, {**ORIN, "files": files}))
    check(jetson.jetpack_row(found), "limited", "not readable", "--runtime nvidia")


def test_jetson_without_nvidia_smi(tmp_path: Path) -> None:
    report = examine(recorded(tmp_path, ORIN, commands={"nvidia-smi": None, QUERY: None}))
    check(row_of(report, "Driver"), "ok", "part of L4T 36.4.3", None)
    check(row_of(report, "GPU"), "ok", "compute capability 8.7", None)
    check(row_of(report, "TensorRT"), "ok", "runs plans here", None)


def test_tensorrt_of_apt_that_this_python_does_not_see(tmp_path: Path) -> None:
    report = examine(recorded(tmp_path, {**ORIN, "versions": {}}, flavours=()))
    row = row_of(report, "TensorRT")
    check(row, "missing", "python3-libnvinfer 10.3.0.30-1+cuda12.5, which this Python does not see", "venv")
    assert "apt install" not in (row.remedy or "")


@pytest.mark.parametrize(
    ("output", "status", "found"),
    [
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W\n2\n", "limited", "MODE_30W (mode 2)"),
        ("NV Power Mode: MAXN_SUPER\n2\n", "ok", "MAXN_SUPER (mode 2)"),
        (None, "missing", "nvpmodel is not there"),
        ("NVPM ERROR: Error opening /var/lib/nvpmodel/status: 2\n", "missing", "does not tell"),
    ],
)
def test_power_modes(output: str | None, status: str, found: str, tmp_path: Path) -> None:
    machine = recorded(tmp_path, ORIN, commands={"nvpmodel -q": output})
    row = jetson.power_mode_row(machine, jetson.find_jetson(machine))
    assert (row.status, found in row.found) == (status, True), row


def test_clocks_of_a_jetson_that_follow_the_load(tmp_path: Path) -> None:
    show = "GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=306000000\n"
    row = jetson.clocks_row(recorded(tmp_path, ORIN, commands={"jetson_clocks --show": show}))
    check(row, "limited", "GPU 306 MHz of 306–1300; RAM 4321", "sudo jetson_clocks")


def test_power_of_a_board_that_measures_its_input(tmp_path: Path) -> None:
    sample = (
        "RAM 2448/7620MB (lfb 4x4MB) tj@49.5C VDD_IN 4812mW/4800mW VDD_CPU_GPU_CV 520mW/520mW VDD_SOC 1400mW/1400mW"
    )
    row = jetson.clocks_row(recorded(tmp_path, THOR, commands={"sh -c tegrastats": sample}))
    check(row, "limited", "RAM 2448 of 7620 MB, 50 °C, 4.8 W", "sudo jetson_clocks --show")


# --- packages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (None, "did not answer in time"),
        ("", "did not answer in time"),
        (
            "Traceback (most recent call last):\nImportError: libcudnn.so.9: cannot open shared object file\n",
            "libcudnn",
        ),
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


def test_cpu_build_of_torch_beside_a_gpu(tmp_path: Path) -> None:
    cpu = '{"version": "2.13.0+cpu", "cuda": null, "available": false, "gpu": null}'
    row = row_of(examine(recorded(tmp_path, DESKTOP, commands={"torch": cpu})), "PyTorch")
    check(row, "limited", "the GPU is not used", "pip install --force-reinstall torch")


def test_libraries_missing_for_tensorrt(tmp_path: Path) -> None:
    answer = trial(None, builds=False, error="libnvinfer.so.10: cannot open shared object file")
    report = examine(recorded(tmp_path, H200, commands={"trial tensorrt 9.0": answer}))
    check(row_of(report, "TensorRT"), "missing", "cannot be imported: libnvinfer.so.10", "pip install 'nrd-trt[trt]'")


def test_rtx_on_a_gpu_older_than_turing(tmp_path: Path) -> None:
    commands = {
        QUERY: "NVIDIA GeForce GTX 1080, 8192, 8000, 6.1\n",
        "trial tensorrt-rtx 6.1": trial("1.7.1.116", knows_gpu=False),
    }
    row = row_of(examine(recorded(tmp_path, DESKTOP, commands=commands)), "TensorRT-RTX")
    check(row, "limited", "cannot run plans here (compute capability 6.1", "nrd-trt[trt]")


def test_lean_runtime(tmp_path: Path) -> None:
    versions = {"tensorrt-lean-cu13": "11.4.0.106"}
    row = row_of(examine(recorded(tmp_path, DESKTOP, versions=versions)), "TensorRT lean runtime")
    check(row, "ok", "11.4.0.106: builds no plans by design here, runs plans here", None)


def test_toolkit_without_a_runner_for_plans(tmp_path: Path) -> None:
    report = examine(recorded(tmp_path, DESKTOP, runs_plans=False))
    (run,) = [ability for ability in report.abilities if ability.name == "run: tensorrt-rtx"]
    assert (run.possible, "no runner for plans" in run.why) == (False, True)


def test_onnxscript_that_is_missing(tmp_path: Path) -> None:
    versions = {name: version for name, version in DESKTOP["versions"].items() if name != "onnxscript"}
    report = examine(recorded(tmp_path, {**DESKTOP, "versions": versions}))
    check(row_of(report, "ONNX"), "limited", "onnxscript", "nrd-trt[export]")
    assert "export" not in {ability.name for ability in report.abilities if ability.possible}


def test_noise_before_the_answer_of_a_child(tmp_path: Path) -> None:
    noisy = "A warning of a library\n" + trial("9.9.9", knows_gpu=True)
    row = row_of(examine(recorded(tmp_path, DESKTOP, commands={"trial tensorrt-rtx 8.9": noisy})), "TensorRT-RTX")
    check(row, "ok", "9.9.9: builds plans", None)


def test_plans_need_a_binding_of_cuda(tmp_path: Path) -> None:
    versions = {name: version for name, version in DESKTOP["versions"].items() if name != "cuda-python"}
    report = examine(recorded(tmp_path, {**DESKTOP, "versions": versions}))
    (run,) = [ability for ability in report.abilities if ability.name == "run: tensorrt-rtx"]
    assert (run.possible, run.remedy) == (False, "pip install 'cuda-python>=13,<14'")


def test_rtx_is_not_advised_on_a_jetson(tmp_path: Path) -> None:
    abilities = {ability.name: ability for ability in examine(recorded(tmp_path, ORIN)).abilities}
    assert all("pip" not in (abilities[f"{verb}: tensorrt-rtx"].remedy or "") for verb in ("build", "run"))


# --- the host --------------------------------------------------------------------------------------------------------


def test_memory_limit_of_a_container(tmp_path: Path) -> None:
    limits = {"sys/fs/cgroup/memory.max": f"{4 << 30}\n", "sys/fs/cgroup/memory.current": f"{3 << 30}\n"}
    check(host.memory_row(recorded(tmp_path, NO_GPU, files=limits)), "limited", "1.0 GiB free of 4.0 GiB", "swap")
    none = {"sys/fs/cgroup/memory.max": "max\n"}
    check(host.memory_row(recorded(tmp_path, NO_GPU, files=none)), "ok", "57.3 GiB free", None)


def test_folder_that_is_gone(tmp_path: Path) -> None:
    row = host.disk_row(recorded(tmp_path, NO_GPU, folder=tmp_path / "absent"))
    check(row, "missing", "absent", "cd to another folder")


def test_camvid_is_found_by_its_variable(tmp_path: Path) -> None:
    images = {f"camvid/{part}/images/{index}.png": "" for part in ("train", "val") for index in range(3)}
    machine = recorded(tmp_path, NO_GPU, files=images, environ={"NRD_TRT_CAMVID": str(tmp_path / "camvid")})
    check(host.camvid_row(machine), "ok", "3 training and 3 validation images", None)
    check(host.camvid_row(recorded(tmp_path, NO_GPU)), "missing", "is not set", "export NRD_TRT_CAMVID")


def test_zoo_checkpoint() -> None:
    check(host.zoo_row(), "ok", "nrd_mobilenetv2_camvid", None)
    check(host.zoo_row("absent"), "missing", "'absent'", "git lfs pull")


def test_system_is_named(tmp_path: Path) -> None:
    assert "Ubuntu 22.04.5 LTS" in host.python_row(recorded(tmp_path, NO_GPU, files={"etc/os-release": UBUNTU})).found


# --- commands --------------------------------------------------------------------------------------------------------


def test_commands_that_are_missing_fail_or_hang() -> None:
    assert run_command(["nrd-trt-no-such-command"]) is None
    assert run_command(["sh", "-c", "sleep 30"], timeout_s=0.2) is None
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 9"]) == "out\n"
    assert run_command(["sh", "-c", "echo err >&2; exit 9"]) == "err\n"
    assert run_command([sys.executable, "-c", "import nrd_trt; print(nrd_trt.__name__)"]) == "nrd_trt\n"


def test_trial_of_a_flavour_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = try_flavour("tensorrt", None)
    assert (found["version"], found["builds"]) == (None, False)
    assert "tensorrt" in found["error"]


def test_trial_of_the_rtx_builder() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install nrd-trt[rtx]")
    assert try_flavour("tensorrt-rtx", "8.9")["knows_gpu"] is True
    found = try_flavour("tensorrt-rtx", "9.0")
    assert (found["builds"], found["knows_gpu"], found["error"]) == (True, False, None)
