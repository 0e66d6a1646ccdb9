"""The decode as PyTorch operators: CUDA kernels on a GPU, the reference elsewhere. torch only.

``torch.ops.nrd.patch_decode`` and ``torch.ops.nrd.patch_decode_mask`` take plain numbers, so that `torch.compile` and
`torch.export` keep them as one node; the functions of this module take a `DecodeSpec`. The kernels are compiled on
their first use (`nrd_trt.decode.extension`). All forms compute in fp32 whatever the tensors' type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from nrd_trt.decode import reference
from nrd_trt.decode.extension import load_extension
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.specs import STRIDE, DecodeSpec

Variant = Literal["auto", "generic", "simt", "tensor_core"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""The kernels; the place of a name is its number in ``decode_problem.h``."""

Table = Sequence[float]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_WIDTHS, _PATCHES, _FACTORS = (8, 16, 32), (4, 8, 16), (1, 2, 4, 8)


def patch_decode(
    theta: Tensor,
    guidance: Tensor,
    x_table: Table | Tensor,
    y_table: Table | Tensor,
    spec: DecodeSpec,
    *,
    variant: Variant = "auto",
) -> Tensor:
    """Decode every patch with its own perceptron.

    Args:
        theta: ``(B, P, h, w)`` float32, float16 or bfloat16, ``P = spec.theta_channels``. NCHW and channels-last are
            read as they lie, also with a larger pitch; other layouts are copied.
        guidance: ``(B, m, f·h, f·w)``, normalised (``cat_norm`` applied or folded), dtype and device of theta.
        x_table: ``(f,)``, first input of the perceptron for each column of a patch. Numbers, or a tensor, whose
            values are fetched from its device; a graph that is compiled or exported wants numbers.
        y_table: ``(f,)``, second input for each row.
        spec: Build-time constants; see `find_fault` for those that the kernels know.
        variant: Kernel to use on a GPU; it has no meaning on a CPU.

    Returns:
        Logits ``(B, K, f·h, f·w)``, contiguous, dtype of theta. Where theta or guidance needs a gradient they come from
        the PyTorch reference in fp32, which has one; the operators have none.

    Raises:
        ConfigError: The constants or the dtype are not among those that the kernels know.
        ShapeError: theta, guidance or a table does not have the shape above.
        MissingDependencyError: On a GPU: a tool for compiling the kernels is missing; the message names it.
        PluginError: On a GPU: the kernels cannot be compiled or loaded.
        RuntimeError: On a GPU: this variant does not exist for these constants, this dtype or this GPU.
    """
    numbers = *_constants(spec), _number_of(variant)
    tables = _floats(x_table), _floats(y_table)
    if torch.is_grad_enabled() and (theta.requires_grad or guidance.requires_grad):
        _checked(theta, guidance, *tables, numbers[:4], numbers[-1])
        return _in_fp32(theta, guidance, *tables, spec).to(theta.dtype)
    return _logits(theta, guidance, *tables, *numbers)  # type: ignore[no-any-return]


def patch_decode_mask(
    theta: Tensor,
    guidance: Tensor,
    x_table: Table | Tensor,
    y_table: Table | Tensor,
    spec: DecodeSpec,
    *,
    variant: Variant = "auto",
    prune: bool = True,
) -> Tensor:
    """Decode every patch, enlarge the logits bilinearly (``align_corners=False``) and take the class.

    On a GPU neither the logits nor their enlargement exist in memory.

    Args:
        theta: As in `patch_decode`.
        guidance: As in `patch_decode`.
        x_table: As in `patch_decode`.
        y_table: As in `patch_decode`.
        spec: Build-time constants; ``spec.upsample`` is the factor.
        variant: Kernel to use on a GPU; it has no meaning on a CPU.
        prune: On a GPU, skip cells whose corners agree; the mask is the same without it.

    Returns:
        Class indices ``(B, s·f·h, s·f·w)`` uint8. Ties go to the lowest index; NaN never wins, and where there is
        nothing else the index is 0. No gradient.

    Raises:
        ConfigError: As in `patch_decode`.
        ShapeError: As in `patch_decode`.
        MissingDependencyError: As in `patch_decode`.
        PluginError: As in `patch_decode`.
        RuntimeError: As in `patch_decode`.
    """
    numbers = *_constants(spec), spec.upsample, _number_of(variant), prune
    return _mask(theta, guidance, _floats(x_table), _floats(y_table), *numbers)  # type: ignore[no-any-return]


def find_fault(spec: DecodeSpec) -> str | None:
    """Say which constant the kernels do not know, or return None."""
    return _fault(*_constants(spec), spec.upsample)


# --- the operators ---------------------------------------------------------------------------------------------------
# num_classes, hidden, guidance_channels, patch and what follows them travel as `numbers`: without names and defaults
# one signature serves every device.

_LOGITS_SCHEMA = (
    "(Tensor theta, Tensor guidance, float[] x_table, float[] y_table, int num_classes, int hidden, "
    "int guidance_channels, int patch, int variant) -> Tensor"
)
_MASK_SCHEMA = _LOGITS_SCHEMA.replace("int variant", "int upsample, int variant, bool prune")


