"""Encoders and blocks under mmseg's parameter names: ResNet, ResNetV1c, ResNeXt, MobileNetV2; all by name. torch only.

Each encoder maps ``(N, 3, H, W) float32, normalised`` to four maps of strides 4, 8, 16 and 32 and lists their channels
in ``channels``; `nrd_trt.model.plans` has its widths. Output strides 16 and 8 are mmseg's D16 and D8 variants: the last
stages are dilated instead of strided, with the same parameters, so a checkpoint's shapes do not tell which of them it
was trained as.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from nrd_trt.model.plans import MITS, MOBILENETV2, RESNETS, STAGES, TWINS, MobileNetPlan, ResNetPlan, Widths
from nrd_trt.model.transformers import MixTransformer, Twins


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


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet-18 and -34)."""

    def __init__(
        self,
        in_channels: int,
        inner: tuple[int, ...],
        out_channels: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        dilation: int,
    ) -> None:
        super().__init__()
        (width,) = inner
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H/stride, W/stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; the stride is on the 3x3, which ResNeXt splits into groups."""

    def __init__(
        self,
        in_channels: int,
        inner: tuple[int, ...],
        out_channels: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        dilation: int,
        groups: int,
    ) -> None:
        super().__init__()
        first, second = inner
        self.conv1 = nn.Conv2d(in_channels, first, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride, dilation, dilation, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H/stride, W/stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)  # type: ignore[no-any-return]


# Per output stride: strides and dilations of the four stages.
RESNET_STAGES = {
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
}
OUTPUT_STRIDES = tuple(RESNET_STAGES)


class ResNet(nn.Module):
    """ResNet with four stages."""

    def __init__(self, plan: ResNetPlan, output_stride: int = 32, widths: Widths | None = None) -> None:
        super().__init__()
        self.plan, self.widths = plan, widths or plan.own
        self.strides, self.dilations = RESNET_STAGES[output_stride]
        in_channels = 3
        if plan.deep_stem:  # three 3x3 convolutions in place of the 7x7 one (mmseg's V1c)
            self.stem = nn.Sequential()
            for out_channels, stride in zip(self.widths.stem, (2, 1, 1), strict=True):
                self.stem.append(nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False))
                self.stem.append(nn.BatchNorm2d(out_channels))
                self.stem.append(nn.ReLU())
                in_channels = out_channels
        else:
            self.conv1 = nn.Conv2d(in_channels, self.widths.stem[0], 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.widths.stem[0])
            self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels = self.widths.stages
        inner = iter(self.widths.inner)
        for stage in range(STAGES):
            self.add_module(f"layer{stage + 1}", nn.Sequential(*self._stage(stage, inner)))

    def _stage(self, stage: int, inner: Iterator[tuple[int, ...]]) -> Iterator[nn.Module]:
        out_channels = self.channels[stage]
        in_channels = self.channels[stage - 1] if stage else self.widths.stem[-1]
        for index in range(self.plan.blocks[stage]):
            stride, dilation = 1, self.dilations[stage]
            if index == 0:  # has half the dilation (mmseg's contract_dilation)
                stride, dilation = self.strides[stage], max(1, dilation // 2)
            downsample = None
            if self.plan.has_downsample(stage, index):
                downsample = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
                )
            shape = in_channels, next(inner), out_channels, stride, downsample
            if self.plan.bottleneck:
                yield Bottleneck(*shape, dilation=dilation, groups=self.plan.groups)
            else:
                yield BasicBlock(*shape, dilation=dilation)
            in_channels = out_channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four feature maps, strides 4 to the output stride."""
        x = self.stem(images) if self.plan.deep_stem else self.relu(self.bn1(self.conv1(images)))
        x = self.maxpool(x)
        features = []
        for stage in range(STAGES):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            features.append(x)
        return tuple(features)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; `shortcut` adds what it takes, `inner` is empty without expansion."""

    def __init__(
        self, in_channels: int, inner: tuple[int, ...], out_channels: int, *, stride: int, dilation: int, shortcut: bool
    ) -> None:
        super().__init__()
        self.with_shortcut = shortcut
        layers = [ConvBnAct(in_channels, width, 1, act=nn.ReLU6()) for width in inner]
        width = inner[0] if inner else in_channels
        layers.append(ConvBnAct(width, width, 3, stride=stride, dilation=dilation, groups=width, act=nn.ReLU6()))
        layers.append(ConvBnAct(width, out_channels, 1))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H/stride, W/stride)``."""
        out: Tensor = self.conv(x)
        return x + out if self.with_shortcut else out


# Per output stride: stride and dilation of each layer's first block; the others have 1 (as in mmseg).
MOBILENET_LAYERS = {
    32: ((1, 2, 2, 2, 1, 2, 1), (1, 1, 1, 1, 1, 1, 1)),
    16: ((1, 2, 2, 2, 1, 1, 1), (1, 1, 1, 1, 1, 2, 2)),
    8: ((1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4)),
}


class MobileNetV2(nn.Module):
    """MobileNetV2 whose outputs are its layers 2, 3, 5 and 7 (mmseg's out_indices 1, 2, 4, 6)."""

    _OUTPUTS = (1, 2, 4, 6)

    def __init__(self, plan: MobileNetPlan, output_stride: int = 32, widths: Widths | None = None) -> None:
        super().__init__()
        self.plan, self.widths = plan, widths or plan.own
        self.channels = tuple(self.widths.stages[index] for index in self._OUTPUTS)
        (in_channels,) = self.widths.stem
        self.conv1 = ConvBnAct(3, in_channels, 3, stride=2, act=nn.ReLU6())
        inner, firsts = iter(self.widths.inner), zip(*MOBILENET_LAYERS[output_stride], strict=True)
        for index, ((_, _, blocks), first) in enumerate(zip(plan.layers, firsts, strict=True)):
            layer, out_channels = nn.Sequential(), self.widths.stages[index]
            for block in range(blocks):
                stride, dilation = (1, 1) if block else first
                layer.append(
                    InvertedResidual(
                        *(in_channels, next(inner), out_channels),
                        stride=stride,
                        dilation=dilation,
                        shortcut=block > 0,
                    )
                )
                in_channels = out_channels
            self.add_module(f"layer{index + 1}", layer)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four feature maps, strides 4 to the output stride."""
        x = self.conv1(images)
        features = []
        for index in range(len(self.plan.layers)):
            x = self.get_submodule(f"layer{index + 1}")(x)
            if index in self._OUTPUTS:
                features.append(x)
        return tuple(features)


ENCODERS: dict[str, Callable[..., ResNet | MobileNetV2 | MixTransformer | Twins]] = {
    **{name: partial(ResNet, plan) for name, plan in RESNETS.items()},
    "mobilenetv2": partial(MobileNetV2, MOBILENETV2),
    **{name: partial(MixTransformer, plan) for name, plan in MITS.items()},
    **{name: partial(Twins, plan) for name, plan in TWINS.items()},
}
"""Each takes an output stride and widths, where these are not its own."""
