"""Parsers on lines and answers in the shape that devices give, and the rules that mark a run. No device is needed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nrd_trt.benchmarking.marks import arithmetic_notes, comparison_notes, device_marks, load_marks, spread_marks
from nrd_trt.benchmarking.timers import Latency
from nrd_trt.errors import MissingDependencyError
from nrd_trt.machine import device, host, tegrastats
from nrd_trt.machine.device import NvmlProbe, Recorder, TegraProbe, open_probe, throttle_reasons
from nrd_trt.machine.readings import DeviceLog, Reading

# One line each in the shape of its release: fields, brackets, letter case and units are those of the device.
ORIN_NANO_JP6 = (
    "10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) CPU [38%@1497,2%@729,off,off] "
    "EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] NVDEC off VIC off APE 200 cpu@57.125C soc2@55.093C gpu@58.625C tj@58.312C "
    "VDD_IN 16321mW/11204mW VDD_CPU_GPU_CV 7104mW/4944mW VDD_SOC 3120mW/3659mW"
)
AGX_ORIN_IDLE_JP6 = (
    "04-11-2026 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C GPU@-256C tj@44.343C "
    "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW"
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
    ("line", "clock_mhz", "power_w", "temperature_c", "memory"),
    [
        (ORIN_NANO_JP6, 612, 16.321, 58.625, 6712),
        (AGX_ORIN_IDLE_JP6, 0, 4.025, 44.343, 4321),  # the GPU's sensor is off: the junction's is taken
        (AGX_ORIN_JP7, 1300, 7.21, 51.5, 20642),
        (THOR_JP7, 1574, 124.486, 56.937, 8353),  # VIN is the board; VIN_SYS_5V0 comes first in the line
        ("GR3D_FREQ 12% RAM 1/2MB", None, None, None, 1),  # a load is no clock
        ("GR3D_FREQ 45%@318 GPU@37.5C", 318, None, 37.5, None),
        ("GR3D_FREQ @[N/A] gpu@-256C", None, None, None, None),
        ("", None, None, None, None),
    ],
)
def test_tegrastats_line(
    line: str, clock_mhz: float | None, power_w: float | None, temperature_c: float | None, memory: float | None
) -> None:
    got = tegrastats.parse_line(line)
    assert got.clock_mhz == clock_mhz
    assert got.power_w == pytest.approx(power_w)
    assert got.temperature_c == temperature_c
    assert got.memory_used_mib == memory
    assert got.throttle == ()


def test_one_line_is_read_of_a_command_that_goes_on_printing() -> None:
    endless = "import time; print('first', flush=True)\nwhile True: time.sleep(0.01); print('next', flush=True)"
    assert tegrastats.read_line([sys.executable, "-c", endless]) == "first\n"


def test_silent_and_absent_commands_give_an_empty_line() -> None:
    start = time.monotonic()
    assert tegrastats.read_line([sys.executable, "-c", "import time; time.sleep(600)"], timeout_s=0.2) == ""
    assert time.monotonic() - start < 60
    assert tegrastats.read_line(["/absent/tegrastats"]) == ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", ["17000000.gpu", "17000000.ga10b", "gpu-gpc-0"])
def test_gpu_clock_in_sysfs(name: str, tmp_path: Path) -> None:
    _write(tmp_path / "13e00000.emc" / "cur_freq", "1\n")
    _write(tmp_path / name / "cur_freq", "306000000\n")
    assert tegrastats.gpu_clock_mhz(tmp_path) == (306, None)
    _write(tmp_path / name / "max_freq", "1300500000\n")
    assert tegrastats.gpu_clock_mhz(tmp_path) == (306, 1300.5)
    assert tegrastats.gpu_clock_mhz(tmp_path / "absent") == (None, None)


def test_over_current_events_are_summed(tmp_path: Path) -> None:
    assert tegrastats.over_current_events(tmp_path) is None
    _write(tmp_path / "hwmon1" / "oc1_event_cnt", "2\n")
    _write(tmp_path / "hwmon4" / "oc3_event_cnt", "5\n")
    assert tegrastats.over_current_events(tmp_path) == 7


def test_power_mode() -> None:
    said = "NV Power Mode: MODE_30W\n2\n"
    assert tegrastats.power_mode([sys.executable, "-c", f"print({said!r})"]) == "MODE_30W"
    assert tegrastats.power_mode([sys.executable, "-c", "print('sudo needed')"]) is None
    assert tegrastats.power_mode(["/absent/nvpmodel"]) is None


def test_tegra_probe_notices_over_current_during_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [3, 3, 4]
    monkeypatch.setattr(tegrastats, "over_current_events", lambda: events.pop(0))
    monkeypatch.setattr(tegrastats, "read_line", lambda: THOR_JP7)
    monkeypatch.setattr(tegrastats, "gpu_clock_mhz", lambda: (1500.0, 1575.0))
    probe = TegraProbe()
    before, after = probe.read(), probe.read()
    assert (before.throttle, after.throttle) == ((), ("over-current protection",))
    assert (before.clock_mhz, before.clock_max_mhz, before.power_w) == (1574, 1575, 124.486)
    assert probe.glance().clock_mhz == 1500


# --- NVML ------------------------------------------------------------------------------------------------------------


class NvmlError(Exception):
    """What pynvml raises."""


class FakeNvml:
    """pynvml with one busy GPU; figures named in `silent` are not supported."""

    NVMLError = NvmlError
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, *, reasons: int = 0, silent: tuple[str, ...] = (), gpus: int = 1) -> None:
        self.reasons, self.silent, self.gpus = reasons, silent, gpus
        self.asked: list[Any] = []
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index >= self.gpus:
            raise NvmlError("Invalid Argument")
        self.asked.append(index)
        return f"gpu{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> str:
        self.asked.append(bus_id)
        return bus_id

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.95.05"

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetName": "NVIDIA L4",
            "nvmlDeviceGetClockInfo": 1200,
            "nvmlDeviceGetMaxClockInfo": 2040,
            "nvmlDeviceGetPowerUsage": 71500,
            "nvmlDeviceGetTemperature": 55,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=512 << 20),
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.reasons,
        }
        if name not in answers:  # as in a pynvml from before the newer names
            raise AttributeError(name)

        def answer(handle: str, *_: Any) -> Any:
            if name in self.silent:
                raise NvmlError("Not Supported")
            return answers[name]

        return answer


def _nvml_probe(nvml: FakeNvml, bus_id: str | None = None) -> NvmlProbe:
    return NvmlProbe(nvml, bus_id)  # type: ignore[arg-type]


def test_nvml_reading() -> None:
    probe = _nvml_probe(FakeNvml(reasons=0x44))
    assert probe.facts() == {"name": "NVIDIA L4", "driver": "580.95.05"}
    assert probe.read() == Reading(
        clock_mhz=1200,
        clock_max_mhz=2040,
        power_w=71.5,
        temperature_c=55,
        memory_used_mib=512,
        throttle=("power cap", "hardware thermal slowdown"),
    )
    assert probe.glance().clock_max_mhz is None


def test_nvml_figures_that_a_gpu_does_not_tell_are_null() -> None:
    """A Thor tells no memory, an older GeForce no throttle reasons."""
    silent = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksThrottleReasons")
    got = _nvml_probe(FakeNvml(silent=silent)).read()
    assert (got.memory_used_mib, got.power_w, got.throttle, got.temperature_c) == (None, None, (), 55)


def test_newer_name_of_the_reasons_comes_first() -> None:
    nvml = FakeNvml(reasons=0x4)
    nvml.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0x20  # type: ignore[attr-defined]
    assert _nvml_probe(nvml).glance().throttle == ("software thermal slowdown",)


@pytest.mark.parametrize(
    ("bus_id", "visible", "asked"),
    [("0000:65:00.0", "3", "0000:65:00.0"), (None, "2,0", 2), (None, "GPU-8f1c", "GPU-8f1c"), (None, "", 0)],
)
def test_nvml_looks_at_the_gpu_in_use(
    bus_id: str | None, visible: str, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = FakeNvml(gpus=4)
    probe = _nvml_probe(nvml, bus_id)
    assert nvml.asked == [asked]
    assert bool(probe.notes) == (not visible)  # which of four GPUs ran is then a guess


def test_failed_probe_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    nvml = FakeNvml()
    with pytest.raises(NvmlError):
        _nvml_probe(nvml)
    assert nvml.open == 0


def test_absent_instruments_are_said_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise MissingDependencyError("needs pynvml: pip install nrd-trt[gpu]")

    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    monkeypatch.setattr(device, "require", absent)
    probe, reason = open_probe()
    assert probe is None and reason is not None and "nrd-trt[gpu]" in reason
    nvml = FakeNvml()
    nvml.nvmlInit = lambda: (_ for _ in ()).throw(NvmlError("Driver Not Loaded"))  # type: ignore[method-assign]
    monkeypatch.setattr(device, "require", lambda *_, **__: nvml)
    probe, reason = open_probe()
    assert probe is None and reason is not None and "Driver Not Loaded" in reason


def test_jetson_is_read_by_its_own_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "tegrastats" else None)
    probe, reason = open_probe()
    assert isinstance(probe, TegraProbe) and reason is None


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0, ()),
        (0x1, ()),  # idle
        (0x2, ()),  # clocks set by a user
        (0x3, ()),
        (0x1 | 0x80, ("power brake",)),
        (0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown")),
        (0x4000, ("reason 0x4000",)),
    ],
)
def test_throttle_reasons(mask: int, names: tuple[str, ...]) -> None:
    assert throttle_reasons(mask) == names


# --- the run ---------------------------------------------------------------------------------------------------------


def _log(*clocks: float | None, largest: float | None = 2000, **after: Any) -> DeviceLog:
    return DeviceLog(
        before=Reading(clock_mhz=210, clock_max_mhz=largest, memory_used_mib=100, throttle=("power cap",)),
        during=[Reading(clock_mhz=clock, memory_used_mib=300) for clock in clocks],
        after=Reading(**after),
    )


@pytest.mark.parametrize(
    ("log", "marks"),
    [
        (None, []),
        (_log(1900, 1950), []),  # what throttled before the run has passed
        (_log(1000, 1000), []),  # exactly half
        (_log(999, 990), ["low clocks: the GPU ran at 994 of 2000 MHz"]),
        (_log(300, 1900, 1900), []),  # the median: one glance came too early
        (_log(None), []),
        (_log(300, largest=None), []),
        (_log(), []),
        (_log(1900, throttle=("power brake",)), ["throttled: power brake"]),
        (_log(300, throttle=("b", "a")), ["throttled: a, b", "low clocks"]),
    ],
)
def test_device_marks(log: DeviceLog | None, marks: list[str]) -> None:
    got = device_marks(log)
    assert len(got) == len(marks)
    assert all(text.startswith(start) for text, start in zip(got, marks, strict=True))


def test_device_log_as_json() -> None:
    log = _log(1900, 1700, power_w=70.0, temperature_c=60.0, memory_used_mib=250, clock_mhz=1500)
    assert log.to_dict() == {
        "clock_mhz": {"before": 210, "during": 1800, "after": 1500, "max": 2000},
        "power_w": {"before": None, "during": None, "after": 70.0},
        "temperature_c": {"before": None, "during": None, "after": 60.0},
        "throttle": [],
    }
    assert log.memory_grown_mib == 200


def test_recorder_looks_at_most_every_fifth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(device.time, "monotonic", lambda: now[0])
    recorder = Recorder(_nvml_probe(FakeNvml()))
    for step in range(10):
        now[0] = step * 0.05
        recorder.glance()
    assert len(recorder.finish().during) == 3  # at 0, 0.2 and 0.4 s


@pytest.mark.parametrize(
    ("load", "cores", "marked"), [(2.1, 2, True), (2.0, 2, False), (0.0, 1, False), (None, 2, False)]
)
def test_load_marks(load: float | None, cores: int, marked: bool) -> None:
    got = load_marks(load, cores)
    assert bool(got) == marked
    assert all("other work was running: load average 2.1 on 2 cores" in text for text in got)


def test_spread_marks() -> None:
    assert spread_marks(Latency.of([0.010] * 8 + [0.0149] * 2)) == []
    (text,) = spread_marks(Latency.of([0.010] * 8 + [0.030] * 2))
    assert "p90 is 3.0 times p50" in text


def test_simulated_arithmetic_is_no_figure_of_the_device() -> None:
    assert arithmetic_notes("native") == []
    assert "says nothing about the device" in arithmetic_notes("simulated")[0]


def test_ratio_between_sizes_is_said_to_be_unequal() -> None:
    assert comparison_notes(["64x96", "64x96"]) == []
    assert "64x96, 32x32" in comparison_notes(["64x96", "32x32", "64x96"])[0]


def test_cpu_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpuinfo, board = tmp_path / "cpuinfo", tmp_path / "model"
    monkeypatch.setattr(host, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(host, "_BOARD", board)
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 62.50\n")
    board.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert host.cpu_model() == "NVIDIA Jetson AGX Orin Developer Kit"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC\nprocessor\t: 1\nmodel name\t: AMD EPYC\n")
    assert host.cpu_model() == "AMD EPYC"
