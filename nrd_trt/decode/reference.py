"""The per-patch decode in PyTorch: the form that every other form is tested against. torch only.

Every location of theta holds the weights of a three-layer perceptron, in the order W0, b0, W1, b1, W2, b2, each W
row-major ``[out][in]``. It draws its own ``f x f`` patch of the logits from the pixel's coordinates inside the patch
(x first, then y) and from the guidance map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nrd_trt.errors import ShapeError
from nrd_trt.specs import DecodeSpec


def patch_decode(theta: Tensor, guidance: Tensor, x_table: Tensor, y_table: Tensor, spec: DecodeSpec) -> Tensor:
    """Decode every patch with its own perceptron.

    Args:
        theta: ``(B, P, h, w)`` floating point, ``P = spec.theta_channels``.
        guidance: ``(B, m, f·h, f·w)``, normalised (``cat_norm`` applied or folded), dtype of theta.
        x_table: ``(f,)``, first input of the perceptron for each column of a patch.
        y_table: ``(f,)``, second input for each row.
        spec: Build-time constants.

    Returns:
        Logits ``(B, K, f·h, f·w)``, dtype of theta. Differentiable in all inputs.

    Raises:
        ShapeError: theta or guidance does not have the shape above.
    """
    check_shapes(theta, guidance, spec)
    batch, _, h, w = theta.shape
    k, d, m, f = spec.num_classes, spec.hidden, spec.guidance_channels, spec.patch
    patches = batch * h * w

    per_patch = theta.permute(0, 2, 3, 1).reshape(patches, spec.theta_channels)
    w0, b0, w1, b1, w2, b2 = torch.split(per_patch, list(spec.sections), dim=1)
    w0, w1, w2 = w0.reshape(patches, d, 2 + m), w1.reshape(patches, d, d), w2.reshape(patches, k, d)
    pixels = guidance.reshape(batch, m, h, f, w, f).permute(0, 2, 4, 1, 3, 5).reshape(patches, m, f * f)
    coordinates = torch.stack([x_table.repeat(f), y_table.repeat_interleave(f)])

    hidden = torch.baddbmm(b0[..., None], w0[..., 2:], pixels) + w0[..., :2] @ coordinates
    hidden = torch.baddbmm(b1[..., None], w1, functional.relu(hidden))
    logits = torch.baddbmm(b2[..., None], w2, functional.relu(hidden))
    return logits.reshape(batch, h, w, k, f, f).permute(0, 3, 1, 4, 2, 5).reshape(batch, k, h * f, w * f)


def upsample(logits: Tensor, scale: int) -> Tensor:
    """Enlarge ``(B, K, H, W)`` logits bilinearly (``align_corners=False``) to ``(B, K, scale·H, scale·W)``."""
    return functional.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)


def confidence_of(enlarged: Tensor) -> Tensor:
    """Return 255 times the softmax of the best class of logits ``(B, K, H, W)``, ``(B, H, W) uint8``; 0 of NaN."""
    best = functional.softmax(enlarged, dim=1).amax(dim=1)
    return (255 * best).nan_to_num(0.0).round().to(torch.uint8)


def check_shapes(theta: Tensor, guidance: Tensor, spec: DecodeSpec) -> None:
    """Raise `ShapeError` unless theta and guidance have the shapes that `patch_decode` takes."""
    if theta.ndim != 4:
        raise ShapeError(f"patch_decode: expected theta (B, P, h, w), got {tuple(theta.shape)}.")
    batch, _, h, w = theta.shape
    want_theta = (batch, spec.theta_channels, h, w)
    want_guidance = (batch, spec.guidance_channels, spec.patch * h, spec.patch * w)
    if tuple(theta.shape) != want_theta or tuple(guidance.shape) != want_guidance:
        raise ShapeError(
            f"patch_decode: expected theta {want_theta} and guidance {want_guidance}, "
            f"got {tuple(theta.shape)} and {tuple(guidance.shape)}."
        )
