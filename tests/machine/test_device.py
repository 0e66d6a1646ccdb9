"""The choice of a GPU, on the fake driver: what CUDA shows afterwards, and choices that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import nrd_trt
from nrd_trt.errors import ConfigError, RunnerError
from nrd_trt.machine import device as device_module
from nrd_trt.machine.cuda import probe_device
from nrd_trt.machine.device import choose_device
from tests.artefacts import bundle
from tests.runtime.fake_cuda import FakeDriver, library_folder

ORDER, VISIBLE = "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"
MIG, FIRST, SECOND = (
    f"{name}-0000-0000-0000-000000000000" for name in ("MIG-00000002", "GPU-00000000", "GPU-00000001")
)
LISTED = rf"\(0 is Fake GPU 0, {FIRST}, 1 is Fake GPU 1, {SECOND}\)"


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A machine with two GPUs, of which the second has a part; this process and its children see it."""
    monkeypatch.setenv("FAKE_GPUS", "2")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library_folder()))
    for name in (ORDER, VISIBLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(device_module, "_choice", None)
    return FakeDriver(monkeypatch)


def used() -> tuple[str, str | None, str | None]:
    """Return name, UUID and place of the GPU that this process uses; from here on it uses it."""
    gpu = probe_device()
    assert gpu is not None
    return gpu.name, gpu.uuid, gpu.pci_bus_id


def test_a_number_is_that_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_device(None)
    assert VISIBLE not in os.environ
    choose_device(0)
    choose_device(1)  # nothing uses CUDA yet
    assert (os.environ[ORDER], os.environ[VISIBLE]) == ("PCI_BUS_ID", "1")
    assert used() == ("Fake GPU 1", SECOND, "0000:66:00.0")
    choose_device(SECOND)  # is the same one
    with monkeypatch.context() as patch:
        patch.setattr(device_module, "ask", lambda *_: pytest.fail("it is chosen already"))
        choose_device(SECOND)
    with pytest.raises(ConfigError, match=f"device=0: expected .* got Fake GPU 1, {SECOND}, which .*{VISIBLE}=0"):
        choose_device(0)
    assert os.environ[VISIBLE] == SECOND


def test_a_number_is_one_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, f"{SECOND}, 0")
    choose_device(1)
    assert (os.environ[VISIBLE], ORDER in os.environ) == ("0", False)  # their order is the user's
    choose_device(0)
    assert used()[0] == "Fake GPU 1"
    choose_device(0)


def test_a_part_of_a_gpu_is_known_by_its_uuid() -> None:
    choose_device(MIG)
    assert os.environ[VISIBLE] == MIG
    assert used() == ("Fake GPU 1 MIG 1g.5gb", MIG, "0000:66:00.0")


@pytest.mark.parametrize(
    ("device", "visible", "listed"),
    [
        (2, None, LISTED),
        ("GPU-12345678", None, LISTED),
        (1, "1", rf"\(0 is Fake GPU 1, {SECOND}\)"),
    ],
)
def test_what_is_not_there(
    device: int | str, visible: str | None, listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    with pytest.raises(
        ConfigError, match=rf"^device={device}: expected a GPU that CUDA shows here {listed}, got none; "
    ):
        choose_device(device)
    assert os.environ.get(VISIBLE) == visible
    assert used()[0] == f"Fake GPU {visible or 0}"  # the process is not spoilt


def test_without_a_gpu_the_driver_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("FAKE_GPUS", "0")
    with pytest.raises(RunnerError, match=r"^device=0: CUDA: (the driver's library cannot be loaded|cuInit failed)"):
        nrd_trt.open_bundle(bundle(), device=0)


def test_a_driver_that_works_and_shows_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_EMPTY", "1")
    with pytest.raises(
        RunnerError, match=r"^device=0: CUDA: expected a GPU, got none, although the driver works; see "
    ):
        choose_device(0)
    assert VISIBLE not in os.environ


def test_a_process_that_uses_another_gpu_is_told_so() -> None:
    assert used()[0] == "Fake GPU 0"
    with pytest.raises(ConfigError, match=rf"^device=1: expected .*, got Fake GPU 0, {FIRST}, .* {VISIBLE}=1\.$"):
        nrd_trt.open_bundle(bundle(), device=1)
    nrd_trt.open_bundle(bundle(), device=0)
