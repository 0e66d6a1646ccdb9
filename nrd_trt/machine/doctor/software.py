"""Packages: PyTorch, ONNX, ONNX Runtime, the TensorRT flavours, CUDA bindings.

Installed versions come from their metadata; what must be asked of a package itself is asked of a child process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nrd_trt.machine.doctor.gpu import DRIVER_OF_CUDA, Graphics
from nrd_trt.machine.doctor.jetson import Jetson
from nrd_trt.machine.doctor.machine import Machine, Row

# Flavour -> distributions that bring it, the one for CUDA 13 first.
_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "tensorrt-lean": ("tensorrt-lean-cu13", "tensorrt-lean-cu12", "tensorrt-lean"),
}
TITLES = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "tensorrt-lean": "TensorRT lean runtime",
}
_OLDEST_RTX = (7, 5)

_ASK_TORCH = (
    "import json, torch\n"
    "there = torch.cuda.is_available()\n"
    "print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda, 'available': there,"
    " 'gpu': torch.cuda.get_device_name() if there else None}))"
)
_ASK_ORT = (
    "import json, onnxruntime\n"
    "print(json.dumps({'version': onnxruntime.__version__, 'providers': onnxruntime.get_available_providers()}))"
)


@dataclass(frozen=True, kw_only=True)
class Torch:
    """PyTorch; `version` None where it is absent, `error` where it cannot be imported."""

    version: str | None = None
    cuda: str | None = None
    available: bool = False
    gpu: str | None = None
    error: str | None = None

    @property
    def usable(self) -> bool:
        """Whether it can be imported."""
        return self.version is not None and self.error is None


@dataclass(frozen=True, kw_only=True)
class Ort:
    """ONNX Runtime."""

    version: str | None = None
    providers: tuple[str, ...] = ()
    error: str | None = None

    @property
    def usable(self) -> bool:
        """Whether it can be imported."""
        return self.version is not None and self.error is None


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One flavour of TensorRT.

    Attributes:
        name: ``"tensorrt"``, ``"tensorrt-rtx"`` or ``"tensorrt-lean"``.
        version: As installed, or None.
        cuda_major: That its packages are made for, or None where they do not tell.
        builds: A builder could be made.
        runs: This machine has what its plans need; None where that is not certain.
        why: Of `runs` and `builds`, in words.
    """

    name: str
    version: str | None = None
    cuda_major: int | None = None
    builds: bool = False
    runs: bool | None = False
    why: str = "not installed"


def find_torch(machine: Machine) -> Torch:
    """Look at PyTorch."""
    version = machine.version_of("torch")
    if version is None:
        return Torch()
    answer, error = answer_of(machine.run([machine.python, "-c", _ASK_TORCH]))
    return Torch(version=version, error=error) if error else Torch(**answer)


def find_ort(machine: Machine) -> Ort:
    """Look at ONNX Runtime."""
    version = machine.first_version("onnxruntime", "onnxruntime-gpu")
    if version is None:
        return Ort()
    answer, error = answer_of(machine.run([machine.python, "-c", _ASK_ORT]))
    return Ort(version=version, error=error) if error else Ort(version=version, providers=tuple(answer["providers"]))


def answer_of(output: str | None) -> tuple[dict[str, Any], str | None]:
    """Return what a child process printed as JSON on its last line, and what went wrong."""
    lines = (output or "").strip().splitlines()
    if not lines:
        return {}, "it did not answer in time, or ended the process that imported it"
    try:
        answer = json.loads(lines[-1])
        return (answer, None) if isinstance(answer, dict) else ({}, lines[-1])
    except ValueError:
        return {}, lines[-1]


def find_flavour(machine: Machine, name: str, graphics: Graphics) -> Flavour:
    """Look at one flavour and try it where it is installed."""
    version = machine.first_version(*_DISTRIBUTIONS[name])
    if version is None and name not in machine.flavours:
        return Flavour(name=name)
    major = next((n for n in (13, 12) if machine.version_of(f"{name}-cu{n}")), None)
    if name == "tensorrt-lean":
        return _judged(Flavour(name=name, version=version, cuda_major=major, why=""), graphics, knows_gpu=None)
    capability = graphics.gpus[0].compute_capability if graphics.gpus else None
    command = [machine.python, "-m", "nrd_trt.machine.doctor.trial", name, *([capability] if capability else [])]
    answer, error = answer_of(machine.run(command))
    if error or answer["version"] is None:
        why = f"installed, and cannot be imported: {error or answer['error']}"
        return Flavour(name=name, version=version, cuda_major=major, why=why)
    found = Flavour(name=name, version=answer["version"], cuda_major=major, builds=answer["builds"], why="")
    return _judged(found, graphics, knows_gpu=answer["knows_gpu"])