@torch.library.custom_op("nrd::patch_decode", mutates_args=(), device_types="cpu", schema=_LOGITS_SCHEMA)
def _logits(theta: Tensor, guidance: Tensor, x_table: Table, y_table: Table, *numbers: int) -> Tensor:
    spec = _checked(theta, guidance, x_table, y_table, numbers[:4], numbers[-1])
    return _in_fp32(theta, guidance, x_table, y_table, spec).to(theta.dtype).contiguous()


@_logits.register_fake
def _empty_logits(theta: Tensor, guidance: Tensor, x_table: Table, y_table: Table, *numbers: int) -> Tensor:
    *constants, variant = numbers
    spec = _checked(theta, guidance, x_table, y_table, constants, variant)
    batch, _, h, w = theta.shape
    return theta.new_empty((batch, spec.num_classes, spec.patch * h, spec.patch * w))


@_logits.register_kernel("cuda")
def _logits_on_cuda(theta: Tensor, guidance: Tensor, x_table: Table, y_table: Table, *numbers: int) -> Tensor:
    logits: Tensor = _empty_logits(theta, guidance, x_table, y_table, *numbers)
    load_extension()
    torch.ops.nrd.launch_decode(theta, guidance, logits, x_table, y_table, *numbers)
    return logits


@torch.library.custom_op("nrd::patch_decode_mask", mutates_args=(), device_types="cpu", schema=_MASK_SCHEMA)
def _mask(theta: Tensor, guidance: Tensor, x_table: Table, y_table: Table, *numbers: int) -> Tensor:
    mask: Tensor = _empty_mask(theta, guidance, x_table, y_table, *numbers)
    logits = _in_fp32(theta, guidance, x_table, y_table, _spec(numbers[:4]))
    for image in range(len(mask)):  # one enlarged image is held at a time
        enlarged = reference.upsample(logits[image, None], numbers[4])
        enlarged.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)  # argmax would choose NaN
        mask[image] = enlarged.argmax(dim=1)[0]
    return mask


@_mask.register_fake
def _empty_mask(theta: Tensor, guidance: Tensor, x_table: Table, y_table: Table, *numbers: int) -> Tensor:
    *constants, factor, variant, _ = numbers
    spec = _checked(theta, guidance, x_table, y_table, constants, variant, factor)
    batch, _, h, w = theta.shape
    scale = factor * spec.patch
    return theta.new_empty((batch, scale * h, scale * w), dtype=torch.uint8)


@_mask.register_kernel("cuda")
def _mask_on_cuda(theta: Tensor, guidance: Tensor, x_table: Table, y_table: Table, *numbers: int) -> Tensor:
    mask: Tensor = _empty_mask(theta, guidance, x_table, y_table, *numbers)
    load_extension()
    torch.ops.nrd.launch_decode_mask(theta, guidance, mask, x_table, y_table, *numbers)
    return mask


def _in_fp32(theta: Tensor, guidance: Tensor, x_table: Table, y_table: Table, spec: DecodeSpec) -> Tensor:
    x, y = (torch.tensor(table, dtype=torch.float32, device=theta.device) for table in (x_table, y_table))
    return reference.patch_decode(theta.float(), guidance.float(), x, y, spec)


def _fault(k: int, d: int, m: int, f: int, factor: int) -> str | None:
    """``findFault`` of ``decode_problem.h``."""
    if not 2 <= k <= 256:
        return f"num_classes: expected 2 to 256, got {k}"
    choices = (("hidden", d, _WIDTHS), ("guidance_channels", m, _WIDTHS), ("patch", f, _PATCHES))
    for name, value, known in (*choices, ("upsample", factor, _FACTORS)):
        if value not in known:
            return f"{name}: expected one of {', '.join(map(str, known))}, got {value}"
    return None


def _spec(constants: Sequence[int]) -> DecodeSpec:
    k, d, m, f = constants
    return DecodeSpec(num_classes=k, hidden=d, guidance_channels=m, patch=f, upsample=STRIDE // f)


def _constants(spec: DecodeSpec) -> tuple[int, int, int, int]:
    return spec.num_classes, spec.hidden, spec.guidance_channels, spec.patch


def _checked(
    theta: Tensor,
    guidance: Tensor,
    x_table: Table,
    y_table: Table,
    constants: Sequence[int],
    variant: int,
    factor: int = 1,
) -> DecodeSpec:
    """Return the constants once everything fits them; sizes may be symbols of a trace."""
    k, d, m, f = constants
    fault = _fault(k, d, m, f, factor)
    if fault is None and not 0 <= variant < len(VARIANTS):
        fault = f"variant: expected 0 to {len(VARIANTS) - 1}, got {variant}"
    if fault is None and (theta.dtype not in _DTYPES or guidance.dtype != theta.dtype):
        fault = (
            f"theta and guidance: expected both float32, float16 or bfloat16, got {theta.dtype} and {guidance.dtype}"
        )
    if fault is not None:
        raise ConfigError(f"patch_decode: {fault}.")
    if len(x_table) != f or len(y_table) != f:
        raise ShapeError(f"patch_decode: expected tables of {f} values, got {len(x_table)} and {len(y_table)}.")
    spec = _spec(constants)
    reference.check_shapes(theta, guidance, spec)
    return spec


def _floats(table: Table | Tensor) -> list[float]:
    return table.tolist() if isinstance(table, Tensor) else list(table)


def _number_of(variant: Variant) -> int:
    if variant not in VARIANTS:
        raise ConfigError(f"variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    return VARIANTS.index(variant)
