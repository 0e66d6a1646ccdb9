"""Convolution blocks whose parameter names are mmcv's, so that mmseg checkpoints load as they are. torch only."""

from __future__ import annotations

from torch import nn


class ConvBnAct(nn.Sequential):
    """Convolution, batch norm and activation under the names ``conv`` and ``bn``.

    Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H/stride, W/stride)``.
    Without batch norm the convolution has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: bool = True,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation, groups=groups, bias=not norm
        )
        if norm:
            self.bn = nn.BatchNorm2d(out_channels)
        if act is not None:
            self.act = act


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 then pointwise 1x1, each with batch norm and ReLU.

    Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvBnAct(
            in_channels, in_channels, 3, dilation=dilation, groups=in_channels, act=nn.ReLU()
        )
        self.pointwise_conv = ConvBnAct(in_channels, out_channels, 1, act=nn.ReLU())
