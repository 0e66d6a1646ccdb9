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

from scripts.dev import kernel_resources
from scripts.dev.kernel_resources import ARCHITECTURES, blocks_per_multiprocessor, compile_kernels, parse_resources
from tests.artefacts import REPOSITORY
from tests.decode import on_cpu

NEEDS_NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc; install the CUDA toolkit")
QUICK = (87, 90)
SHARED_LIMIT = 48 * 1024
KERNELS = 16
"""Two ops; generic and released kernels for three types, and those on tensor cores for two."""

PROGRAM = b"""
#include "logits_kernel.h"
#include "mask_kernel.h"

extern "C" __global__ void mask(__grid_constant__ nrd::MaskArguments const arguments)
{
    nrd::MaskBlock<nrd::ReleasedShape, nrd::ElementType::kHALF>(arguments).draw<nrd::DENSE>();
}

extern "C" __global__ void logits(__grid_constant__ nrd::LogitsArguments const arguments)
{
    nrd::decodeLogits<nrd::AnyShape, nrd::ElementType::kBFLOAT16, nrd::Simt>(arguments);
}
"""


@NEEDS_NVCC
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(number, marks=() if number in QUICK else pytest.mark.all_combinations) for number in ARCHITECTURES],
)
def test_every_kernel_compiles_and_the_released_ones_spill_nothing(architecture: int, tmp_path: Path) -> None:
    if architecture not in kernel_resources.known_architectures():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    kernels = compile_kernels(architecture, tmp_path / "decode.cubin")
    assert len({kernel.name for kernel in kernels}) == len(kernels) == KERNELS
    for kernel in kernels:
        assert kernel.sizes == "any" or kernel.spill_bytes == 0, kernel
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


def test_report_of_the_compiler_is_read() -> None:
    line = "ptxas info    : Compiling entry function '{}' for 'sm_90'\nptxas info    : Function properties for x\n"
    line += "    8 bytes stack frame, {} bytes spill stores, 4 bytes spill loads\n"
    line += "ptxas info    : Used {} registers, used 1 barriers\n"
    mask, logits = "nrd_mask_tensor_core_fp16", "nrd_logits_generic_fp32"
    first, second = parse_resources(line.format(mask, 12, 96) + line.format(logits, 0, 80))
    assert (first.name, first.registers, first.spill_bytes) == ("logits any simt fp32", 80, 0)
    assert (second.name, second.registers, second.spill_bytes) == ("mask released tensor_core fp16", 96, 12)


def test_blocks_per_multiprocessor() -> None:
    assert blocks_per_multiprocessor(90, 80, 30 * 1024) == 6  # by registers
    assert blocks_per_multiprocessor(87, 32, 30 * 1024) == 5  # by shared memory
    assert blocks_per_multiprocessor(75, 32, 1024) == 8  # by threads
    assert blocks_per_multiprocessor(121, 32, 1024) is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_shared_memory_stays_within_every_gpu_s_default(tmp_path: Path) -> None:
    assert 0 < max(kernel_resources.shared_bytes(tmp_path).values()) <= SHARED_LIMIT


def nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's run-time compiler, from the package `nvidia-cuda-nvrtc`."""
    package = importlib.util.find_spec("nvidia")
    for folder in package.submodule_search_locations or () if package else ():
        for library in sorted(Path(folder).rglob("libnvrtc.so.*")):
            return ctypes.CDLL(str(library))
    return None


@pytest.mark.skipif(nvrtc() is None, reason="no NVRTC; pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize(("architecture", "dense"), [(75, "Simt"), (90, "TensorCore")])
def test_nvrtc_compiles_the_device_code(architecture: int, dense: str) -> None:
    library = nvrtc()
    assert library is not None
    program = ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), PROGRAM, b"decode.cu", 0, None, None) == 0
    options = [f"-arch=sm_{architecture}", "-std=c++17", "-fmad=false", f"-DDENSE={dense}"]
    options.append(f"-I{on_cpu.KERNELS}")
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