def _judged(found: Flavour, graphics: Graphics, *, knows_gpu: bool | None) -> Flavour:
    """Add whether plans of this flavour run here, and why."""
    if not graphics.gpus:
        return replace(found, runs=False, why="no NVIDIA GPU that can be used")
    gpu, major = graphics.gpus[0], found.cuda_major
    if major is not None and graphics.cuda is not None and not graphics.supports(major):
        why = "made for CUDA {}, the driver supports {}.{}: ".format(major, *graphics.cuda)
        return replace(found, runs=False, why=f"{why}driver {DRIVER_OF_CUDA.get(major, 580)} or newer is needed")
    if found.name == "tensorrt-rtx" and knows_gpu is False:
        old = tuple(map(int, (gpu.compute_capability or "99.0").split("."))) < _OLDEST_RTX
        why = f"compute capability {gpu.compute_capability} of {gpu.name} is not among its targets"
        return replace(found, runs=False if old else None, why=why)
    return replace(found, runs=True, why=f"on {gpu.name}")


def torch_row(torch: Torch, graphics: Graphics) -> Row:
    """Say which PyTorch is there and whether it sees the GPU."""
    if torch.version is None:
        return Row(
            name="PyTorch",
            status="missing",
            found="not installed; needed to train, export and evaluate checkpoints, not to rebuild or run bundles",
            remedy="pip install 'nrd-trt[torch]'",
        )
    if torch.error:
        found = f"{torch.version}, and cannot be imported: {torch.error}"
        return Row(name="PyTorch", status="missing", found=found, remedy=_REINSTALL_TORCH)
    build = f"CUDA {torch.cuda} build" if torch.cuda else "CPU build"
    if torch.available:
        return Row(name="PyTorch", status="ok", found=f"{torch.version}, {build}, sees {torch.gpu}")
    if not graphics.gpus:
        return Row(name="PyTorch", status="ok", found=f"{torch.version}, {build}; CUDA not available (no GPU)")
    if torch.cuda is None:
        found = f"{torch.version}, CPU build; the GPU is not used"
        return Row(name="PyTorch", status="limited", found=found, remedy=_REINSTALL_TORCH)
    major = int(torch.cuda.split(".")[0])
    found = f"{torch.version}, {build}; CUDA not available"
    if not graphics.supports(major):
        driver = f"a driver of branch {DRIVER_OF_CUDA.get(major, 580)} or newer (see Driver)"
        return Row(name="PyTorch", status="limited", found=found, remedy=driver)
    ask = "python -c 'import torch; torch.zeros(1).cuda()'   (prints the reason)"
    return Row(name="PyTorch", status="limited", found=found, remedy=ask)


_REINSTALL_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"


def onnx_row(machine: Machine) -> Row:
    """Say which onnx is there."""
    version = machine.version_of("onnx")
    if version is None:
        return Row(name="ONNX", status="missing", found="not installed", remedy="pip install nrd-trt")
    script = machine.version_of("onnxscript")
    if script is None and machine.version_of("torch"):
        found = f"onnx {version}; onnxscript, which PyTorch's exporter imports, is not installed"
        return Row(name="ONNX", status="limited", found=found, remedy="pip install 'nrd-trt[export]'")
    return Row(name="ONNX", status="ok", found=f"onnx {version}" + (f", onnxscript {script}" if script else ""))


def ort_row(ort: Ort) -> Row:
    """Say which ONNX Runtime is there."""
    if ort.version is None:
        return Row(name="ONNX Runtime", status="missing", found="not installed", remedy="pip install 'nrd-trt[ort]'")
    if ort.error:
        found = f"{ort.version}, and cannot be imported: {ort.error}"
        remedy = "pip install --force-reinstall 'onnxruntime>=1.23,<2'"
        return Row(name="ONNX Runtime", status="missing", found=found, remedy=remedy)
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in ort.providers)
    return Row(name="ONNX Runtime", status="ok", found=f"{ort.version}, providers {providers}")


