"""The heads: NRD's, and the decoders that it is compared with, under mmseg's parameter names. torch only.

The baselines have no dropout before the classifier, unlike mmseg's: NRD has none, and the comparison is like with like.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nrd_trt.decode.reference import patch_decode, upsample
from nrd_trt.model.config import GUIDANCE_STRIDE, NetworkConfig
from nrd_trt.model.encoders import ConvBnAct, SeparableConv


class AsppHead(nn.Module):
    """What mmseg's ASPP heads have in common: atrous spatial pyramid pooling and a classifier ``conv_seg``."""

    def __init__(self, config: NetworkConfig, encoder_channels: tuple[int, ...]) -> None:
        super().__init__()
        width, in_channels = config.channels, encoder_channels[-1]
        self.conv_seg = nn.Conv2d(width, config.num_classes, 1)
        if config.head == "nrd_no_aspp":
            return
        pooled, *branches = config.aspp_channels or (width,) * 5
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBnAct(in_channels, pooled, 1, act=nn.ReLU()))
        self.aspp_modules = nn.ModuleList([ConvBnAct(in_channels, branches[0], 1, act=nn.ReLU())])
        for dilation, out_channels in zip(config.dilations[1:], branches[1:], strict=True):
            self.aspp_modules.append(
                ConvBnAct(in_channels, out_channels, 3, dilation=dilation, act=nn.ReLU())
                if config.head == "deeplabv3"
                else SeparableConv(in_channels, out_channels, dilation=dilation)
            )
        self.bottleneck = ConvBnAct(pooled + sum(branches), width, 3, act=nn.ReLU())

    def context(self, c4: Tensor) -> Tensor:
        """Map the last stage ``(B, C, h, w)`` to ``(B, channels, h, w)``."""
        pooled = self.image_pool(c4).expand(-1, -1, c4.shape[2], c4.shape[3])
        branches = [pooled, *(branch(c4) for branch in self.aspp_modules)]
        return self.bottleneck(torch.cat(branches, dim=1))  # type: ignore[no-any-return]


class Controller(nn.Sequential):
    """Predict the parameters of every patch's perceptron: 3x3 with batch norm, then 1x1.

    Map ``(B, in_channels, h, w)`` to theta ``(B, P, h, w)``.
    """

    def __init__(self, in_channels: int, width: int, theta_channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, theta_channels, 1)
        if not last.weight.is_meta:  # for which PyTorch would import its compiler, a second's work, to draw nothing
            # The authors' initialisation: small weights, so that early training starts from flat logits.
            nn.init.xavier_normal_(last.weight)
            last.weight.data /= theta_channels
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.classifier = nn.Sequential(ConvBnAct(in_channels, width, 3, act=nn.ReLU()), last)


class NrdHead(AsppHead):
    """The released head (``BilinearPADHead_fast``) and its variant without ASPP.

    ``conv_seg`` is part of every mmseg checkpoint and used by no forward pass.
    """

    def __init__(self, config: NetworkConfig, encoder_channels: tuple[int, ...]) -> None:
        c1, c4 = encoder_channels[0], encoder_channels[-1]
        width, m, spec = config.channels, config.guidance_channels, config.decode
        super().__init__(config, encoder_channels)
        self.config = config
        self.c1_bottleneck: nn.Module
        if config.head == "nrd":
            self.c1_bottleneck = nn.Sequential(
                ConvBnAct(c1, config.c1_channels, 3, act=nn.ReLU()), ConvBnAct(config.c1_channels, m, 1, norm=False)
            )
        else:
            self.c1_bottleneck = ConvBnAct(c1, m, 3, norm=False)
        controller_in = width if config.head == "nrd" else c4
        self.classifier = Controller(controller_in, config.controller_channels, spec.theta_channels)
        self.cat_norm = nn.BatchNorm2d(2 + m)
        steps = torch.tensor([step / config.patch for step in range(config.patch)])  # top-left: 0, 1/f, ..., (f-1)/f
        self.register_buffer("steps", steps, persistent=False)

    @torch.no_grad()
    def start_as_perceptron(self) -> None:
        """Initialise the controller so that every patch starts with one and the same random perceptron.

        With the authors' initialisation all of theta starts near zero, and as the gradient of each of the perceptron's
        layers is multiplied by the others' weights, training first has to leave that plateau.
        """
        w0, b0, w1, b1, w2, b2 = self.config.decode.sections
        inputs, hidden = 2 + self.config.guidance_channels, self.config.hidden
        layers = [(w0, b0, math.sqrt(2 / inputs)), (w1, b1, math.sqrt(2 / hidden)), (w2, b2, math.sqrt(1 / hidden))]
        starts = [torch.cat([torch.randn(weights) * std, torch.zeros(biases)]) for weights, biases, std in layers]
        self.get_submodule("classifier.classifier.1").get_parameter("bias").copy_(torch.cat(starts))

    def theta(self, c4: Tensor) -> Tensor:
        """Map the last stage ``(B, C, h, w)`` to theta ``(B, P, h, w)``."""
        return self.classifier(self.context(c4) if self.config.head == "nrd" else c4)  # type: ignore[no-any-return]

    def guidance(self, c1: Tensor) -> Tensor:
        """Map the first stage ``(B, C, f·h, f·w)`` to the guidance map before ``cat_norm``."""
        return self.c1_bottleneck(c1)  # type: ignore[no-any-return]

    def decode_inputs(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map encoder features to what `patch_decode` takes: theta, normalised guidance, columns' and rows' table."""
        theta, guidance = self.theta(features[-1]), self.guidance(features[0])
        f = self.config.patch
        batch, _, height, width = guidance.shape
        x = self.steps.repeat(width // f).expand(batch, 1, height, width)  # type: ignore[operator]
        y = self.steps.repeat(height // f)[:, None].expand(batch, 1, height, width)  # type: ignore[operator]
        # Coordinates pass through cat_norm as well; as they repeat with every patch, one patch holds them all.
        inputs = self.cat_norm(torch.cat([x, y, guidance], dim=1))
        return theta, inputs[:, 2:], inputs[0, 0, 0, :f], inputs[0, 1, :f, 0]

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Map encoder features to logits ``(B, K, f·h, f·w)``."""
        return patch_decode(*self.decode_inputs(features), self.config.decode)


class DeepLabV3PlusHead(AsppHead):
    """mmseg's DepthwiseSeparableASPPHead: context enlarged to the first stage's size, joined with it, refined twice."""

    def __init__(self, config: NetworkConfig, encoder_channels: tuple[int, ...]) -> None:
        super().__init__(config, encoder_channels)
        width, c1 = config.channels, config.c1_channels
        self.scale = config.output_stride // GUIDANCE_STRIDE
        self.c1_bottleneck = ConvBnAct(encoder_channels[0], c1, 1, act=nn.ReLU())
        self.sep_bottleneck = nn.Sequential(SeparableConv(width + c1, width), SeparableConv(width, width))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Map encoder features to logits ``(B, K, H/4, W/4)``."""
        context = upsample(self.context(features[-1]), self.scale)
        joined = torch.cat([context, self.c1_bottleneck(features[0])], dim=1)
        return self.conv_seg(self.sep_bottleneck(joined))  # type: ignore[no-any-return]


class BilinearHead(AsppHead):
    """ASPP and a classifier at the encoder's stride; the enlargement to the image's size is all the decoder there is.

    With separable branches this is the plain decoder of the paper's comparison, with dense ones mmseg's DeepLabV3.
    """

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Map encoder features to logits ``(B, K, H/stride, W/stride)``."""
        return self.conv_seg(self.context(features[-1]))  # type: ignore[no-any-return]
