"""Instruments on doubles of NVML and on recorded boards, and the log of a run. No device is needed."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest

from nrd_trt.errors import MissingDependencyError
from nrd_trt.machine import clocks, energy
from nrd_trt.machine.clocks import DeviceLog, DeviceMonitor, NvmlProbe, ProbedDevice, Reading, TegraProbe, open_probe
from nrd_trt.machine.energy import Energy, SamplingMeter
from nrd_trt.machine.host import Machine
from nrd_trt.machine.jetson import find_rails, rails_power_w
from tests.machine.recorded import (
    AGX_ORIN_RAILS,
    NO_GPU,
    ORIN,
    ORIN_NX_RAILS,
    THOR_RAILS,
    clock,
    hwmon,
    recorded,
)
from tests.runtime.fake_cuda import FakeDriver


class NvmlError(Exception):
    """What pynvml raises."""


def fake_nvml(**answers: Any) -> Mock:
    """Return pynvml with one busy GPU, whose driver is older than the newer name of the reasons, with other answers."""
    answers = {
        "Name": "NVIDIA L4", "ClockInfo": 1200, "MaxClockInfo": 2040, "PowerUsage": 71500, "Temperature": 55,
        "MemoryInfo": SimpleNamespace(used=512 << 20), "CurrentClocksThrottleReasons": 0x44,
        "CurrentClocksEventReasons": None, "Count": 1, "TotalEnergyConsumption": 5_000_000, **answers,
    }  # fmt: skip
    nvml = Mock(NVMLError=NvmlError, NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0)
    nvml.nvmlSystemGetDriverVersion.return_value = "580.95.05"
    for name, value in answers.items():
        function = getattr(nvml, f"nvmlDeviceGet{name}")
        function.return_value, function.side_effect = value, NvmlError("Not Supported") if value is None else None
    return nvml


def test_nvml_reading() -> None:
    nvml = fake_nvml()
    probe = NvmlProbe(nvml)
    assert probe.device() == ProbedDevice(source="nvml", name="NVIDIA L4", driver="580.95.05")
    assert probe.read() == Reading(
        clock_mhz=1200,
        clock_max_mhz=2040,
        power_w=71.5,
        temperature_c=55,
        memory_used_mib=512,
        throttle=("power cap", "hardware thermal slowdown"),
    )
    assert probe.glance().clock_max_mhz is None
    assert probe.notes == []
    handle = nvml.nvmlDeviceGetHandleByIndex.return_value
    nvml.nvmlDeviceGetClockInfo.assert_called_with(handle, 1)
    nvml.nvmlDeviceGetMaxClockInfo.assert_called_with(handle, 1)
    nvml.nvmlDeviceGetTemperature.assert_called_with(handle, 0)


def test_nvml_figures_that_a_gpu_does_not_tell_are_null() -> None:
    """A Thor tells no memory, an older GeForce no throttle reasons; their newer name comes first."""
    got = NvmlProbe(fake_nvml(MemoryInfo=None, PowerUsage=None, CurrentClocksThrottleReasons=None)).read()
    assert (got.memory_used_mib, got.power_w, got.throttle, got.temperature_c) == (None, None, (), 55)
    assert NvmlProbe(fake_nvml(CurrentClocksEventReasons=0x20)).glance().throttle == ("software thermal slowdown",)


@pytest.mark.parametrize(
    ("visible", "asked"), [("2,0", call.ByIndex(2)), ("GPU-8f1c", call.ByUUID("GPU-8f1c")), ("", call.ByIndex(0))]
)
def test_nvml_looks_at_the_gpu_in_use(visible: str, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml, handles = fake_nvml(Count=4), Mock()
    nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID = handles.ByIndex, handles.ByUUID
    probe = NvmlProbe(nvml)
    assert handles.mock_calls == [asked]
    assert bool(probe.notes) == (not visible)  # which of four GPUs ran is then a guess
    assert not nvml.nvmlShutdown.called
    probe.close()
    nvml.nvmlShutdown.assert_called_once_with()
    handles.ByIndex.side_effect = handles.ByUUID.side_effect = NvmlError("Invalid Argument")
    with pytest.raises(NvmlError):
        NvmlProbe(nvml)
    assert (nvml.nvmlInit.call_count, nvml.nvmlShutdown.call_count) == (2, 2)


@pytest.mark.parametrize(("uuid", "part"), [("GPU-00000000", False), ("MIG-00000001", True)])
def test_nvml_looks_where_cuda_says_that_the_gpu_is(
    uuid: str, part: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers in CUDA_VISIBLE_DEVICES are CUDA's, which may count otherwise than NVML."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{uuid}-0000-0000-0000-000000000000")
    FakeDriver(monkeypatch)
    nvml = fake_nvml(Count=4)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(clocks, "require", Mock(return_value=nvml))
    probe, _ = open_probe()
    nvml.nvmlDeviceGetHandleByPciBusId.assert_called_once_with("0000:65:00.0")
    assert not nvml.nvmlDeviceGetHandleByIndex.called and not nvml.nvmlDeviceGetHandleByUUID.called
    assert isinstance(probe, NvmlProbe)
    assert ["energy are those of the whole GPU" in note for note in probe.notes] == [True] * part


def test_nvml_energy_is_the_difference_of_its_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((10.0, 14.0))
    monkeypatch.setattr(clocks.time, "monotonic", lambda: next(now))
    nvml = fake_nvml()
    meter = NvmlProbe(nvml).meter()
    with meter:
        nvml.nvmlDeviceGetTotalEnergyConsumption.return_value += 250_000
    assert meter.energy == Energy(joules=250.0, seconds=4.0, source="NVML's counter") and meter.energy.watts == 62.5
    monkeypatch.undo()
    with meter:
        pass  # the counter did not move
    assert meter.energy is None
    silent = NvmlProbe(fake_nvml(TotalEnergyConsumption=None)).meter()
    with silent:
        pass
    assert silent.energy is None


def test_energy_of_a_board_is_sampled_from_its_rails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 6 W at every look; the thread looks until it has done so twice."""
    monkeypatch.setattr(energy, "_SAMPLE_EVERY_S", 0.001)
    machine = recorded(tmp_path, ORIN, files=ORIN_NX_RAILS)
    meter, looked = TegraProbe(machine).meter(), threading.Event()
    assert isinstance(meter, SamplingMeter)
    looks: list[str] = []

    def read(_: Machine, rails: Any) -> float | None:
        looks.append(threading.current_thread().name)
        if looks.count("energy") == 2:
            looked.set()
        return rails_power_w(machine, rails)

    monkeypatch.setattr(clocks, "rails_power_w", read)
    with meter:
        assert looked.wait(30)
    assert (looks[0], looks[-1]) == ("MainThread", "MainThread")  # it begins and ends with a look
    assert meter.energy is not None and meter.energy.watts == pytest.approx(6.0)
    assert meter.energy.source == "rails VDD_IN in sysfs, sampled"
    silent = TegraProbe(recorded(tmp_path / "silent", NO_GPU)).meter()
    with silent:
        pass
    assert silent.energy is None
    assert "energy" not in {thread.name for thread in threading.enumerate()}


