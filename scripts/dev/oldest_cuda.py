"""Compile the kernels and the host code with the CUDA of JetPack 6, the oldest one that is served. No nvcc, no GPU.

NVRTC 12.6 makes PTX of the kernels for compute capability 8.7, ptxas 12.6 assembles it, and g++ compiles the host code
over the headers of 12.6. The package index has all of them. Exits 1 where something does not compile or a kernel of
fixed sizes spills registers, 2 where g++ or the packages are missing.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from plugin_wheels import COMPILERS, HEADERS, KERNELS, WheelError, compile_image, install, run

ARCHITECTURE = 87
HOST = ("decode_launcher.cpp", "host_reference.cpp", "bench/bench.cu")


def assemble(ptx: Path, ptxas: Path) -> list[tuple[str, int, int]]:
    """Assemble PTX; return each kernel's name, registers per thread and bytes of stored spills per thread."""
    command = [ptxas, f"-arch=sm_{ARCHITECTURE}", "--verbose", ptx, "-o", ptx.with_suffix(".cubin")]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WheelError(f"ptxas: the kernels do not assemble\n{done.stdout}{done.stderr}")
    pattern = r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    found = re.findall(pattern, done.stdout + done.stderr, re.DOTALL)
    return [(name, int(registers), int(spilled)) for name, spilled, registers in found]


def compile_host(includes: list[Path]) -> Iterator[str]:
    """Compile each file of the host code; yield its name."""
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{KERNELS}"]
    system = [flag for include in includes for flag in ("-isystem", include)]
    for name in HOST:
        # What only nvcc declares in device code.
        device = ("-include", "device_launch_parameters.h", "-Dclock64=clock") if name.endswith(".cu") else ()
        run("g++", *flags, *system, *device, "-x", "c++", KERNELS / name)
        yield name


def main() -> int:
    if shutil.which("g++") is None:
        print("oldest_cuda: needs g++", file=sys.stderr)
        return 2
    requirement = next(name for name, architectures in COMPILERS.items() if ARCHITECTURE in architectures)
    with tempfile.TemporaryDirectory() as folder:
        try:
            packages = install([requirement, *HEADERS], Path(folder), platform.machine())
        except WheelError as exc:
            print(f"oldest_cuda: not run: the packages of CUDA 12.6 cannot be had\n{exc}", file=sys.stderr)
            return 2
        nvrtc = next(path for path in packages.rglob("libnvrtc.so.*") if "alt" not in path.name)
        ptxas = next(packages.rglob("bin/ptxas"))
        ptxas.chmod(0o755)
        try:
            kernels = assemble(compile_image(nvrtc, f"compute_{ARCHITECTURE}", packages / "kernels.ptx"), ptxas)
            compiled = list(compile_host(sorted(packages.glob("nvidia/*/include"))))
        except WheelError as exc:
            print(f"oldest_cuda: {exc}", file=sys.stderr)
            return 1
    spilling = [name for name, _, spilled in kernels if spilled and "generic" not in name]
    most = max(registers for _, registers, _ in kernels)
    print(f"CUDA 12.6: {len(kernels)} kernels for sm_{ARCHITECTURE}, {most} registers at most; {', '.join(compiled)}")
    if spilling:
        print(f"oldest_cuda: expected no spilled registers, got some in {', '.join(spilling)}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
