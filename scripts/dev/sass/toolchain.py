"""Find the CUDA compiler and the disassembler, and run them on the kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .cubin import read_cubin

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ROOT / "plugins" / "nrd_decode"
FLAGS = ("-std=c++17", "-O3", "-fmad=false")
"""Those that plugins/CMakeLists.txt gives."""

PACKAGED = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"
"""Where the packages of PyPI put NVIDIA's tools and headers."""


class MissingToolError(RuntimeError):
    """A program is not on this machine; the message says which and where it comes from."""


def find_nvcc() -> Path:
    """Return the CUDA compiler of the path, or that of the package ``nvidia-cuda-nvcc``.

    Raises:
        MissingToolError: There is neither.
    """
    return _find("nvcc", "install the CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt")


def find_disassembler() -> Path:
    """Return NVIDIA's disassembler, likewise.

    Raises:
        MissingToolError: There is none.
    """
    return _find("nvdisasm", "pip install nvidia-cuda-nvdisasm")


def find_headers() -> Path:
    """Return the folder with ``cuda.h``.

    Raises:
        MissingToolError: There is none.
    """
    toolkit = Path(find_nvcc()).resolve().parents[1]
    folders = [toolkit / "include", Path("/usr/local/cuda/include"), PACKAGED / "include"]
    for folder in folders:
        if (folder / "cuda.h").is_file():
            return folder
    raise MissingToolError("cuda.h: not found; install the CUDA toolkit, or pip install nvidia-cuda-runtime")


def _find(name: str, advice: str) -> Path:
    for found in (shutil.which(name), PACKAGED / "bin" / name):
        if found is not None and Path(found).is_file():
            return Path(found)
    raise MissingToolError(f"{name}: not found; {advice}")


def compiler_version() -> str:
    """Return the release of nvcc, such as ``"13.0.88"``."""
    text = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return text.split(", V")[1].split()[0]


def compile_cubin(source: Path, architecture: int, output: Path) -> None:
    """Compile device code for one architecture as the build does, with the table of source lines.

    Raises:
        RuntimeError: The compiler failed, or the table changed the code; the message says which.
    """
    command = [str(find_nvcc()), "-cubin", f"-arch=sm_{architecture}", *FLAGS, str(source)]
    plain = output.with_suffix(".plain")
    with ThreadPoolExecutor(2) as pool:
        forms = ([*command, "-o", str(plain)], [*command, "-lineinfo", "-o", str(output)])
        list(pool.map(_run, forms))
    codes = [{name: image.code for name, image in read_cubin(path).items()} for path in (plain, output)]
    if codes[0] != codes[1]:
        raise RuntimeError(f"{source}: -lineinfo changes the code for sm_{architecture}, so its counts are of no use")


def disassemble(cubin: Path) -> str:
    """Return the listing of all kernels, with the chain of inlined source lines before each instruction."""
    return _run([str(find_disassembler()), "-c", "-gi", str(cubin)])


def compile_library(sources: list[Path], output: Path) -> None:
    """Compile C++ for this machine into a library that stands for the CUDA driver.

    Raises:
        RuntimeError: The compiler failed; the message is what it says.
        MissingToolError: There is no g++.
    """
    if shutil.which("g++") is None:
        raise MissingToolError("g++: not found; nvcc needs it too")
    # No contraction: the host reference rounds every product and sum as the kernels do.
    flags = ["-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unknown-pragmas", f"-I{KERNELS}", "-isystem", str(find_headers())]
    temporary = output.with_suffix(f".{os.getpid()}")
    objects = [temporary.with_name(f"{temporary.name}.{source.stem}.o") for source in sources]
    running = [
        subprocess.Popen(["g++", *flags, "-c", str(source), "-o", str(target)], stderr=subprocess.PIPE, text=True)
        for source, target in zip(sources, objects, strict=True)
    ]
    try:
        failures = [process.communicate()[1] for process in running]
        if any(process.returncode for process in running):
            raise RuntimeError("\n".join(failures))
        parts = [str(target) for target in objects]
        _run(["g++", "-shared", "-Wl,-soname,libcuda.so.1", *parts, "-o", str(temporary), "-ldl"])
        temporary.replace(output)
    finally:
        for target in objects:
            target.unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout
