"""Facts of GPUs and Jetson boards, from commands, files and lines in the shape that devices give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from nrd_trt.machine.findings import take_inventory
from nrd_trt.machine.gpu import Gpu, Graphics, find_graphics, throttle_reasons
from nrd_trt.machine.hardware_rows import clocks_row
from nrd_trt.machine.host import Machine
from nrd_trt.machine.jetson import (
    GpuClock,
    find_jetson,
    gpu_clock,
    over_current_events,
    parse_tegrastats,
    read_tegrastats,
)
from tests.machine.recorded import AGX_ORIN_JP6, CLOCKS, DESKTOP, NO_GPU, ORIN, QUERY, header, recorded, trial

OLD_QUERY = QUERY.removesuffix(",compute_cap")
# One line each in the shape of its release: fields, brackets, letter case and units are those of the device.
ORIN_NANO_JP6 = (
    "10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) CPU [38%@1497,2%@729,off,off] "
    "EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] NVDEC off VIC off APE 200 cpu@57.125C soc2@55.093C gpu@58.625C tj@58.312C "
    "VDD_IN 16321mW/11204mW VDD_CPU_GPU_CV 7104mW/4944mW VDD_SOC 3120mW/3659mW"
)
AGX_ORIN_JP7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 0%@[1300,1290] NVENC0 off APE 174 cpu@52.968C/52.968C gpu@51.5C/53C tj@52.968C/53C "
    "VDD_GPU_SOC 5190mW/5000mW/6000mW VIN_SYS_5V0 7210mW/7000mW/8000mW"
)
THOR_JP7 = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,off] EMC_FREQ 34%@4266 "
    "GR3D_FREQ @[1574,1574,1574] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C tj@66.625C/66.625C gpu@56.937C/66.625C "
    "VDD_GPU 37939mW/8660mW/37939mW VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN_SYS_5V0 15486mW/7424mW/15486mW "
    "VIN 124486mW/36487mW/124486mW"
)


@pytest.mark.parametrize(
    ("text", "driver", "cuda"),
    [
        (header("550.40.07", "12.4"), "550.40.07", "12.4"),
        (header("610.43.02", "13.3", "KMD Version: {driver}     CUDA UMD Version: {cuda}"), "610.43.02", "13.3"),
        (header("540.3.0", "12.2", "Driver Version: N/A          CUDA Version: {cuda}"), None, "12.2"),
        (header("580.105.06", "Not Found"), "580.105.06", None),
    ],
)
def test_headers_of_nvidia_smi(text: str, driver: str | None, cuda: str | None, tmp_path: Path) -> None:
    found = find_graphics(recorded(tmp_path, DESKTOP, commands={"nvidia-smi": text}), None)
    (gpu,) = found.gpus
    assert (found.driver, found.cuda) == (gpu.driver, gpu.cuda) == (driver, cuda)


def test_old_driver(tmp_path: Path) -> None:
    refused = 'Field "compute_cap" is not a valid field to query.\n'
    machine = recorded(tmp_path, DESKTOP, commands={QUERY: refused, OLD_QUERY: "Tesla T4, 15109, [N/A]\n"})
    (found,) = find_graphics(machine, None).gpus
    assert found == Gpu(
        name="Tesla T4", compute_capability=None, driver="580.82.07", cuda="13.0", memory_bytes=15109 << 20
    )


def test_gpu_of_a_jetson_shares_the_memory_of_the_host(tmp_path: Path) -> None:
    machine = recorded(tmp_path, ORIN)
    shared = Gpu(
        name="Orin (nvgpu)",
        compute_capability="8.7",
        driver="540.4.0",
        cuda="12.6",
        integrated=True,
        memory_bytes=65870956 << 10,
        free_bytes=60102144 << 10,
    )
    assert find_graphics(machine, find_jetson(machine)) == Graphics(
        gpus=(shared,), driver="540.4.0", cuda="12.6", hardware=True
    )
    (tmp_path / "proc/meminfo").write_text("MemTotal:       65870956 kB\n")  # as kernels before 3.14 tell it
    unknown = replace(shared, memory_bytes=None, free_bytes=None)
    assert find_graphics(machine, find_jetson(machine)).gpus == (unknown,)


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0x3, ()),  # idle, and clocks set by a user
        (0x1 | 0x80, ("power brake",)),
        (0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown")),
        (0x4000, ("reason 0x4000",)),
    ],
)
def test_throttle_reasons(mask: int, names: tuple[str, ...]) -> None:
    assert throttle_reasons(mask) == names


@pytest.mark.parametrize(
    ("line", "clock_mhz", "power_w", "rails", "temperature_c", "memory"),
    [
        (ORIN_NANO_JP6, 612, 16.321, 0, 58.625, 6712),
        (AGX_ORIN_JP6, 0, 6.755, 3, 44.343, 4321),  # the GPU's sensor is off: the junction's is taken
        (AGX_ORIN_JP7, 1300, 12.4, 2, 51.5, 20642),
        (THOR_JP7, 1574, 124.486, 0, 56.937, 8353),  # VIN is the board; the other rails are behind it
        ("GR3D_FREQ 12% RAM 1/2MB", None, None, 0, None, 1),  # a load is no clock
        ("GR3D_FREQ 45%@318 GPU@37.5C", 318, None, 0, 37.5, None),
        ("GR3D_FREQ @[N/A] gpu@-256C", None, None, 0, None, None),
        ("", None, None, 0, None, None),
    ],
)
def test_tegrastats_line(
    line: str, clock_mhz: float | None, power_w: float | None, rails: int, temperature_c: float | None, memory: int
) -> None:
    got = parse_tegrastats(line)
    assert (got.clock_mhz, got.power_w, got.rails) == (clock_mhz, pytest.approx(power_w), rails)
    assert (got.temperature_c, got.memory_used_mib) == (temperature_c, memory)


def test_one_line_is_read_of_a_command_that_goes_on_printing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tegrastats = tmp_path / "tegrastats"
    tegrastats.write_text("#!/bin/sh\necho RAM 1/2MB\nwhile sleep 0.05; do echo RAM 2/2MB; done\n")
    tegrastats.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert read_tegrastats(Machine()).memory_used_mib == 1


def test_gpu_clock_in_sysfs(tmp_path: Path) -> None:
    other = {"sys/class/devfreq/13e00000.emc/cur_freq": "1\n"}
    assert gpu_clock(recorded(tmp_path, NO_GPU, files=other)) == GpuClock()
    for name in ("17000000.gpu", "17000000.ga10b", "gpu-gpc-0"):
        folder = f"sys/class/devfreq/{name}"
        machine = recorded(tmp_path / name, NO_GPU, files={**other, f"{folder}/cur_freq": "306000000\n"})
        assert gpu_clock(machine) == GpuClock(now=306)
        machine = recorded(tmp_path / name, NO_GPU, files={f"{folder}/max_freq": "1300500000\n"})
        assert gpu_clock(machine) == GpuClock(now=306, highest=1300.5)


def test_over_current_events_are_summed(tmp_path: Path) -> None:
    assert over_current_events(recorded(tmp_path, NO_GPU)) is None
    counters = {"sys/class/hwmon/hwmon1/oc1_event_cnt": "2\n", "sys/class/hwmon/hwmon4/oc3_event_cnt": "5\n"}
    assert over_current_events(recorded(tmp_path, NO_GPU, files=counters)) == 7


def test_of_several_gpus_the_one_that_cuda_uses_is_looked_at(tmp_path: Path) -> None:
    """As CUDA_VISIBLE_DEVICES leaves it: nvidia-smi lists them all, and its first is another one."""
    second = Gpu(name="NVIDIA GeForce RTX 3070", compute_capability="8.6", cuda="13.0", pci_bus_id="0000:66:00.0")
    answers = {
        QUERY: "NVIDIA GeForce RTX 4070, 12282, 11500, 8.9\nNVIDIA GeForce RTX 3070, 8192, 7900, 8.6\n",
        f"{CLOCKS},clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,pstate -i 0000:66:00.0": (
            "1980, 2100, 7001, 219.80, 220.00, 83, P2\n"
        ),
        "trial cuda": msgspec.json.encode(second).decode(),
        "trial tensorrt-rtx 8.6": trial("1.7.1.116", knows_gpu=True),
    }
    have = take_inventory(recorded(tmp_path, DESKTOP, commands=answers))
    assert [gpu.name for gpu in have.graphics.gpus] == ["NVIDIA GeForce RTX 4070", second.name]
    assert (have.graphics.first, have.flavours["tensorrt-rtx"].why) == (second, f"on {second.name}")
    assert clocks_row(have).found.startswith("SM 1980 of 2100 MHz")
