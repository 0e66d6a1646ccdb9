"""Instruments on doubles of NVML and on recorded boards, and the log of a run. No device is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest

from nrd_trt.errors import MissingDependencyError
from nrd_trt.machine import clocks
from nrd_trt.machine.clocks import DeviceLog, DeviceMonitor, NvmlProbe, ProbedDevice, Reading, TegraProbe, open_probe
from tests.machine.recorded import NO_GPU, ORIN, clock, recorded


class NvmlError(Exception):
    """What pynvml raises."""


def fake_nvml(**answers: Any) -> Mock:
    """Return pynvml with one busy GPU, whose driver is older than the newer name of the reasons, with other answers."""
    answers = {
        "Name": "NVIDIA L4", "ClockInfo": 1200, "MaxClockInfo": 2040, "PowerUsage": 71500, "Temperature": 55,
        "MemoryInfo": SimpleNamespace(used=512 << 20), "CurrentClocksThrottleReasons": 0x44,
        "CurrentClocksEventReasons": None, "Count": 1, **answers,
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
