"""The kernels compile for every architecture, without spills where the sizes are fixed. Needs compilers, no GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.dev.sass.cubin import read_cubin
from scripts.dev.sass.toolchain import ARCHITECTURES, SOURCE, compile_cubin, known_architectures
from tests.artefacts import REPOSITORY
from tests.decode import on_cpu
from tests.helpers import made_once

NEEDS_NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc; install the CUDA toolkit")
KERNELS = 26
"""Two ops; generic and released kernels for three types, on tensor cores for two, and these for five class counts."""

PROGRAM = b"""
#include "generic_kernel.h"

extern "C" __global__ void mask(__grid_constant__ nrd::MaskArguments const arguments)
{
    nrd::MaskBlock<nrd::ElementType::kHALF, 0, TENSOR_CORES>(arguments).draw();
}

extern "C" __global__ void logits(__grid_constant__ nrd::LogitsArguments const arguments)
{
    nrd::drawGenericLogits<nrd::ElementType::kBFLOAT16>(arguments);
}
"""


def compiled_once(architecture: int) -> Path:
    """The compiled kernels, which every worker of a run takes from the first."""
    return made_once(f"decode_{architecture}.cubin", lambda path: compile_cubin(SOURCE, architecture, path))


@NEEDS_NVCC
@pytest.mark.all_combinations
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_and_the_released_ones_spill_nothing(architecture: int) -> None:
    """`make check-kernels` looks for local memory in the mask kernels of sm_87 and sm_90, not in the logits."""
    if architecture not in known_architectures():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    kernels = read_cubin(compiled_once(architecture))
    assert len(kernels) == KERNELS
    for name, kernel in kernels.items():
        assert "generic" in name or kernel.stack_bytes == 0, name
        assert 0 < kernel.registers <= 128


@pytest.mark.all_combinations
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_everything_compiles_with_the_cuda_of_jetpack_6() -> None:
    command = [sys.executable, "scripts/dev/oldest_cuda.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode == 2:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert re.match(rf"CUDA 12\.6: {KERNELS} kernels for sm_87", done.stdout)


def nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's run-time compiler, from the package `nvidia-cuda-nvrtc`."""
    package = importlib.util.find_spec("nvidia")
    for folder in package.submodule_search_locations or () if package else ():
        for library in sorted(Path(folder).rglob("libnvrtc.so.*")):
            for part in library.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(part))  # which not every version finds beside itself
            return ctypes.CDLL(str(library))
    return None


@pytest.mark.skipif(nvrtc() is None, reason="no NVRTC; pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize(("architecture", "tensor_cores"), [(75, "false"), (90, "true")])
def test_nvrtc_compiles_the_device_code(architecture: int, tensor_cores: str) -> None:
    library = nvrtc()
    assert library is not None
    program = ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), PROGRAM, b"decode.cu", 0, None, None) == 0
    options = [f"-arch=sm_{architecture}", "-std=c++17", "-fmad=false", f"-DTENSOR_CORES={tensor_cores}"]
    options += [f"-I{on_cpu.KERNELS}", "-default-device"]  # of a generic lambda not every version knows where it runs
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    assert size.value > 10_000
    library.nvrtcDestroyProgram(ctypes.byref(program))
