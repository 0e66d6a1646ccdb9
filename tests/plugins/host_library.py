"""The host reference and the emulated kernels of ``plugins/nrd_decode``, built once per process and called by ctypes.

Nothing here asserts.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nrd_trt.decode.reference import patch_decode
from nrd_trt.specs import DecodeSpec
from tests.artefacts import workspace

PLUGINS = Path(__file__).resolve().parent.parent.parent / "plugins"
VARIANTS = GENERIC, SIMT, TENSOR_CORE, SIMT_RETAINED, TENSOR_CORE_RETAINED = 1, 2, 3, 4, 5
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MASK_TYPES = {"int32": 0, "half": 1, "uint8": 2}
MASK_DTYPES = {"int32": np.int32, "half": np.float16, "uint8": np.uint8}
ALIGNMENT = 16

Layout = Literal["planar", "channels_last", "padded"]


class Shape(ctypes.Structure):
    """`nrd::DecodeShape`."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_classes", "hidden", "guidance_channels", "patch", "upsample")),
        ("x_table", ctypes.c_float * 16),
        ("y_table", ctypes.c_float * 16),
    )


class View(ctypes.Structure):
    """`nrd::TensorView`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch_stride", "channel_stride", "pixel_stride")),
    )


class Problem(ctypes.Structure):
    """`nrd::DecodeProblem`."""

    _fields_ = (
        ("shape", Shape),
        *((name, ctypes.c_int32) for name in ("type", "batch", "rows", "columns")),
        ("theta", View),
        ("guidance", View),
    )


@cache
def host_library() -> ctypes.CDLL:
    """Build the library with cmake and g++, without CUDA, and open it."""
    folder = workspace() / "host_library"
    options = ["-DNRD_TRT_CUDA=OFF", "-DNRD_TRT_WERROR=ON", "-DBUILD_TESTING=OFF", "-DCMAKE_CUDA_ARCHITECTURES=90"]
    _run(["cmake", "-S", str(PLUGINS), "-B", str(folder), *options])
    _run(["cmake", "--build", str(folder), "--target", "nrd_decode_host"])
    library = ctypes.CDLL(str(folder / "libnrd_decode_host.so"))
    library.nrd_host_last_error.restype = ctypes.c_char_p
    return library


def missing_tools() -> str | None:
    """Say what the build lacks here, or None."""
    absent = [tool for tool in ("cmake", "g++") if shutil.which(tool) is None]
    return f"no {' and no '.join(absent)} to build the host reference" if absent else None


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One decode: its constants and its tensors.

    Attributes:
        theta: ``(B, P, h, w)``; its dtype is that of guidance and logits.
        guidance: ``(B, m, f·h, f·w)``.
        x_table: ``(f,)`` float32; likewise `y_table`.
        upsample: s.
    """

    num_classes: int
    hidden: int
    guidance_channels: int
    patch: int
    upsample: int
    theta: Tensor
    guidance: Tensor
    x_table: Tensor
    y_table: Tensor
    theta_layout: Layout = "planar"
    guidance_layout: Layout = "planar"

    @property
    def spec(self) -> DecodeSpec:
        """The constants without s, which `DecodeSpec` ties to the patch."""
        return DecodeSpec(
            num_classes=self.num_classes,
            hidden=self.hidden,
            guidance_channels=self.guidance_channels,
            patch=self.patch,
            upsample=32 // self.patch,
        )

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """``(B, K, f·h, f·w)``."""
        batch, _, rows, columns = self.theta.shape
        return batch, self.num_classes, rows * self.patch, columns * self.patch

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """``(B, s·f·h, s·f·w)``."""
        batch, _, height, width = self.logits_shape
        return batch, height * self.upsample, width * self.upsample


def random_case(
    num_classes: int = 19,
    hidden: int = 16,
    guidance_channels: int = 16,
    patch: int = 8,
    upsample: int = 4,
    *,
    batch: int = 1,
    rows: int = 2,
    columns: int = 3,
    dtype: torch.dtype = torch.float32,
    scale: float = 0.5,
    seed: int = 0,
) -> Case:
    """Draw every tensor from a normal distribution; theta with standard deviation `scale`."""
    generator = torch.Generator().manual_seed(seed)
    k, d, m = num_classes, hidden, guidance_channels
    channels = (2 + m) * d + d + d * d + d + d * k + k
    return Case(
        num_classes=k,
        hidden=d,
        guidance_channels=m,
        patch=patch,
        upsample=upsample,
        theta=(torch.randn(batch, channels, rows, columns, generator=generator) * scale).to(dtype),
        guidance=torch.randn(batch, m, rows * patch, columns * patch, generator=generator).to(dtype),
        x_table=torch.randn(patch, generator=generator),
        y_table=torch.randn(patch, generator=generator),
    )


def smooth_case(*sizes: int, **changes: Any) -> Case:
    """A case whose masks have areas, as those of real images: weak guidance, patches that resemble each other."""
    case = random_case(*sizes, **changes)
    theta = case.theta[:, :, :1, :1] + 0.1 * case.theta
    return replace(case, theta=theta.to(case.theta.dtype), guidance=(0.1 * case.guidance).to(case.guidance.dtype))


def reference_logits(case: Case) -> Tensor:
    """What PyTorch computes in fp32 from the widened tensors."""
    theta, guidance = case.theta.float(), case.guidance.float()
    return patch_decode(theta, guidance, case.x_table, case.y_table, case.spec)


def host_logits(case: Case) -> Tensor:
    """Run the host reference."""
    return _logits(case, lambda problem, out: host_library().nrd_host_patch_decode(problem, out))