def flavour_row(flavour: Flavour, jetson: Jetson | None, graphics: Graphics) -> Row:
    """Say what one flavour of TensorRT can do here."""
    name = TITLES[flavour.name]
    if not flavour.version:
        return _absent(flavour, jetson, graphics)
    lean = flavour.name == "tensorrt-lean"
    if flavour.why.startswith("installed, and cannot"):
        remedy = install_flavour(flavour.name, jetson, graphics)
        return Row(name=name, status="missing", found=f"{flavour.version} {flavour.why}", remedy=remedy)
    runs = {True: "runs plans", False: "cannot run plans", None: "may not run plans"}[flavour.runs]
    builds = "builds no plans by design" if lean else "builds plans" if flavour.builds else "cannot build plans"
    good = flavour.runs is True and (flavour.builds or lean)
    some = flavour.runs is not False or flavour.builds
    return Row(
        name=name,
        status="ok" if good else "limited" if some else "missing",
        found=f"{flavour.version}: {builds} here, {runs} here ({flavour.why})",
        remedy=None if good else _remedy_to_run(flavour, jetson, graphics),
    )


def _absent(flavour: Flavour, jetson: Jetson | None, graphics: Graphics) -> Row:
    name, found = TITLES[flavour.name], flavour.why
    if flavour.name == "tensorrt-lean":
        return Row(name=name, status="n/a", found=f"{found}; only version-compatible plans could use it")
    if flavour.name == "tensorrt-rtx" and jetson is not None:
        return Row(name=name, status="n/a", found=f"{found}; a Jetson's GPU is not among its targets")
    if flavour.name == "tensorrt" and jetson is not None and "python3-libnvinfer" in jetson.packages:
        version = jetson.packages["python3-libnvinfer"]
        found = f"apt installed python3-libnvinfer {version}, which this Python does not see"
    elif flavour.name == "tensorrt" and not graphics.gpus:
        return Row(
            name=name,
            status="missing",
            found=f"{found}; it needs an NVIDIA GPU to build and to run",
            remedy=f"on a machine with a GPU: {install_flavour(flavour.name, jetson, graphics)}",
        )
    return Row(name=name, status="missing", found=found, remedy=install_flavour(flavour.name, jetson, graphics))


def install_flavour(name: str, jetson: Jetson | None, graphics: Graphics) -> str:
    """Return the command that installs a flavour, for the CUDA version that the driver supports."""
    if jetson is not None and name == "tensorrt":
        apt = "" if "python3-libnvinfer" in jetson.packages else "sudo apt install python3-libnvinfer && "
        return f"{apt}/usr/bin/python3 -m venv --system-site-packages .venv && .venv/bin/pip install nrd-trt" + (
            "   (never `pip install tensorrt` on JetPack 6)" if (jetson.l4t or "").startswith("36.") else ""
        )
    if graphics.cuda and graphics.cuda[0] == 12:
        return f"pip install {name}-cu12"
    return f"pip install 'nrd-trt[{'rtx' if name == 'tensorrt-rtx' else 'trt'}]'"


def _remedy_to_run(flavour: Flavour, jetson: Jetson | None, graphics: Graphics) -> str:
    if not graphics.gpus:
        return "to run its plans: a machine with an NVIDIA GPU (see GPU)"
    if not graphics.supports(flavour.cuda_major):
        older = graphics.cuda is not None and graphics.cuda[0] == 12
        return "a newer driver (see Driver)" + (f", or: pip install {flavour.name}-cu12" if older else "")
    if flavour.runs is not True:
        return f"use TensorRT for this GPU: {install_flavour('tensorrt', jetson, graphics)}"
    return "nrd-trt build … -v   (shows why no builder can be made)"


def binding_row(machine: Machine, graphics: Graphics) -> Row:
    """Say which Python binding of CUDA is there; runners of plans copy through it."""
    names = {"cuda-python": "cuda-python", "cuda-bindings": "cuda-bindings", "pycuda": "pycuda"}
    found = [f"{title} {version}" for name, title in names.items() if (version := machine.version_of(name))]
    if found:
        return Row(name="CUDA binding", status="ok", found=", ".join(found))
    if not graphics.gpus:
        return Row(name="CUDA binding", status="n/a", found="not installed; nothing to use it with")
    pin = "'cuda-python>=12.6,<13'" if graphics.cuda and graphics.cuda[0] < 13 else "'cuda-python>=13,<14'"
    return Row(name="CUDA binding", status="missing", found="not installed", remedy=f"pip install {pin}")


def needed_cuda(torch: Torch, flavours: Mapping[str, Flavour]) -> dict[str, int]:
    """Return the major version of CUDA that each installed package is made for."""
    needed = {TITLES[name]: found.cuda_major for name, found in flavours.items() if found.cuda_major is not None}
    if torch.cuda:
        needed["PyTorch"] = int(torch.cuda.split(".")[0])
    return needed
