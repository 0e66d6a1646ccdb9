"""What this machine can do, and what supplies the rest: all rows and what they add up to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import nrd_trt
from nrd_trt.machine import hardware_rows as hardware
from nrd_trt.machine import package_rows as packages
from nrd_trt.machine.findings import Ability, Inventory, Row, take_inventory
from nrd_trt.machine.host import Machine
from nrd_trt.machine.software import Flavour

_NO_TORCH = ("PyTorch is missing", "pip install 'nrd-trt[torch]'")
_NO_OPENVINO = ("OpenVINO is not installed", "pip install 'nrd-trt[openvino]'")
_NO_ORT = ("ONNX Runtime is missing", "pip install 'nrd-trt[ort]'")


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """What was found on a machine.

    Attributes:
        rows: What is there and what is missing, one thing each.
        abilities: What the toolkit can do with it.
    """

    rows: tuple[Row, ...]
    abilities: tuple[Ability, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "nrd_trt": nrd_trt.__version__,
            "capabilities": [asdict(row) for row in self.rows],
            "summary": [asdict(ability) for ability in self.abilities],
        }


def doctor(*, load_plugin: bool = False) -> DoctorReport:
    """Tell what this machine can do, and what supplies what is missing.

    Commands such as ``nvidia-smi`` are asked, and heavy packages are imported in child processes, never in this one. It
    takes some seconds. What is missing is a finding, never an error.

    Args:
        load_plugin: Whether the plugin library that a build would take is opened, in a child process, to ask it whether
            it fits. That runs its code; otherwise the report says which one it is.
    """
    return examine(Machine(), load_plugin=load_plugin)


def examine(machine: Machine, *, load_plugin: bool = False) -> DoctorReport:
    """Do the work of `doctor` on any machine."""
    have = take_inventory(machine)
    return DoctorReport(rows=tuple(_rows(have, load_plugin=load_plugin)), abilities=tuple(_abilities(have)))


def _rows(have: Inventory, *, load_plugin: bool) -> Iterator[Row]:
    """Judge everything that a machine has, in the order of the report."""
    yield packages.python_row(have.machine)
    yield packages.torch_row(have)
    yield packages.onnx_row(have.machine)
    yield packages.ort_row(have)
    yield packages.openvino_row(have.machine)
    for flavour in have.flavours.values():
        yield packages.flavour_row(have, flavour)
    yield from packages.option_rows(have)
    yield from hardware.gpu_rows(have)
    yield hardware.driver_row(have)
    yield hardware.toolkit_row(have.machine)
    yield packages.cuda_row(have)
    yield packages.plugin_row(have, load=load_plugin)
    yield from packages.video_rows(have.machine)
    yield hardware.jetpack_row(have)
    yield hardware.power_mode_row(have)
    yield hardware.jetson_clocks_row(have.machine) if have.jetson else hardware.clocks_row(have)
    yield hardware.cpu_row(have.machine)
    yield hardware.memory_row(have.machine)
    yield hardware.disk_row(have.machine)
    yield hardware.zoo_row()
    yield hardware.camvid_row(have.machine)


def _abilities(have: Inventory) -> Iterator[Ability]:
    """Say for each verb, and each backend, whether it can work here, and why."""
    torch, plans = have.torch, [have.flavours[name] for name in ("tensorrt-rtx", "tensorrt")]
    ort = f"ONNX Runtime {have.ort.version} on the CPU"
    where = f"on {torch.gpu}" if torch.gpu else "on the CPU"
    yield _needing(torch.usable, "train", f"PyTorch {torch.version} {where}", *_NO_TORCH)
    yield _export(have)
    yield _needing(have.ort.usable, "build: onnxruntime", f"{ort}; a bundle without a plan", *_NO_ORT)
    for flavour in plans:
        yield _build(have, flavour)
    yield _needing(torch.usable, "run: torch", f"checkpoints, {where}", *_NO_TORCH)
    yield _needing(have.ort.usable, "run: onnxruntime", ort, *_NO_ORT)
    openvino = have.machine.version_of("openvino")
    yield _needing(openvino is not None, "run: openvino", f"OpenVINO {openvino} on the CPU", *_NO_OPENVINO)
    for flavour in plans:
        yield _run(have, flavour)


def _needing(usable: bool, name: str, why: str, why_not: str, remedy: str) -> Ability:
    return Ability(name, True, why) if usable else Ability(name, False, why_not, remedy)


def _export(have: Inventory) -> Ability:
    onnx, script = have.machine.version_of("onnx"), have.machine.version_of("onnxscript")
    wanted = {"torch": have.torch.usable, "onnx": onnx, "onnxscript": script}
    if missing := [name for name, there in wanted.items() if not there]:
        why = f"{', '.join(missing)} missing; an ONNX file or a bundle made elsewhere needs no export"
        return Ability("export", False, why, "pip install 'nrd-trt[export]'")
    return Ability("export", True, f"PyTorch {have.torch.version}, onnx {onnx}")


def _build(have: Inventory, flavour: Flavour) -> Ability:
    name, gpu = f"build: {flavour.name}", have.graphics.first
    if flavour.builds:
        return Ability(name, True, f"{flavour.version} {f'on {gpu.name}' if gpu else 'without a GPU'}")
    if flavour.version is not None:
        return Ability(name, False, flavour.why, "see its row above")
    absent = _absent(have, name, flavour)
    if flavour.name == "tensorrt" and gpu is None:
        return Ability(name, False, "not installed, and no GPU", f"with a GPU: {absent.remedy}")
    return absent


def _run(have: Inventory, flavour: Flavour) -> Ability:
    name = f"run: {flavour.name}"
    if not have.graphics.gpus:
        return Ability(name, False, "no NVIDIA GPU that can be used", "use runner='onnxruntime' here")
    if flavour.version is None:
        return _absent(have, name, flavour)
    if flavour.runs is not True:
        return Ability(name, False, flavour.why, "see its row above")
    cuda = packages.cuda_row(have)
    if cuda.status != "ok":
        return Ability(name, False, "the driver does not open the GPU", cuda.remedy)
    return Ability(name, True, f"{flavour.version} {flavour.why}")


def _absent(have: Inventory, name: str, flavour: Flavour) -> Ability:
    """Say that a flavour is not installed, and what installs it."""
    if flavour.name == "tensorrt-rtx" and have.jetson is not None:
        return Ability(name, False, "a Jetson's GPU is not among its targets", "use TensorRT, which JetPack brings")
    return Ability(name, False, "not installed", packages.install_flavour(have, flavour.name))