def host_mask(case: Case, *, prune: bool = True, mask_type: str = "int32") -> np.ndarray:
    """Run the host reference; `(B, s·f·h, s·f·w)` of the mask type."""
    return _mask(
        case,
        mask_type,
        lambda problem, out: host_library().nrd_host_patch_decode_mask(
            problem, out, MASK_TYPES[mask_type], ctypes.c_int32(prune)
        ),
    )


def kernel_logits(case: Case, variant: int, *, seed: int = 0) -> Tensor:
    """Run the emulated kernel; `seed` decides in which order its threads run."""
    return _logits(
        case,
        lambda problem, out: host_library().nrd_emulate_patch_decode(
            problem, out, variant, ctypes.c_uint64(seed), ctypes.c_int64(0), ctypes.c_int64(-1)
        ),
    )


def kernel_mask(case: Case, variant: int, *, prune: bool = True, mask_type: str = "int32", seed: int = 0) -> np.ndarray:
    """Run the emulated kernel."""
    return _mask(
        case,
        mask_type,
        lambda problem, out: host_library().nrd_emulate_patch_decode_mask(
            problem,
            out,
            MASK_TYPES[mask_type],
            variant,
            ctypes.c_int32(prune),
            ctypes.c_uint64(seed),
            ctypes.c_int64(0),
            ctypes.c_int64(-1),
        ),
    )


def _logits(case: Case, run: Any) -> Tensor:
    out = _poisoned(case.logits_shape, _bits(case.theta).dtype)
    _call(case, run, out)
    return torch.from_numpy(out.view(np.int16) if out.dtype == np.uint16 else out).view(case.theta.dtype)


def _mask(case: Case, mask_type: str, run: Any) -> np.ndarray:
    out = _poisoned(case.mask_shape, np.dtype(MASK_DTYPES[mask_type]))
    _call(case, run, out)
    return out


def _call(case: Case, run: Any, out: np.ndarray) -> None:
    problem, alive = _problem(case)
    if run(ctypes.byref(problem), ctypes.c_void_p(out.ctypes.data)):
        raise ValueError(host_library().nrd_host_last_error().decode())
    del alive


def _poisoned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Bytes that no kernel writes: a pixel left out shows."""
    out = _aligned(int(np.prod(shape)) * dtype.itemsize)
    out[:] = 0xA5
    return out.view(dtype).reshape(shape)


def _aligned(size: int) -> np.ndarray:
    """Bytes at an address like one of cudaMalloc."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def _bits(tensor: Tensor) -> np.ndarray:
    """The tensor's memory; 16-bit types as uint16."""
    tensor = tensor.contiguous()
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.int16).numpy().view(np.uint16)


def _problem(case: Case) -> tuple[Problem, tuple[np.ndarray, ...]]:
    batch, _, rows, columns = case.theta.shape
    theta, theta_view = _lay_out(_bits(case.theta), case.theta_layout)
    guidance, guidance_view = _lay_out(_bits(case.guidance), case.guidance_layout)
    problem = Problem(_shape(case), TYPES[case.theta.dtype], batch, rows, columns, theta_view, guidance_view)
    return problem, (theta, guidance)


def _shape(case: Case) -> Shape:
    shape = Shape(case.num_classes, case.hidden, case.guidance_channels, case.patch, case.upsample)
    for index in range(case.patch):
        shape.x_table[index], shape.y_table[index] = float(case.x_table[index]), float(case.y_table[index])
    return shape


def _lay_out(array: np.ndarray, layout: Layout) -> tuple[np.ndarray, View]:
    """Copy into a layout; the padding of a pitch is NaN in every type."""
    batch, channels, rows, columns = array.shape
    pitch = -(-channels // 8) * 8 if layout == "padded" else channels
    size = batch * rows * columns * pitch
    memory = _aligned(size * array.itemsize).view(array.dtype)
    if layout == "planar":
        memory.reshape(array.shape)[:] = array
        view = View(memory.ctypes.data, channels * rows * columns, rows * columns, 1)
    else:
        memory.view(f"u{array.itemsize}")[:] = np.iinfo(f"u{array.itemsize}").max
        memory.reshape(batch, rows, columns, pitch)[..., :channels] = array.transpose(0, 2, 3, 1)
        view = View(memory.ctypes.data, rows * columns * pitch, 1, pitch)
    return memory, view


def last_blocks(big: Case, logits: np.ndarray, mask: np.ndarray, variant: int) -> None:
    """Run only the last block of both emulated kernels, on planar tensors that are not copied."""
    library, blocks = host_library(), big.theta.shape[0] * big.theta.shape[2] * big.theta.shape[3]
    shape = _shape(big)
    views = (_planar_view(tensor) for tensor in (big.theta, big.guidance))
    batch, _, rows, columns = big.theta.shape
    problem = ctypes.byref(Problem(shape, TYPES[big.theta.dtype], batch, rows, columns, *views))
    part = (ctypes.c_uint64(0), ctypes.c_int64(blocks - 1), ctypes.c_int64(blocks))
    for failed in (
        library.nrd_emulate_patch_decode(problem, ctypes.c_void_p(logits.ctypes.data), variant, *part),
        library.nrd_emulate_patch_decode_mask(
            problem, ctypes.c_void_p(mask.ctypes.data), MASK_TYPES["uint8"], variant, ctypes.c_int32(True), *part
        ),
    ):
        if failed:
            raise ValueError(library.nrd_host_last_error().decode())


def _planar_view(tensor: Tensor) -> View:
    _, channels, rows, columns = tensor.shape
    return View(tensor.data_ptr(), channels * rows * columns, rows * columns, 1)