def test_sampled_power_is_summed_over_uneven_steps() -> None:
    assert energy.summed([(1.0, 10.0), (2.0, 20.0), (4.0, 20.0)]) == (15.0 + 40.0, 3.0)
    assert energy.summed([(1.0, 10.0)]) == (0, 0.0) and energy.summed([]) == (0, 0.0)


@pytest.mark.parametrize(
    ("files", "names", "watts"),
    [
        (ORIN_NX_RAILS, ["VDD_IN"], 6.0),
        (AGX_ORIN_RAILS, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"], 2.4 + 0.5 + 4.0 + 1.25),
        (THOR_RAILS, ["VIN"], 41.25),
        ({**hwmon(0, "ucsi_source_psy_usbc", (("VIN", 5000, 3000),))}, [], None),
        ({}, [], None),
    ],
)
def test_rails_that_make_up_the_power_of_a_board(
    files: dict[str, str], names: list[str], watts: float | None, tmp_path: Path
) -> None:
    machine = recorded(tmp_path, ORIN, files=files)
    rails = find_rails(machine)
    assert [rail.name for rail in rails] == names
    assert rails_power_w(machine, rails) == (None if watts is None else pytest.approx(watts))
    if rails:
        rails[-1].factors[0].unlink()  # a rail that is gone would be missing in the sum
        assert rails_power_w(machine, rails) is None


def test_instruments_are_found_or_their_absence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml()
    nvml.nvmlInit.side_effect = NvmlError("Driver Not Loaded")
    monkeypatch.setenv("PATH", str(tmp_path))
    absent = MissingDependencyError("needs pynvml: pip install nrd-trt[gpu]")
    for require, words in (
        (Mock(side_effect=absent), "nrd-trt[gpu]"),
        (Mock(return_value=nvml), "Driver Not Loaded"),
    ):
        monkeypatch.setattr(clocks, "require", require)
        probe, reason = open_probe()
        assert probe is None and reason is not None and words in reason
    (tmp_path / "tegrastats").touch(0o755)  # a Jetson is read by its own tool
    probe, reason = open_probe()
    assert isinstance(probe, TegraProbe) and reason is None
    probe.close()


def test_board_is_read_and_over_current_during_the_run_noticed(tmp_path: Path) -> None:
    counter = "sys/class/hwmon/hwmon1/oc1_event_cnt"
    files = {counter: "3\n", **clock(1300500000, 306000000, 1300500000)}
    probe = TegraProbe(recorded(tmp_path, ORIN, files=files))
    assert probe.device() == ProbedDevice(
        source="tegrastats", name="NVIDIA Jetson AGX Orin Developer Kit", power_mode="MAXN"
    )
    expected = {"clock_max_mhz": 1300.5, "power_w": 6.755, "temperature_c": 44.343, "memory_used_mib": 4321}
    assert probe.read() == Reading(clock_mhz=0, **expected)  # tegrastats says that the GPU was off
    (tmp_path / counter).write_text("4\n")
    assert probe.read() == Reading(clock_mhz=0, throttle=("over-current protection",), **expected)
    assert probe.glance() == Reading(clock_mhz=1300.5, clock_max_mhz=1300.5)
    silent = TegraProbe(recorded(tmp_path / "silent", NO_GPU))
    assert (silent.device(), silent.read()) == (ProbedDevice(source="tegrastats"), Reading())


def test_log_of_a_run() -> None:
    log = DeviceLog(
        before=Reading(clock_mhz=210, clock_max_mhz=2000, memory_used_mib=100, throttle=("power cap",)),
        during=[Reading(clock_mhz=value, memory_used_mib=300) for value in (1900, 1700, None)],
        after=Reading(power_w=70.0, temperature_c=60.0, memory_used_mib=250, clock_mhz=1500, throttle=("b", "a")),
    )
    assert log.to_dict() == {
        "clock_mhz": {"before": 210, "during": 1800, "after": 1500, "max": 2000},
        "power_w": {"before": None, "during": None, "after": 70.0},
        "temperature_c": {"before": None, "during": None, "after": 60.0},
        "throttle": ["a", "b"],  # what throttled before the run has passed
    }
    assert log.memory_grown_mib == 200
    assert DeviceLog(before=Reading(), during=(), after=log.after).memory_grown_mib is None


def test_monitor_looks_at_most_every_fifth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clocks.time, "monotonic", lambda: now[0])
    monitor = DeviceMonitor(NvmlProbe(fake_nvml()))
    for step in range(10):
        now[0] = step * 0.05
        monitor.glance()
    assert len(monitor.finish().during) == 3  # at 0, 0.2 and 0.4 s
