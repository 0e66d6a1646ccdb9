"""Which GPU this process uses. Everything else in the house uses the first one that CUDA shows.

CUDA reads its choice from the environment when it is first used, once for a process. A child process tells beforehand
what it would find there, so that a choice that cannot be does not spoil the process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from nrd_trt.errors import ConfigError, NrdTrtError, RunnerError
from nrd_trt.machine import libcuda
from nrd_trt.machine.cuda import probe_device
from nrd_trt.machine.gpu import Gpu
from nrd_trt.machine.host import Machine
from nrd_trt.machine.software import ask

_ORDER, _VISIBLE = "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"
_BY_BUS = "PCI_BUS_ID"
"""The order of nvidia-smi; CUDA's own puts the fastest first."""


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """What `choose_device` was asked for last, what it set CUDA_VISIBLE_DEVICES to, and what that was before."""

    device: int | str
    visible: str
    before: str | None


_choice: _Choice | None = None


def check_device(device: int | str | None) -> None:
    """Raise `ConfigError` unless `device` is None or has the form of a number or a UUID."""
    number = isinstance(device, int) and not isinstance(device, bool) and device >= 0
    uuid = isinstance(device, str) and re.fullmatch(r"(GPU|MIG)-[\w/-]+", device)
    if not (device is None or number or uuid):
        raise ConfigError(f"device={device!r}: expected a number from 0 on, or a UUID such as GPU-… or MIG-….")


def choose_device(device: int | str | None) -> None:
    """Let one GPU be all that CUDA shows to this process; None leaves the choice to the environment.

    Args:
        device: A number, from 0 on, among the GPUs that CUDA_VISIBLE_DEVICES names, or where it is not set among all,
            in the order of nvidia-smi; or a UUID as ``nvidia-smi -L`` lists them, of a MIG instance too.

    Raises:
        ConfigError: There is no such GPU, or this process uses another one already.
        RunnerError: There is no usable GPU at all; the message says why.
    """
    global _choice
    visible = os.environ.get(_VISIBLE)
    if device is None:
        return
    if _choice is not None and _choice.visible == visible:
        if _choice.device == device:
            return
        visible = _choice.before  # a number is one of those
    wanted = _entry(device, visible)
    order = {} if visible is not None or _ORDER in os.environ else {_ORDER: _BY_BUS}
    found = _shown(wanted, order)
    if isinstance(found, str) or not found:
        raise _refusal(device, _shown(visible, order))
    used = probe_device() if libcuda.is_initialised() else None
    if used is not None and used.uuid != found[0].uuid:
        raise ConfigError(
            f"device={device}: expected a choice before this process uses CUDA, got {_described(used)}, which it uses "
            f"already; choose first, or start a process with {_VISIBLE}={wanted}."
        )
    os.environ.update({**order, _VISIBLE: wanted})
    _choice = _Choice(device=device, visible=wanted, before=visible)


def _entry(device: int | str, visible: str | None) -> str:
    """Return what CUDA_VISIBLE_DEVICES must be; ``""``, which hides all, where there is no such number."""
    if isinstance(device, str) or visible is None:
        return str(device)
    entries = visible.split(",")
    return entries[device].strip() if device < len(entries) else ""


def _shown(visible: str | None, order: Mapping[str, str]) -> list[Gpu] | str:
    """Return what CUDA shows to a process with these variables, or why it shows nothing."""
    setting = _VISIBLE if visible is None else f"{_VISIBLE}={visible}"
    settings = (setting, *(f"{name}={value}" for name, value in order.items()))
    return ask(Machine(), list[Gpu], "-m", "nrd_trt.machine.software", "gpus", *settings)


def _refusal(device: int | str, shown: list[Gpu] | str) -> NrdTrtError:
    if isinstance(shown, str) or not shown:
        why = shown or "CUDA: expected a GPU, got none, although the driver works; see `nvidia-smi -L`."
        return RunnerError(f"device={device}: {why}")
    listed = ", ".join(f"{index} is {_described(gpu)}" for index, gpu in enumerate(shown))
    return ConfigError(
        f"device={device}: expected a GPU that CUDA shows here ({listed}), got none; choose one of them, or a MIG "
        "instance of `nvidia-smi -L`."
    )


def _described(gpu: Gpu) -> str:
    return f"{gpu.name}, {gpu.uuid}"
