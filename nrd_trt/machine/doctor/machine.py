"""The view that the probes have of a machine: commands, files, packages. Tests put recorded ones in its place.

Nothing heavy is imported here; what a heavy package knows is asked of a child process.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import nrd_trt
from nrd_trt.engine.compat import installed_flavours

_PACKAGE = Path(nrd_trt.__file__).resolve().parent
Status = Literal["ok", "limited", "missing", "n/a"]
_TIMEOUT_S, _PYTHON_TIMEOUT_S = 30.0, 90.0  # PyTorch from a Jetson's flash takes its time


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine to look at.

    Attributes:
        run: Runs a command; returns its stdout, or its stderr where stdout is empty, whatever the exit status, and
            None where there is no such command or it did not end in time.
        version_of: Version of an installed distribution, or None.
        root: Where the file system begins.
        environ: Environment variables.
        folder: The current folder.
        checkout: The repository, or None where the package runs from site-packages.
        flavours: TensorRT flavours whose module can be found.
        architecture: Such as ``"x86_64"`` or ``"aarch64"``.
        cores: CPU cores that this process may use.
        python: The interpreter.
        runs_plans: Whether this version of the toolkit has a runner for plans.
    """

    run: Callable[[Sequence[str]], str | None]
    version_of: Callable[[str], str | None]
    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path(".")
    checkout: Path | None = None
    flavours: tuple[str, ...] = ()
    architecture: str = "x86_64"
    cores: int = 1
    python: str = "python3"
    runs_plans: bool = False

    def read(self, path: str) -> str | None:
        """Return the text of a file such as ``"etc/os-release"``, or None."""
        try:
            return (self.root / path).read_text(errors="replace").replace("\0", "\n")
        except OSError:
            return None

    def first_version(self, *distributions: str) -> str | None:
        """Return the version of the first of these distributions that is installed."""
        return next((version for name in distributions if (version := self.version_of(name))), None)


def this_machine() -> Machine:
    """Return the machine that this process runs on."""
    return Machine(
        run=run_command,
        version_of=installed_version,
        environ=os.environ,
        folder=Path.cwd(),
        checkout=_checkout(),
        flavours=tuple(installed_flavours()),
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        python=sys.executable,
        runs_plans=(_PACKAGE / "runtime" / "trt_runner.py").is_file(),
    )


def run_command(command: Sequence[str], timeout_s: float | None = None) -> str | None:
    """Run a command as `Machine.run` promises; a child Python finds this package too."""
    if shutil.which(command[0]) is None:
        return None
    environment = {**os.environ, "LC_ALL": "C", "PYTHONWARNINGS": "ignore"}
    if checkout := _checkout():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    limit_s = _PYTHON_TIMEOUT_S if command[0] == sys.executable else _TIMEOUT_S
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s or limit_s,
            env=environment,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.stdout.strip() else done.stderr


def _checkout() -> Path | None:
    return _PACKAGE.parent if (_PACKAGE.parent / "setup.cfg").is_file() else None


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def mib(amount: float) -> str:
    """Format an amount in MiB for people."""
    return f"{amount / 1024:.1f} GiB" if amount >= 1024 else f"{amount:.0f} MiB"
