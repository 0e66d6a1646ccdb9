"""All probes of a machine, and what they add up to: which verbs can work here, and why."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import nrd_trt
from nrd_trt.machine.doctor import gpu, host, jetson, plugin, software, video
from nrd_trt.machine.doctor.gpu import Graphics
from nrd_trt.machine.doctor.jetson import Jetson
from nrd_trt.machine.doctor.machine import Machine, Row
from nrd_trt.machine.doctor.software import Flavour, Ort, Torch


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found on a machine."""

    rows: tuple[Row, ...]
    abilities: tuple[Ability, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "nrd_trt": nrd_trt.__version__,
            "capabilities": [asdict(row) for row in self.rows],
            "summary": [asdict(ability) for ability in self.abilities],
        }


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """What several rows and the summary are made of."""

    jetson: Jetson | None
    graphics: Graphics
    torch: Torch
    ort: Ort
    flavours: Mapping[str, Flavour]


def examine(machine: Machine) -> Report:
    """Look at everything; what is missing is a finding, never an error."""
    board = jetson.find_jetson(machine)
    graphics = gpu.find_graphics(machine, board)
    with ThreadPoolExecutor(max_workers=4) as pool:  # children that import heavy packages, side by side
        torch = pool.submit(software.find_torch, machine)
        ort = pool.submit(software.find_ort, machine)
        flavours = {name: pool.submit(software.find_flavour, machine, name, graphics) for name in software.TITLES}
        found = _Findings(
            jetson=board,
            graphics=graphics,
            torch=torch.result(),
            ort=ort.result(),
            flavours={name: future.result() for name, future in flavours.items()},
        )
    return Report(rows=tuple(_rows(machine, found)), abilities=tuple(_abilities(machine, found)))


def _rows(machine: Machine, found: _Findings) -> list[Row]:
    graphics = found.graphics
    clocks = gpu.clocks_row(machine, graphics) if found.jetson is None else jetson.clocks_row(machine)
    return [
        host.python_row(machine),
        software.torch_row(found.torch, graphics),
        software.onnx_row(machine),
        software.ort_row(found.ort),
        *(software.flavour_row(flavour, found.jetson, graphics) for flavour in found.flavours.values()),
        *gpu.gpu_rows(machine, graphics),
        gpu.driver_row(machine, graphics, software.needed_cuda(found.torch, found.flavours), jetson=found.jetson),
        gpu.toolkit_row(machine),
        software.binding_row(machine, graphics),
        plugin.plugin_row(machine, found.flavours["tensorrt"], graphics),
        *video.video_rows(machine),
        jetson.jetpack_row(found.jetson),
        jetson.power_mode_row(machine, found.jetson),
        clocks,
        host.cpu_row(machine),
        host.memory_row(machine),
        host.disk_row(machine),
        host.zoo_row(),
        host.camvid_row(machine),
    ]


def _abilities(machine: Machine, found: _Findings) -> list[Ability]:
    plans = [found.flavours[name] for name in ("tensorrt-rtx", "tensorrt")]
    return [
        _train(found.torch),
        _export(machine, found.torch),
        _with_ort("build: onnxruntime", found.ort),
        *(_build(flavour, found) for flavour in plans),
        _run_torch(found.torch),
        _with_ort("run: onnxruntime", found.ort),
        *(_run(machine, flavour, found) for flavour in plans),
    ]


def _train(torch: Torch) -> Ability:
    if not torch.usable:
        return Ability(name="train", possible=False, why="PyTorch is missing", remedy="pip install 'nrd-trt[torch]'")
    where = f"on {torch.gpu}" if torch.available else "on the CPU"
    return Ability(name="train", possible=True, why=f"PyTorch {torch.version} {where}")


def _export(machine: Machine, torch: Torch) -> Ability:
    wanted = {"torch": torch.usable, "onnx": machine.version_of("onnx"), "onnxscript": machine.version_of("onnxscript")}
    if missing := [name for name, there in wanted.items() if not there]:
        why = f"{', '.join(missing)} missing; an ONNX file or a bundle made elsewhere needs no export"
        return Ability(name="export", possible=False, why=why, remedy="pip install 'nrd-trt[export]'")
    return Ability(name="export", possible=True, why=f"PyTorch {torch.version}, onnx {wanted['onnx']}")


def _with_ort(name: str, ort: Ort) -> Ability:
    if not ort.usable:
        return Ability(name=name, possible=False, why="ONNX Runtime is missing", remedy="pip install 'nrd-trt[ort]'")
    why = f"ONNX Runtime {ort.version} on the CPU"
    return Ability(
        name=name, possible=True, why=why + ("; a bundle without a plan" if name.startswith("build") else "")
    )


def _build(flavour: Flavour, found: _Findings) -> Ability:
    name = f"build: {flavour.name}"
    if flavour.builds:
        where = "without a GPU" if not found.graphics.gpus else f"on {found.graphics.gpus[0].name}"
        return Ability(name=name, possible=True, why=f"{flavour.version} {where}")
    if flavour.version is None:
        if flavour.name == "tensorrt-rtx" and found.jetson is not None:
            return _no_rtx(name)
        remedy = software.install_flavour(flavour.name, found.jetson, found.graphics)
        if flavour.name == "tensorrt" and not found.graphics.gpus:
            return Ability(name=name, possible=False, why="not installed, and no GPU", remedy=f"with a GPU: {remedy}")
        return Ability(name=name, possible=False, why="not installed", remedy=remedy)
    why = flavour.why or "no builder can be made"
    return Ability(name=name, possible=False, why=why, remedy="see its row above")


def _run_torch(torch: Torch) -> Ability:
    name = "run: torch"
    if not torch.usable:
        return Ability(name=name, possible=False, why="PyTorch is missing", remedy="pip install 'nrd-trt[torch]'")
    return Ability(name=name, possible=True, why=f"checkpoints, {'on ' + torch.gpu if torch.gpu else 'on the CPU'}")


def _no_rtx(name: str) -> Ability:
    why = "a Jetson's GPU is not among its targets"
    return Ability(name=name, possible=False, why=why, remedy="use TensorRT, which JetPack brings")


def _run(machine: Machine, flavour: Flavour, found: _Findings) -> Ability:
    name = f"run: {flavour.name}"
    if not found.graphics.gpus:
        return Ability(
            name=name, possible=False, why="no NVIDIA GPU that can be used", remedy="use --runner onnxruntime here"
        )
    if flavour.version is None:
        if flavour.name == "tensorrt-rtx" and found.jetson is not None:
            return _no_rtx(name)
        remedy = software.install_flavour(flavour.name, found.jetson, found.graphics)
        return Ability(name=name, possible=False, why="not installed", remedy=remedy)
    if flavour.runs is not True:
        return Ability(name=name, possible=False, why=flavour.why, remedy="see its row above")
    if not machine.runs_plans:
        why = f"the machine could ({flavour.why}); this version of nrd-trt has no runner for plans yet"
        return Ability(name=name, possible=False, why=why, remedy="--runner onnxruntime, or trtexec --loadEngine")
    binding = software.binding_row(machine, found.graphics)
    if binding.status != "ok":
        return Ability(name=name, possible=False, why="no Python binding of CUDA", remedy=binding.remedy)
    return Ability(name=name, possible=True, why=f"{flavour.version} {flavour.why}")
