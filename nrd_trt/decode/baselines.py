"""Other ways from theta to the mask, to compare the kernels with. torch only; written from published descriptions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from nrd_trt.decode import reference
from nrd_trt.specs import DecodeSpec

DrawMask = Callable[[Tensor, Tensor], Tensor]
"""Maps theta and guidance to class indices."""


def authors_logits(theta: Tensor, guidance: Tensor, x_table: Tensor, y_table: Tensor, spec: DecodeSpec) -> Tensor:
    """Decode as the authors' released head does, with every intermediate that it writes.

    Theta is enlarged to one parameter set per pixel. Each layer repeats its input once per output channel, multiplies
    it with the weights, and sums over the input channels by a grouped 1x1 convolution whose weights are all one.

    Args:
        theta: ``(B, P, h, w)``.
        guidance: ``(B, m, f·h, f·w)``, dtype of theta.
        x_table: ``(f,)``, dtype of theta.
        y_table: ``(f,)``, dtype of theta.
        spec: Build-time constants.

    Returns:
        Logits ``(B, K, f·h, f·w)``, computed in the dtype of theta.
    """
    batch, _, height, width = guidance.shape
    f, m, d, k = spec.patch, spec.guidance_channels, spec.hidden, spec.num_classes
    parameters = functional.interpolate(theta, scale_factor=f, mode="nearest")
    parts = torch.split(parameters, list(spec.sections), dim=1)
    x = x_table.repeat(width // f).expand(batch, 1, height, width)
    y = y_table.repeat(height // f)[:, None].expand(batch, 1, height, width)
    values = torch.cat([x, y, guidance], dim=1)
    for layer, (inputs, outputs) in enumerate(((2 + m, d), (d, d), (d, k))):
        if layer:
            values = functional.relu(values)
        weights, biases = parts[2 * layer : 2 * layer + 2]
        products = values.repeat(1, outputs, 1, 1) * weights
        ones = torch.ones(outputs, inputs, 1, 1, dtype=theta.dtype, device=theta.device)
        values = functional.conv2d(products, ones, groups=outputs) + biases
    return values


def authors_mask(x_table: Tensor, y_table: Tensor, spec: DecodeSpec) -> DrawMask:
    """Return the authors' decode, enlarged bilinearly, with its argmax."""

    def draw(theta: Tensor, guidance: Tensor) -> Tensor:
        return reference.upsample(authors_logits(theta, guidance, x_table, y_table, spec), spec.upsample).argmax(dim=1)

    return draw


def matmul_mask(x_table: Tensor, y_table: Tensor, spec: DecodeSpec) -> DrawMask:
    """Return the decode as batched matrix products in the dtype of theta, enlarged bilinearly, with its argmax."""

    def draw(theta: Tensor, guidance: Tensor) -> Tensor:
        logits = reference.patch_decode(theta, guidance, x_table, y_table, spec)
        return reference.upsample(logits, spec.upsample).argmax(dim=1)

    return draw


def compiled_mask(x_table: Tensor, y_table: Tensor, spec: DecodeSpec) -> DrawMask:
    """Return `matmul_mask` under `torch.compile`, for one shape."""
    torch._dynamo.reset()
    return torch.compile(matmul_mask(x_table, y_table, spec), dynamic=False, fullgraph=True)


BASELINES: dict[str, Callable[[Tensor, Tensor, DecodeSpec], DrawMask]] = {
    "authors": authors_mask,
    "matmul": matmul_mask,
    "compiled": compiled_mask,
}
