"""What a machine has, found once, and the lines that `nrd_trt.machine.doctor` makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from nrd_trt.machine.gpu import Gpu, Graphics, find_graphics
from nrd_trt.machine.host import Machine
from nrd_trt.machine.jetson import Jetson, find_jetson
from nrd_trt.machine.software import DISTRIBUTIONS, Flavour, Ort, Torch, ask, find_flavour, find_package

Status = Literal["ok", "limited", "missing", "n/a"]


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a machine has; `cuda` is the GPU as the driver opens it or what it says, None where there is no GPU."""

    machine: Machine
    jetson: Jetson | None
    graphics: Graphics
    cuda: Gpu | str | None
    torch: Torch
    ort: Ort
    flavours: Mapping[str, Flavour]


def take_inventory(machine: Machine) -> Inventory:
    """Look at board, GPUs and packages; what is missing is a finding, never an error."""
    jetson = find_jetson(machine)
    graphics = find_graphics(machine, jetson)
    with ThreadPoolExecutor(max_workers=4) as pool:  # children that import heavy packages, side by side
        torch = pool.submit(find_package, machine, Torch, "torch")
        ort = pool.submit(find_package, machine, Ort, "onnxruntime", "onnxruntime-gpu")
        cuda = ask(machine, Gpu, "-m", "nrd_trt.machine.software", "cuda") if graphics.gpus else None
        if isinstance(cuda, Gpu) and len(graphics.gpus) > 1:
            graphics = replace(graphics, used=cuda)
        flavours = pool.map(partial(find_flavour, machine, graphics=graphics), DISTRIBUTIONS)
        return Inventory(
            machine=machine,
            jetson=jetson,
            graphics=graphics,
            cuda=cuda,
            torch=torch.result(),
            ort=ort.result(),
            flavours={flavour.name: flavour for flavour in flavours},
        )


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        name: What was looked for.
        status: ``"ok"``, ``"limited"``, ``"missing"``, or ``"n/a"`` where this machine has no use for it.
        found: What is there, in words.
        remedy: The command, or the step, that supplies what is missing; None where nothing is.
    """

    name: str
    status: Status
    found: str
    remedy: str | None = None


@dataclass(frozen=True)
class Ability:
    """Something that the toolkit does.

    Attributes:
        name: Such as ``"build: tensorrt-rtx"``.
        possible: Whether this machine can do it.
        why: With what, or what is missing.
        remedy: What makes it possible, or None where it is.
    """

    name: str
    possible: bool
    why: str
    remedy: str | None = None
