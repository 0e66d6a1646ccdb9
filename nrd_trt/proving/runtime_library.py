"""The runtime library for C++ programs and its example: compiled from a checkout, and run on a bundle."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nrd_trt.engine.plugins import VARIABLE
from nrd_trt.errors import RunnerError

SOURCE = Path("plugins", "runtime")
_PROGRAM = "nrd_segment"
_TOOLS = ("cmake", "g++")
_VERSION = re.compile(r"Runtime library for C\+\+ with TensorRT (\S+)")
_TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Example:
    """The example program of the runtime library.

    Attributes:
        program: The file.
        tensorrt: Version of the TensorRT headers that the library was compiled with, such as ``"10.3.0"``.
    """

    program: Path
    tensorrt: str

    def draw(self, bundle: Path, image: np.ndarray, folder: Path, *, plugin: Path | None = None) -> np.ndarray:
        """Let the program draw a mask.

        Args:
            bundle: A ``NAME.nrd`` folder.
            image: ``(h, w, 3) uint8 RGB`` of the engine's size.
            folder: Where files may be written.
            plugin: The library that the plan was built with; None for a plan that needs none.

        Returns:
            ``(h, w) uint8``.

        Raises:
            RunnerError: The program says what is wrong.
        """
        source, target = folder / "image.ppm", folder / "mask.pgm"
        Image.fromarray(image).save(source)
        chosen = {} if plugin is None else {VARIABLE: str(plugin)}
        done = _run([self.program, bundle, source, target], chosen)
        if done.returncode:
            raise RunnerError(f"{_PROGRAM}: expected exit status 0, got {done.returncode}: {_last_words(done)}")
        with Image.open(target) as mask:
            return np.array(mask)


def what_is_missing(checkout: Path | None) -> str | None:
    """Say what this machine lacks to compile the library; None where nothing is known to be missing."""
    if checkout is None or not (checkout / SOURCE).is_dir():
        return "needs a checkout of the repository, whose plugins/runtime it compiles"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"needs {' and '.join(absent)}: sudo apt install cmake g++" if absent else None


def configure(checkout: Path, folder: Path, settings: Sequence[str] = ()) -> str:
    """Let CMake look for what the library needs.

    Args:
        checkout: The repository.
        folder: Where it is to be compiled.
        settings: Further arguments of cmake, such as ``-DTENSORRT_ROOT=…``.

    Returns:
        Version of the TensorRT headers.

    Raises:
        RunnerError: Something is missing; the message is CMake's.
    """
    done = _run(["cmake", "-S", checkout / SOURCE, "-B", folder, *settings])
    version = _VERSION.search(done.stdout)
    if done.returncode or version is None:
        said = re.search(r"CMake Error at [^\n]*\n\s*(.*?)\n\n", done.stderr, re.DOTALL)
        raise RunnerError(" ".join(said[1].split()) if said else _last_words(done))
    return version[1]


def compile_example(folder: Path, tensorrt: str) -> Example:
    """Compile the library and its example where `configure` has been.

    Args:
        folder: The same as there.
        tensorrt: What it returned.

    Raises:
        RunnerError: It does not compile; the message has the end of what the compiler says.
    """
    done = _run(["cmake", "--build", folder, "--parallel", str(len(os.sched_getaffinity(0)))])
    if done.returncode:
        raise RunnerError(f"plugins/runtime: expected it to compile, got: {_last_words(done)}")
    return Example(program=folder / _PROGRAM, tensorrt=tensorrt)


def _run(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_S,
        env={**os.environ, **(environment or {}), "LC_ALL": "C"},
    )


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip())[-2000:]
