"""Convolution blocks whose parameter names are mmcv's, so that mmseg checkpoints load as they are. torch only."""

from __future__ import annotations

from torch import Tensor, nn


class ConvBnAct(nn.Module):
    """Convolution, batch norm and activation under the names ``conv`` and ``bn``.

    Padding keeps the size at stride 1. Without batch norm the convolution has a bias.
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
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H/stride, W/stride)``."""
        x = self.conv(x)
        if hasattr(self, "bn"):
            x = self.bn(x)
        return x if self.act is None else self.act(x)


class SeparableConv(nn.Module):
    """Depthwise 3x3 then pointwise 1x1, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvBnAct(
            in_channels, in_channels, 3, dilation=dilation, groups=in_channels, act=nn.ReLU()
        )
        self.pointwise_conv = ConvBnAct(in_channels, out_channels, 1, act=nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``."""
        x = self.depthwise_conv(x)
        return self.pointwise_conv(x)  # type: ignore[no-any-return]
