"""Which GPU this process uses. Everything else in the house uses the first one that CUDA shows."""

from __future__ import annotations

import os
import re

from nrd_trt.errors import ConfigError

_ORDER, _VISIBLE = "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"


def check_device(device: int | str | None) -> None:
    """Raise `ConfigError` unless `device` has the form of a number or a UUID, or is None."""
    number = isinstance(device, int) and not isinstance(device, bool) and device >= 0
    uuid = isinstance(device, str) and re.fullmatch(r"(GPU|MIG)-[\w/-]+", device)
    if not (device is None or number or uuid):
        raise ConfigError(f"device={device!r}: expected a number from 0 on, or a UUID such as GPU-… or MIG-….")


def choose_device(device: int | str | None) -> None:
    """Let a GPU be the only one that CUDA shows to this process; None changes nothing."""
    if device is None:
        return
    visible, chosen = os.environ.get(_VISIBLE), str(device)
    if isinstance(device, int) and visible is not None:
        names = [name.strip() for name in visible.split(",")]
        if device >= len(names):
            raise ConfigError(f"device={device}: expected a number below {len(names)}, as {_VISIBLE} is {visible!r}.")
        chosen = names[device]
    os.environ.update({_ORDER: "PCI_BUS_ID", _VISIBLE: chosen})
