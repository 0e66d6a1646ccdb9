"""The traceable twin of a trained model: batch norm folded, decode left out. torch only.

The trained module stays as it is; the adapter works on a copy. That of an NRD network ends at theta and guidance, where
the decode function takes over (`nrd_trt.decode.function`); that of a baseline ends at its logits.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nrd_trt.model.heads import NrdHead
from nrd_trt.model.network import Segmentor


class LogitsAdapter(nn.Module):
    """Map ``(B, 3, H, W)`` float32 normalised images to a baseline's logits ``(B, K, H/s, W/s)``."""

    def __init__(self, model: Segmentor) -> None:
        super().__init__()
        folded = copy.deepcopy(model).eval().double()
        _fold_batch_norms(folded)
        folded.float()
        self.backbone = folded.backbone
        self.decode_head = folded.decode_head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.decode_head(self.backbone(images))  # type: ignore[no-any-return]


class PatchAdapter(nn.Module):
    """Map ``(B, 3, H, W)`` float32 normalised images to theta and folded guidance.

    Attributes:
        x_table: ``(f,)`` float32, columns' coordinates after ``cat_norm``.
        y_table: ``(f,)`` float32, rows' coordinates after ``cat_norm``.
    """

    x_table: np.ndarray
    y_table: np.ndarray

    def __init__(self, model: Segmentor) -> None:
        super().__init__()
        # Folding multiplies weights; float64 keeps the result the nearest float32.
        folded = copy.deepcopy(model).eval().double()
        head = folded.decode_head
        if not isinstance(head, NrdHead):
            raise TypeError(f"expected a network with an NRD head, got {model.config.head}")
        self.x_table, self.y_table = _fold_cat_norm(head)
        _fold_batch_norms(folded)
        folded.float()
        self.backbone = folded.backbone
        self.decode_head = head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return theta ``(B, P, h, w)`` and guidance ``(B, m, f·h, f·w)``."""
        features = self.backbone(images)
        return self.decode_head.theta(features[-1]), self.decode_head.guidance(features[0])


def _fold_cat_norm(head: NrdHead) -> tuple[np.ndarray, np.ndarray]:
    """Fold ``cat_norm`` into the guidance branch's last convolution and return the two coordinate tables."""
    norm = head.cat_norm
    scale = norm.weight.detach() / torch.sqrt(norm.get_buffer("running_var") + norm.eps)
    shift = norm.bias.detach() - norm.get_buffer("running_mean") * scale
    conv = [module for module in head.c1_bottleneck.modules() if isinstance(module, nn.Conv2d)][-1]
    conv.weight.data *= scale[2:, None, None, None]
    conv.bias.data = conv.bias.data * scale[2:] + shift[2:]  # type: ignore[union-attr]
    steps = torch.arange(head.config.patch, dtype=torch.float64) / head.config.patch
    x_table, y_table = (steps * scale[axis] + shift[axis] for axis in (0, 1))
    return x_table.numpy().astype(np.float32), y_table.numpy().astype(np.float32)


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch norm into the convolution registered just before it."""
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if previous and isinstance(previous[1], nn.Conv2d) and isinstance(child, nn.BatchNorm2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, nn.Identity())
        _fold_batch_norms(child)
        previous = (name, child)
