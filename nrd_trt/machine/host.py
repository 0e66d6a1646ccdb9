"""The host: its files, commands and packages, and what they tell of its processor, memory and load.

Everything else in this room looks at a machine through `Machine`; tests put recorded ones in its place.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nrd_trt
from nrd_trt.engine.compat import installed_flavours

_PARENT = Path(nrd_trt.__file__).resolve().parents[1]
_CHECKOUT = _PARENT if (_PARENT / "setup.cfg").is_file() else None
_LEAVE_OUT = "import sys; sys.path[:] = filter(None, sys.path)\n"
_RUN_MODULE = "import runpy; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
_TIMEOUT_S, _PYTHON_TIMEOUT_S = 30.0, 90.0  # PyTorch from a Jetson's flash takes its time


def child_environment() -> dict[str, str]:
    """Return the environment of a child process whose Python finds this package too, and warns of nothing."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONWARNINGS": "ignore"}
    if _CHECKOUT is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_CHECKOUT), os.environ.get("PYTHONPATH"))))
    return environment


def without_folder(command: Sequence[str]) -> list[str]:
    """Return a command of Python, ``-m MODULE`` or ``-c CODE``, that imports nothing from the current folder.

    Files there would stand for packages of their names. Python before 3.11 has no option that leaves only them out.
    """
    python, how, what, *rest = command
    if how == "-c":
        return [python, "-c", _LEAVE_OUT + what, *rest]
    return [python, "-c", _LEAVE_OUT + _RUN_MODULE, what, *rest]


def run_command(command: Sequence[str]) -> str | None:
    """Run a command as `Machine.run` promises."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            without_folder(command) if command[0] == sys.executable else list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PYTHON_TIMEOUT_S if command[0] == sys.executable else _TIMEOUT_S,
            env=child_environment(),
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.stdout.strip() else done.stderr


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine to look at, by default this one.

    Attributes:
        run: Runs a command; returns its stdout, or its stderr where stdout is empty, whatever the exit status, and
            None where there is no such command or it did not end in time.
        version_of: Returns the version of an installed distribution, or None.
        root: Where the file system begins.
        environ: Environment variables.
        folder: The current folder.
        checkout: The repository, or None where the package runs from site-packages.
        flavours: TensorRT flavours whose module can be found.
        architecture: Such as ``"x86_64"`` or ``"aarch64"``.
        cores: CPU cores that this process may use.
        python: The interpreter.
    """

    run: Callable[[Sequence[str]], str | None] = run_command
    version_of: Callable[[str], str | None] = installed_version
    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    folder: Path = field(default_factory=Path.cwd)
    checkout: Path | None = _CHECKOUT
    flavours: Sequence[str] = field(default_factory=installed_flavours)
    architecture: str = field(default_factory=platform.machine)
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    python: str = sys.executable

    def read(self, path: str | Path) -> str:
        """Return the text of a file such as ``"etc/os-release"``; it is empty where it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").replace("\0", "\n")
        except OSError:
            return ""

    def read_number(self, path: str | Path) -> int | None:
        """Return the whole number that a file holds, or None."""
        text = self.read(path).strip()
        return int(text) if text.isdigit() else None

    def first_version(self, *distributions: str) -> str | None:
        """Return the version of the first of these distributions that is installed."""
        return next((version for name in distributions if (version := self.version_of(name))), None)


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """The processor of a machine.

    Attributes:
        cpu: Name of the processor or, where an Arm kernel names only that, of the board; None where neither is told.
        machine: Such as ``"x86_64"`` or ``"aarch64"``.
        cores: CPU cores that this process may use.
        instructions: Those of `INSTRUCTIONS` that it has, by Linux's names.
    """

    cpu: str | None
    machine: str
    cores: int
    instructions: tuple[str, ...] = ()


def host_facts(machine: Machine) -> HostFacts:
    """Return what is known of the processor."""
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", machine.read("proc/cpuinfo"), re.MULTILINE)
    cpu = (model[1] if model else machine.read("proc/device-tree/model")).strip()
    return HostFacts(
        cpu=cpu or None, machine=machine.architecture, cores=machine.cores, instructions=instructions(machine)
    )


INSTRUCTIONS = (
    "avx2 avx512f avx_vnni avx512_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16 amx_fp16 asimdhp asimddp i8mm bf16 sve"
).split()
"""Those that decide how fast a precision is, as /proc/cpuinfo names them on x86-64 and on Arm."""
FAST = {
    "int8": frozenset({"avx512_vnni", "avx_vnni", "amx_int8"}),
    "bf16": frozenset({"avx512_bf16", "amx_bf16"}),
}
"""Instructions of x86 for products in a type. Without those of int8 sums of uint8 times int8 saturate, or are slow."""


def instructions(machine: Machine) -> tuple[str, ...]:
    """Return which of `INSTRUCTIONS` the processor has; none where the kernel does not tell."""
    told = re.search(r"^(?:flags|Features)\s*:(.+)$", machine.read("proc/cpuinfo"), re.MULTILINE)
    found = told[1].split() if told else ()
    return tuple(name for name in INSTRUCTIONS if name in found)


def fast_types(machine: Machine) -> dict[str, list[str]]:
    """Return by which instructions the processor multiplies int8 and bf16; empty where there are none."""
    has = instructions(machine)
    return {kind: [name for name in has if name in those] for kind, those in FAST.items() if not those.isdisjoint(has)}


def memory_bytes(machine: Machine) -> tuple[int, int] | None:
    """Return total and available memory, or None where the kernel does not tell; containers' limits apart."""
    text = machine.read("proc/meminfo")
    total, free = (re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE) for key in ("MemTotal", "MemAvailable"))
    return (int(total[1]) << 10, int(free[1]) << 10) if total and free else None


def load_average() -> float | None:
    """Return the load average of the last minute, or None where the system has none."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
