"""The decoders that NRD is compared with, under mmseg's parameter names. torch only.

Without mmseg's dropout before the classifier: NRD has none, and the comparison is like with like.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nrd_trt.decode.reference import upsample
from nrd_trt.model.aspp import AsppHead
from nrd_trt.model.config import GUIDANCE_STRIDE, NetworkConfig
from nrd_trt.model.layers import ConvBnAct, SeparableConv


class DeepLabV3PlusHead(AsppHead):
    """mmseg's DepthwiseSeparableASPPHead: context enlarged to the first stage's size, joined with it, refined twice."""

    def __init__(self, config: NetworkConfig, encoder_channels: tuple[int, ...]) -> None:
        super().__init__(config, encoder_channels[-1])
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

    def __init__(self, config: NetworkConfig, encoder_channels: tuple[int, ...]) -> None:
        super().__init__(config, encoder_channels[-1], separable=config.head == "bilinear")

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Map encoder features to logits ``(B, K, H/stride, W/stride)``."""
        return self.conv_seg(self.context(features[-1]))  # type: ignore[no-any-return]
