"""The PyTorch binding of the kernels, compiled for CPU tensors with what lies in cuda_on_cpu/. Nothing here asserts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension

from nrd_trt.decode import reference
from nrd_trt.decode.bench import pitched
from nrd_trt.decode.extension import kernel_sources
from nrd_trt.specs import DecodeSpec
from tests.helpers import made_once

HERE = Path(__file__).parent / "cuda_on_cpu"
KERNELS = kernel_sources() / "nrd_decode"
FLAGS = ["-std=c++20", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda tensor: tensor.clone(memory_format=torch.contiguous_format),
    "channels_last": lambda tensor: tensor.clone(memory_format=torch.channels_last),
    "pitch_8": pitched,
}
"""Copy ``(B, C, H, W)`` values into each layout that the kernels read as it lies."""

Tables = Sequence[list[float]]
"""For each column and each row of a patch."""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def torch_headers() -> list[str]:
    """Return the flags that name PyTorch's headers; their warnings are not ours."""
    return [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]


def run_compiler(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run g++ with the flags of the binding."""
    return subprocess.run(["g++", *FLAGS, *arguments], capture_output=True, text=True)


@cache
def load_binding() -> None:
    """Make ``torch.ops.nrd.launch_decode`` and its siblings work on CPU tensors of this process.

    Launches go to the host reference, or to the emulated kernel where a variant is asked for by name.
    """
    torch.ops.load_library(str(made_once("binding_on_cpu.so", _compile)))


def kernel_objects() -> list[str]:
    """Return the object files of the host reference and the emulated kernels, in the kernels' own C++17."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for part in ("host_reference", "emulation", "emulated_kernels"):
            compile_cpp([f"-I{KERNELS}", "-std=c++17", "-O1", "-c", str(KERNELS / f"{part}.cpp")], folder / f"{part}.o")

    return sorted(map(str, made_once("kernels_on_cpu", make).iterdir()))


def compile_cpp(arguments: list[str], target: Path) -> None:
    """Run g++, and raise what it says where it fails."""
    done = run_compiler([*arguments, "-o", str(target)])
    if done.returncode != 0:
        raise RuntimeError(done.stderr)


def _compile(library: Path) -> None:
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-lc10"]
    folders = [f"-I{HERE}", f"-I{KERNELS}", *torch_headers()]
    compile_cpp([*folders, str(HERE / "binding_on_cpu.cpp"), *kernel_objects(), "-shared", *libraries], library)


def numbers(spec: DecodeSpec) -> tuple[int, int, int, int]:
    """Return the constants as the operators take them."""
    return spec.num_classes, spec.hidden, spec.guidance_channels, spec.patch


def logits_in_fp32(spec: DecodeSpec, theta: Tensor, guidance: Tensor, tables: Tables) -> Tensor:
    """Return what PyTorch computes from the widened tensors."""
    return reference.patch_decode(theta.float(), guidance.float(), *map(torch.tensor, tables), spec)


def launch_logits(
    spec: DecodeSpec, theta: Tensor, guidance: Tensor, tables: Tables, variant: int = 0, *, seed: int = 1
) -> Tensor:
    """Run the host reference or an emulated kernel; `seed` decides in which order its threads run."""
    batch, _, h, w = theta.shape
    # No kernel writes this value, so a pixel left out shows.
    logits = theta.new_full((batch, spec.num_classes, spec.patch * h, spec.patch * w), 1234.0)
    torch.ops.nrd_emulation.set(seed, 0)
    torch.ops.nrd.launch_decode(theta, guidance, logits, *tables, *numbers(spec), variant)
    return logits


def launch_mask(
    spec: DecodeSpec,
    theta: Tensor,
    guidance: Tensor,
    tables: Tables,
    variant: int = 0,
    *,
    upsample: int | None = None,
    prune: bool = True,
    dtype: torch.dtype = torch.uint8,
    seed: int = 1,
) -> Tensor:
    """Run the host reference or an emulated kernel; `upsample` may be another factor than that of `spec`."""
    batch, _, h, w = theta.shape
    factor = spec.upsample if upsample is None else upsample
    mask = torch.full((batch, factor * spec.patch * h, factor * spec.patch * w), 255, dtype=dtype)
    torch.ops.nrd_emulation.set(seed, 0)
    torch.ops.nrd.launch_decode_mask(theta, guidance, mask, *tables, *numbers(spec), factor, variant, prune)
    return mask
