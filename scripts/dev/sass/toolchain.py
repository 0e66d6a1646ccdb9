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
SOURCE = KERNELS / "decode_kernel.cu"
ARCHITECTURES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-Werror=all-warnings")
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


def known_architectures() -> list[int]:
    """Return those of `ARCHITECTURES` that this nvcc compiles for."""
    listed = _run([str(find_nvcc()), "--list-gpu-code"]).split()
    return [number for number in ARCHITECTURES if f"sm_{number}" in listed]


def compile_cubin(source: Path, architecture: int, output: Path, *, lines: bool = False) -> None:
    """Compile device code for one architecture as the build does.

    Args:
        source: A CUDA file.
        architecture: Compute capability without its point.
        output: The cubin to write.
        lines: Whether it gets the table of source lines.

    Raises:
        RuntimeError: The compiler failed or warned; the message is what it says.
    """
    extra = ["-lineinfo"] if lines else []
    command = [str(find_nvcc()), "-cubin", f"-arch=sm_{architecture}", *FLAGS, *extra, str(source), "-o", str(output)]
    _run(command)


def compile_with_lines(source: Path, architecture: int, output: Path) -> None:
    """Compile with the table of source lines, and make sure that the table leaves the code as it is.

    Raises:
        RuntimeError: The compiler failed, or the table changed the code.
    """
    plain = output.with_suffix(".plain")
    with ThreadPoolExecutor(2) as pool:
        forms = [(plain, False), (output, True)]
        list(pool.map(lambda form: compile_cubin(source, architecture, form[0], lines=form[1]), forms))
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
        _run(["g++", "-shared", "-Wl,--wrap=dlopen", "-Wl,-Bsymbolic", *parts, "-o", str(temporary), "-ldl"])
        temporary.replace(output)
    finally:
        for target in objects:
            target.unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout
