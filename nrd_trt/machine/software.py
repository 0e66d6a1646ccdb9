"""Packages that the toolkit uses and what they can do here: PyTorch, ONNX Runtime, TensorRT, CUDA, the plugin library.

Installed versions come from their metadata. What a package must be asked itself is asked of a child process, since a
broken one may end the process that imports it: ``python -m nrd_trt.machine.software tensorrt-rtx 8.9`` tries a flavour
of TensorRT, ``python -m nrd_trt.machine.software cuda`` opens the first GPU as a runner does,
``python -m nrd_trt.machine.software gpus CUDA_VISIBLE_DEVICES=1`` lists what CUDA shows then, and
``python -m nrd_trt.machine.software FILE`` reads a plugin library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nrd_trt.engine.compat import ConfigOptions, load_tensorrt
from nrd_trt.engine.plugins import PluginInfo, read_plugin
from nrd_trt.errors import BuildError, ConfigError, MissingDependencyError, PluginError, RunnerError
from nrd_trt.machine.cuda import open_cuda, visible_gpus
from nrd_trt.machine.gpu import DRIVER_OF_CUDA, Gpu, Graphics
from nrd_trt.machine.host import Machine

DISTRIBUTIONS = {name: (f"{name}-cu13", f"{name}-cu12", name) for name in ("tensorrt", "tensorrt-rtx", "tensorrt-lean")}
"""Distributions that bring a flavour of TensorRT, the one for CUDA 13 first."""
_OLDEST_RTX = (8, 0)  # see `nrd_trt.engine.compat.rtx_makes_plans_for`

_T = TypeVar("_T")
_Package = TypeVar("_Package", bound="Package")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package; `version` is None where it is absent, `error` says why it cannot be imported."""

    version: str | None = None
    error: str | None = None

    @property
    def usable(self) -> bool:
        """Whether it can be imported."""
        return self.version is not None and self.error is None


@dataclass(frozen=True, kw_only=True)
class Torch(Package):
    """PyTorch: the CUDA version of its build, whether it can use CUDA here, and the GPU that it sees."""

    cuda: str | None = None
    available: bool = False
    gpu: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ort(Package):
    """ONNX Runtime."""

    providers: tuple[str, ...] = ()


_QUESTIONS: Mapping[type[Package], str] = {
    Torch: "import json, torch\n"
    "there = torch.cuda.is_available()\n"
    "print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda, 'available': there,"
    " 'gpu': torch.cuda.get_device_name() if there else None}))",
    Ort: "import json, onnxruntime\n"
    "print(json.dumps({'version': onnxruntime.__version__, 'providers': onnxruntime.get_available_providers()}))",
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What happened when a flavour of TensorRT was asked for a builder.

    Attributes:
        version: Its version.
        builds: Whether a builder could be made.
        knows_gpu: Whether the GPU is among the targets that it builds for; None where it has no such list.
        options: Names for ``builder_options`` that it has, with what each takes in words.
    """

    version: str
    builds: bool
    knows_gpu: bool | None = None
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One flavour of TensorRT.

    Attributes:
        name: ``"tensorrt"``, ``"tensorrt-rtx"`` or ``"tensorrt-lean"``.
        version: Installed version, or None.
        cuda_major: Major version of CUDA that its packages are made for, or None where they do not tell.
        builds: Whether a builder could be made.
        runs: Whether this machine has what its plans need; None where that is not certain.
        why: Reason for `runs` and `builds`, in words.
        options: See `Trial`.
    """

    name: str
    version: str | None = None
    cuda_major: int | None = None
    builds: bool = False
    runs: bool | None = False
    why: str = "not installed"
    options: Mapping[str, str] = field(default_factory=dict)


def ask(machine: Machine, kind: type[_T], *arguments: str) -> _T | str:
    """Return what a child interpreter prints as JSON on its last line, or what went wrong."""
    lines = (machine.run([machine.python, *arguments]) or "").strip().splitlines()
    if not lines:
        return "it did not answer in time, or ended the process that imported it"
    try:
        return msgspec.json.decode(lines[-1], type=kind)
    except (msgspec.DecodeError, UnicodeError):
        return lines[-1]


def find_package(machine: Machine, kind: type[_Package], *distributions: str) -> _Package:
    """Look at a package that one of these distributions brings, and ask it where it is installed."""
    version = machine.first_version(*distributions)
    if version is None:
        return kind()
    answer = ask(machine, kind, "-c", _QUESTIONS[kind])
    return kind(version=version, error=answer) if isinstance(answer, str) else answer


def find_flavour(machine: Machine, name: str, graphics: Graphics) -> Flavour:
    """Look at one flavour of TensorRT and try it where it is installed."""
    version = machine.first_version(*DISTRIBUTIONS[name])
    if version is None and name not in machine.flavours:
        return Flavour(name=name)
    major = next((n for n in (13, 12) if machine.version_of(f"{name}-cu{n}")), None)
    found = Flavour(name=name, version=version, cuda_major=major)
    if name == "tensorrt-lean":
        return _judged(found, graphics, knows_gpu=None)
    capability = graphics.first.compute_capability if graphics.first else None
    answer = ask(machine, Trial, "-m", "nrd_trt.machine.software", name, *filter(None, [capability]))
    if isinstance(answer, str):
        return replace(found, why=f"installed, and cannot be imported: {answer}")
    tried = replace(found, version=answer.version, builds=answer.builds, options=answer.options)
    return _judged(tried, graphics, knows_gpu=answer.knows_gpu)


def _judged(found: Flavour, graphics: Graphics, *, knows_gpu: bool | None) -> Flavour:
    """Add whether plans of this flavour run here, and why."""
    gpu, major = graphics.first, found.cuda_major
    if gpu is None:
        return replace(found, runs=False, why="no NVIDIA GPU that can be used")
    if major is not None and not graphics.supports(major):
        branch = DRIVER_OF_CUDA.get(major, 580)
        why = f"made for CUDA {major}, the driver supports {graphics.cuda}: driver {branch} or newer is needed"
        return replace(found, runs=False, why=why)
    old = tuple(map(int, (gpu.compute_capability or "99.0").split("."))) < _OLDEST_RTX
    if found.name == "tensorrt-rtx" and (old or knows_gpu is False):
        reason = "is not among its targets" if knows_gpu is False else "is one that it compiles no fp32 products for"
        why = f"compute capability {gpu.compute_capability} of {gpu.name} {reason}"
        return replace(found, runs=False if old else None, why=why)
    return replace(found, runs=True, why=f"on {gpu.name}")


def try_flavour(flavour: str, compute_capability: str | None = None) -> Trial | str:
    """Import a flavour of TensorRT and make a builder; return what happened, or why it cannot be imported.

    Args:
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        compute_capability: That of this machine's GPU, or None.
    """
    try:
        tensorrt = load_tensorrt(flavour)
    except MissingDependencyError as exc:
        return str(exc.__cause__)
    made = Trial(version=tensorrt.version, builds=True, options=tensorrt.known_options())
    try:
        builder = tensorrt.builder(tensorrt.log(lambda severity, text: None))
    except BuildError:
        return replace(made, builds=False)
    if flavour != "tensorrt-rtx" or not compute_capability:
        return made
    try:
        tensorrt.config(builder, ConfigOptions(compute_capabilities=(compute_capability,)))
    except ConfigError:
        return replace(made, knows_gpu=False)
    return replace(made, knows_gpu=True)


def open_device() -> Gpu | str:
    """Open the first GPU; return what the driver tells of it, or why it cannot be used."""
    try:
        with open_cuda() as cuda:
            return cuda.facts()
    except RunnerError as exc:
        return str(exc)


def list_gpus(*environment: str) -> list[Gpu] | str:
    """Return the GPUs that CUDA shows, or why it shows none.

    Args:
        environment: Variables to set before, ``"NAME=VALUE"``, or to unset, ``"NAME"``.
    """
    for text in environment:
        name, given, value = text.partition("=")
        os.environ.pop(name, None)
        os.environ.update({name: value} if given else {})
    try:
        return visible_gpus()
    except RunnerError as exc:
        return str(exc)


def read_library(path: str) -> PluginInfo | str:
    """Open a plugin library, which runs its code; return what it says of itself, or why it cannot be used."""
    try:
        return read_plugin(Path(path)).info
    except PluginError as exc:
        return str(exc)


if __name__ == "__main__":
    asked, *arguments = sys.argv[1:]
    if asked in DISTRIBUTIONS:
        told: Any = try_flavour(asked, *arguments)
    elif asked == "gpus":
        told = list_gpus(*arguments)
    else:
        told = open_device() if asked == "cuda" else read_library(asked)
    print(" ".join(told.splitlines()) if isinstance(told, str) else msgspec.json.encode(told).decode())
