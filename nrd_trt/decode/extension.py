"""Compiles the CUDA kernels for PyTorch on their first use and loads them. torch only.

The result is kept in PyTorch's extension cache under a name made of everything that went into it: the sources, the
flags, PyTorch's version and the GPUs' architectures.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nrd_trt.errors import MissingDependencyError, NrdTrtError, PluginError
from nrd_trt.optional import require

_CXX_FLAGS = ["-O2", "-fvisibility=hidden"]
# No contraction: results are the same bits on every GPU and on the host.
_KERNEL_FLAGS = ["-cubin", "-std=c++17", "-O3", "-fmad=false"]
_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE.parent / "plugins", _PACKAGE / "_plugins")  # of a checkout; of an installed package
_NEEDED = "nrd_decode/decode_kernel.h"
_LONGEST_LOG = 2000
_DEFAULT_HOME = "/usr/local/cuda"

_CONSTANTS = "int num_classes, int hidden, int guidance_channels, int patch"
_INPUTS = f"float[] x_table, float[] y_table, {_CONSTANTS}"
_operators = torch.library.Library("nrd", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    f"launch_decode(Tensor theta, Tensor guidance, Tensor(a!) logits, {_INPUTS}, int variant) -> ()",
    f"launch_decode_mask(Tensor theta, Tensor guidance, Tensor(a!) mask, {_INPUTS}, int upsample, int variant, "
    "bool prune) -> ()",
    f"supports_variant(Tensor theta, {_CONSTANTS}, int upsample, int variant, bool mask) -> bool",
):
    _operators.define(_schema)  # type: ignore[no-untyped-call]

_log = logging.getLogger(__name__)
_lock = threading.Lock()


def load_extension() -> None:
    """Make ``torch.ops.nrd.launch_decode`` and its siblings work on CUDA tensors; instant after the first call.

    Raises:
        MissingDependencyError: A GPU, nvcc, ninja or a C++ compiler is missing; the message names it.
        PluginError: The sources are missing or do not compile.
    """
    with _lock:
        failure = _failure()
    if failure is not None:
        raise type(failure)(str(failure)) from failure


def kernel_sources(places: tuple[Path, ...] = _PLACES) -> Path:
    """Return the folder ``plugins`` of this checkout, or the copy of its kernels in the installed package.

    Raises:
        PluginError: Neither is there.
    """
    for place in places:
        if (place / _NEEDED).is_file():
            return place
    tried = " or ".join(str(place / _NEEDED) for place in places)
    raise PluginError(f"kernel sources: expected {tried}, found neither; reinstall nrd-trt or use a whole checkout.")


def source_files(folder: Path) -> list[Path]:
    """Return what is compiled of the folder ``plugins``: the kernels, their launcher and the binding."""
    kernels = folder / "nrd_decode"
    host = [*kernels.glob("decode_*.cpp"), *(kernels / "torch").glob("*.cpp")]
    return sorted([*kernels.glob("*.cu"), *host])


def extension_name(folder: Path, architectures: list[str]) -> str:
    """Return the name under which the library of these sources is kept."""
    digest = hashlib.sha256(repr((_CXX_FLAGS, _KERNEL_FLAGS, architectures, torch.__version__)).encode())
    kernels = folder / "nrd_decode"
    for path in sorted([*source_files(folder), *kernels.glob("*.h"), *(kernels / "torch").glob("*.h")]):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return f"nrd_decode_{digest.hexdigest()[:16]}"


def check_toolchain() -> Path:
    """Return the folder of the CUDA toolkit.

    Raises:
        MissingDependencyError: A tool is missing that compiles for PyTorch's CUDA.
    """
    home, wanted = _find_toolkit(), torch.version.cuda or "?"
    if home is None:
        raise MissingDependencyError(
            "compiling the CUDA decode needs nvcc with its headers, found by neither CUDA_HOME nor PATH nor in "
            f"{_DEFAULT_HOME}; install the CUDA toolkit {wanted} and set CUDA_HOME."
        )
    found = _told_by(str(home / "bin/nvcc"), r"release (\d+\.\d+)", "-V")
    if found.split(".")[0] != wanted.split(".")[0]:
        raise MissingDependencyError(
            f"compiling the CUDA decode: expected a CUDA {wanted} toolkit, as PyTorch's, got {found or 'none'} in "
            f"{home}; install it and set CUDA_HOME."
        )
    beside = Path(sys.executable).parent  # of a virtual environment, which is not on PATH when called by its path
    if shutil.which("ninja") is None and (beside / "ninja").is_file():
        os.environ["PATH"] = os.pathsep.join(filter(None, (os.environ.get("PATH"), str(beside))))
    if not _cpp_extension().is_ninja_available():
        raise MissingDependencyError(
            "compiling the CUDA decode needs ninja, which is not on PATH: `pip install 'nrd-trt[torch]'`."
        )
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        raise MissingDependencyError("compiling the CUDA decode needs a C++ compiler; install g++ or set CXX.")
    return home


def build_and_load(folder: Path, architectures: list[str]) -> None:
    """Load the library of these sources; compile it first where the cache has none.

    Args:
        folder: ``plugins``.
        architectures: What the code is made for, such as ``["87", "90"]``.

    Raises:
        MissingDependencyError: It must be compiled and a tool is missing.
        PluginError: It cannot be compiled or loaded, or others could write what would be executed.
    """
    name = extension_name(folder, architectures)
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or _cpp_extension().get_default_build_root()
    directory = Path(root) / name
    library, complete = directory / f"{name}.so", directory / "complete"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(directory)
        # PyTorch's own lock outlives a process that was stopped, and then waits for ever; this one does not.
        with (directory / "in_use").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not complete.exists():
                home = check_toolchain()
                _cpp_extension().CUDA_HOME = str(home)  # its own guess is the folder above nvcc
                (directory / "lock").unlink(missing_ok=True)
                _compile(folder, architectures, directory, home / "bin/nvcc")
                complete.touch()
                return
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as exc:
        log = str(exc) if len(str(exc)) <= _LONGEST_LOG else f"{str(exc)[:_LONGEST_LOG]} …"
        raise PluginError(
            f"{library}: the CUDA decode cannot be compiled or loaded ({log}); check that nvcc knows "
            f"sm_{' sm_'.join(architectures)} and accepts this C++ compiler, or remove the folder to compile it anew."
        ) from exc


def _check_own(directory: Path) -> None:
    """Raise `PluginError` unless only this user can put files into a folder: what lies in it is executed."""
    user, found, above = os.geteuid(), directory.lstat(), directory.parent.stat()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022
    # Else others could put a folder in its place.
    kept = above.st_uid in (0, user) and (not above.st_mode & 0o002 or above.st_mode & stat.S_ISVTX)
    if not (own and kept):
        got, around = (f"{stat.filemode(one.st_mode)} of user {one.st_uid}" for one in (found, above))
        raise PluginError(
            f"{directory}: expected a folder of yours (user {user}) that nobody else can write or replace, as the "
            f"library in it is executed, got {got} in {around}; remove it, or set TORCH_EXTENSIONS_DIR to a folder of "
            "your own."
        )


@cache
def _failure() -> NrdTrtError | None:
    """Build and load once; return what went wrong, as it would go wrong again."""
    try:
        if not torch.cuda.is_available():
            raise MissingDependencyError(
                "the CUDA decode needs an NVIDIA GPU with its driver and a CUDA build of PyTorch; "
                f"PyTorch {torch.__version__} sees no GPU."
            )
        # One library serves all visible GPUs.
        capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
        build_and_load(kernel_sources(), [f"{major}{minor}" for major, minor in sorted(capabilities)])
    except NrdTrtError as exc:
        return exc
    return None


def _compile(folder: Path, architectures: list[str], directory: Path, nvcc: Path) -> None:
    _log.warning("compiling the CUDA decode for sm_%s into %s", " sm_".join(architectures), directory)
    images = [_compile_image(folder, architecture, directory, nvcc) for architecture in architectures]
    (directory / "images.inc").write_text("".join(images))
    _cpp_extension().load(
        directory.name,
        [str(path) for path in source_files(folder) if path.suffix == ".cpp"],
        extra_cflags=_CXX_FLAGS,
        extra_include_paths=[str(directory)],
        build_directory=str(directory),
        with_cuda=True,
        is_python_module=False,
    )


def _compile_image(folder: Path, architecture: str, directory: Path, nvcc: Path) -> str:
    """Compile the kernels for one GPU; return their line in images.inc, as decode_images.cpp describes it."""
    cubin = directory / f"sm_{architecture}.cubin"
    host = ["-ccbin", os.environ["CC"]] if os.environ.get("CC") else []  # as PyTorch calls nvcc
    command = [str(nvcc), *host, *_KERNEL_FLAGS, f"-arch=sm_{architecture}", "-o", str(cubin)]
    command.append(str(folder / "nrd_decode/decode_kernel.cu"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return f'NRD_IMAGE(sm_{architecture}, {architecture}, false, "{cubin}")\n'


def _cpp_extension() -> Any:
    return require("torch.utils.cpp_extension", extra="torch", purpose="compiling the CUDA decode")


def _find_toolkit() -> Path | None:
    """Find a folder with ``bin/nvcc`` and ``include/``; an nvcc on PATH may be a link or a script elsewhere."""
    homes = [_cpp_extension().CUDA_HOME, _told_by("nvcc", r"TOP=(.+)", "-dryrun", "-x", "cu", "-c", os.devnull)]
    candidates = [Path(home).resolve() for home in (*homes, _DEFAULT_HOME) if home]
    needed = ("bin/nvcc", "include/cuda_runtime_api.h")
    return next((home for home in candidates if all((home / name).is_file() for name in needed)), None)


def _told_by(program: str, pattern: str, *arguments: str) -> str:
    """Return the group of `pattern` in what a program prints, or an empty string."""
    try:
        result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    found = re.search(pattern, result.stdout + result.stderr)
    return found[1].strip() if found else ""
