"""Encoders and blocks under mmseg's parameter names: ResNet, ResNetV1c, ResNeXt, MobileNetV2. torch only.

Each encoder maps ``(N, 3, H, W) float32, normalised`` to four maps of strides 4, 8, 16 and 32 and lists their channels
in ``channels``. Output strides 16 and 8 are mmseg's D16 and D8 variants: the last stages are dilated instead of
strided, with the same parameters, so a checkpoint's shapes do not tell which of them it was trained as.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn


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

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, *, dilation: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, width, H/stride, W/stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; the stride is on the 3x3, which ResNeXt splits into groups."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        dilation: int,
        groups: int,
        width: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, 4·planes, H/stride, W/stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class ResNetPlan:
    """What distinguishes one ResNet from another; `groups` and `group_width` are ResNeXt's 64x4d."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    deep_stem: bool
    groups: int = 1
    group_width: int = 64


# Per output stride: strides and dilations of the four stages.
RESNET_STAGES = {
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
}
OUTPUT_STRIDES = tuple(RESNET_STAGES)


class ResNet(nn.Module):
    """ResNet with four stages."""

    def __init__(self, plan: ResNetPlan, output_stride: int = 32) -> None:
        super().__init__()
        self.plan = plan
        self.strides, self.dilations = RESNET_STAGES[output_stride]
        if plan.deep_stem:  # three 3x3 convolutions in place of the 7x7 one (mmseg's V1c)
            self.stem = nn.Sequential()
            for in_channels, out_channels, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
                self.stem.append(nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False))
                self.stem.append(nn.BatchNorm2d(out_channels))
                self.stem.append(nn.ReLU())
        else:
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        expansion = Bottleneck.expansion if plan.bottleneck else BasicBlock.expansion
        self.channels = tuple(64 * 2**stage * expansion for stage in range(4))
        for stage in range(4):
            self.add_module(f"layer{stage + 1}", nn.Sequential(*self._stage(stage)))

    def _stage(self, stage: int) -> Iterator[nn.Module]:
        planes, out_channels = 64 * 2**stage, self.channels[stage]
        in_channels = self.channels[stage - 1] if stage else 64
        for index in range(self.plan.blocks[stage]):
            stride, dilation = 1, self.dilations[stage]
            if index == 0:  # has half the dilation (mmseg's contract_dilation)
                stride, dilation = self.strides[stage], max(1, dilation // 2)
            downsample = None
            if stride != 1 or in_channels != out_channels:
                downsample = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
                )
            if self.plan.bottleneck:
                groups = self.plan.groups
                form = {"dilation": dilation, "groups": groups, "width": planes * self.plan.group_width // 64 * groups}
                yield Bottleneck(in_channels, planes, stride, downsample, **form)
            else:
                yield BasicBlock(in_channels, planes, stride, downsample, dilation=dilation)
            in_channels = out_channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four feature maps, strides 4 to the output stride."""
        x = self.stem(images) if self.plan.deep_stem else self.relu(self.bn1(self.conv1(images)))
        x = self.maxpool(x)
        features = []
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            features.append(x)
        return tuple(features)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; the shortcut joins equal shapes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, dilation: int, expand: int) -> None:
        super().__init__()
        self.with_shortcut = stride == 1 and in_channels == out_channels
        width = in_channels * expand
        layers = [] if expand == 1 else [ConvBnAct(in_channels, width, 1, act=nn.ReLU6())]
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
    """MobileNetV2 of width 1 whose outputs are its layers 2, 3, 5 and 7 (mmseg's out_indices 1, 2, 4, 6)."""

    # Per layer: expansion, channels, blocks.
    _LAYERS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    _OUTPUTS = (1, 2, 4, 6)

    def __init__(self, output_stride: int = 32) -> None:
        super().__init__()
        self.channels = tuple(self._LAYERS[index][1] for index in self._OUTPUTS)
        self.conv1 = ConvBnAct(3, 32, 3, stride=2, act=nn.ReLU6())
        in_channels = 32
        firsts = zip(*MOBILENET_LAYERS[output_stride], strict=True)
        for index, ((expand, out_channels, blocks), first) in enumerate(zip(self._LAYERS, firsts, strict=True)):
            layer = nn.Sequential()
            for block in range(blocks):
                stride, dilation = first if block == 0 else (1, 1)
                layer.append(
                    InvertedResidual(in_channels, out_channels, stride=stride, dilation=dilation, expand=expand)
                )
                in_channels = out_channels
            self.add_module(f"layer{index + 1}", layer)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four feature maps, strides 4 to the output stride."""
        x = self.conv1(images)
        features = []
        for index in range(len(self._LAYERS)):
            x = self.get_submodule(f"layer{index + 1}")(x)
            if index in self._OUTPUTS:
                features.append(x)
        return tuple(features)


RESNETS = {
    "resnetv1c18": ResNetPlan(blocks=(2, 2, 2, 2), bottleneck=False, deep_stem=True),
    "resnetv1c34": ResNetPlan(blocks=(3, 4, 6, 3), bottleneck=False, deep_stem=True),
    "resnetv1c50": ResNetPlan(blocks=(3, 4, 6, 3), bottleneck=True, deep_stem=True),
    "resnetv1c101": ResNetPlan(blocks=(3, 4, 23, 3), bottleneck=True, deep_stem=True),
    "resnet50": ResNetPlan(blocks=(3, 4, 6, 3), bottleneck=True, deep_stem=False),
    "resnet101": ResNetPlan(blocks=(3, 4, 23, 3), bottleneck=True, deep_stem=False),
    "resnext101_64x4d": ResNetPlan(blocks=(3, 4, 23, 3), bottleneck=True, deep_stem=False, groups=64, group_width=4),
}

ENCODERS: dict[str, Callable[[int], ResNet | MobileNetV2]] = {
    **{name: partial(ResNet, plan) for name, plan in RESNETS.items()},
    "mobilenetv2": MobileNetV2,
}
