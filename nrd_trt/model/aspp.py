"""Atrous spatial pyramid pooling, which all heads but one share. torch only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nrd_trt.model.config import NetworkConfig
from nrd_trt.model.layers import ConvBnAct, SeparableConv


class AsppHead(nn.Module):
    """What mmseg's ASPP heads have in common: atrous spatial pyramid pooling and a classifier ``conv_seg``."""

    def __init__(
        self, config: NetworkConfig, in_channels: int, *, with_aspp: bool = True, separable: bool = True
    ) -> None:
        super().__init__()
        width = config.channels
        self.conv_seg = nn.Conv2d(width, config.num_classes, 1)
        if not with_aspp:
            return
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBnAct(in_channels, width, 1, act=nn.ReLU()))
        self.aspp_modules = nn.ModuleList([ConvBnAct(in_channels, width, 1, act=nn.ReLU())])
        for dilation in config.dilations[1:]:
            self.aspp_modules.append(
                SeparableConv(in_channels, width, dilation=dilation)
                if separable
                else ConvBnAct(in_channels, width, 3, dilation=dilation, act=nn.ReLU())
            )
        self.bottleneck = ConvBnAct(5 * width, width, 3, act=nn.ReLU())

    def context(self, c4: Tensor) -> Tensor:
        """Map the last stage ``(B, C, h, w)`` to ``(B, channels, h, w)``."""
        pooled = self.image_pool(c4).expand(-1, -1, c4.shape[2], c4.shape[3])
        branches = [pooled, *(branch(c4) for branch in self.aspp_modules)]
        return self.bottleneck(torch.cat(branches, dim=1))  # type: ignore[no-any-return]
