"""The NRD network: encoder and head under mmseg's parameter names. torch only; no export or file code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nrd_trt.decode.reference import patch_decode, upsample
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.model.encoders import ENCODERS
from nrd_trt.model.layers import ConvBnAct, SeparableConv
from nrd_trt.specs import STRIDE, DecodeSpec, ModelInfo, check_size

Head = Literal["nrd", "nrd_no_aspp"]
_GUIDANCE_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class NrdConfig:
    """Everything that fixes the shapes of the network's parameters.

    Attributes:
        encoder: A name in `nrd_trt.model.encoders.ENCODERS`.
        num_classes: K.
        head: ``"nrd"`` (released) or ``"nrd_no_aspp"`` (controller directly on the last stage).
        channels: Width of ASPP and controller.
        c1_channels: Width of the guidance branch's 3x3 convolution (``"nrd"`` only).
        controller_channels: Width of the controller's hidden layer, `channels` over mmseg's channel_reduce_factor.
        hidden: d, width of the per-patch perceptron.
        guidance_channels: m.
        patch: f, side of a patch in pixels of the logits.
        dilations: Of the four ASPP branches (``"nrd"`` only).
    """

    encoder: str
    num_classes: int
    head: Head = "nrd"
    channels: int = 512
    c1_channels: int = 48
    controller_channels: int = 512
    hidden: int = 16
    guidance_channels: int = 16
    patch: int = 8
    dilations: tuple[int, int, int, int] = (1, 3, 6, 9)

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ConfigError(f"encoder {self.encoder!r}: expected one of {', '.join(ENCODERS)}.")
        if self.patch * _GUIDANCE_STRIDE != STRIDE:
            raise ConfigError(
                f"patch: expected {STRIDE // _GUIDANCE_STRIDE}, as the head's guidance map has stride "
                f"{_GUIDANCE_STRIDE}, got {self.patch}; heads that resize the guidance are not supported."
            )

    @property
    def decode(self) -> DecodeSpec:
        """Constants of the per-patch decode."""
        return DecodeSpec(
            num_classes=self.num_classes,
            hidden=self.hidden,
            guidance_channels=self.guidance_channels,
            patch=self.patch,
            upsample=STRIDE // self.patch,
        )


class Controller(nn.Module):
    """Predict the parameters of every patch's perceptron: 3x3 with batch norm, then 1x1."""

    def __init__(self, in_channels: int, width: int, theta_channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, theta_channels, 1)
        # The authors' initialisation: small weights, so that early training starts from flat logits.
        nn.init.xavier_normal_(last.weight)
        last.weight.data /= theta_channels
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.classifier = nn.Sequential(ConvBnAct(in_channels, width, 3, act=nn.ReLU()), last)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, h, w)`` to theta ``(B, P, h, w)``."""
        return self.classifier(x)  # type: ignore[no-any-return]


class NrdHead(nn.Module):
    """The released head (``BilinearPADHead_fast``) and its variant without ASPP.

    ``conv_seg`` is part of every mmseg checkpoint and used by no forward pass.
    """

    def __init__(self, config: NrdConfig, encoder_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        c1, c4 = encoder_channels[0], encoder_channels[-1]
        width, m, spec = config.channels, config.guidance_channels, config.decode
        self.conv_seg = nn.Conv2d(width, config.num_classes, 1)
        if config.head == "nrd":
            self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBnAct(c4, width, 1, act=nn.ReLU()))
            self.aspp_modules = nn.ModuleList([ConvBnAct(c4, width, 1, act=nn.ReLU())])
            self.aspp_modules.extend(SeparableConv(c4, width, dilation=n) for n in config.dilations[1:])
            self.bottleneck = ConvBnAct(5 * width, width, 3, act=nn.ReLU())
            self.c1_bottleneck: nn.Module = nn.Sequential(
                ConvBnAct(c1, config.c1_channels, 3, act=nn.ReLU()), ConvBnAct(config.c1_channels, m, 1, norm=False)
            )
        else:
            self.c1_bottleneck = ConvBnAct(c1, m, 3, norm=False)
        controller_in = width if config.head == "nrd" else c4
        self.classifier = Controller(controller_in, config.controller_channels, spec.theta_channels)
        self.cat_norm = nn.BatchNorm2d(2 + m)
        steps = torch.arange(config.patch) / config.patch  # top-left convention: 0, 1/f, ..., (f-1)/f
        self.register_buffer("steps", steps, persistent=False)

    def theta(self, c4: Tensor) -> Tensor:
        """Map the last stage ``(B, C, h, w)`` to theta ``(B, P, h, w)``."""
        if self.config.head == "nrd":
            pooled = self.image_pool(c4).expand(-1, -1, c4.shape[2], c4.shape[3])
            branches = [pooled, *(branch(c4) for branch in self.aspp_modules)]
            c4 = self.bottleneck(torch.cat(branches, dim=1))
        return self.classifier(c4)  # type: ignore[no-any-return]

    def guidance(self, c1: Tensor) -> Tensor:
        """Map the first stage ``(B, C, f·h, f·w)`` to the guidance map before ``cat_norm``."""
        return self.c1_bottleneck(c1)  # type: ignore[no-any-return]

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Map encoder features to logits ``(B, K, f·h, f·w)``."""
        theta, guidance = self.theta(features[-1]), self.guidance(features[0])
        f = self.config.patch
        batch, _, height, width = guidance.shape
        x = self.steps.repeat(width // f).expand(batch, 1, height, width)  # type: ignore[operator]
        y = self.steps.repeat(height // f)[:, None].expand(batch, 1, height, width)  # type: ignore[operator]
        # Coordinates pass through cat_norm as well; as they repeat with every patch, one patch holds them all.
        inputs = self.cat_norm(torch.cat([x, y, guidance], dim=1))
        return patch_decode(theta, inputs[:, 2:], inputs[0, 0, 0, :f], inputs[0, 1, :f, 0], self.config.decode)


class NrdSegmentor(nn.Module):
    """Encoder and NRD head. Parameter names are mmseg's: ``backbone.*`` and ``decode_head.*``."""

    def __init__(self, config: NrdConfig, info: ModelInfo) -> None:
        super().__init__()
        self.config = config
        self.info = info
        self.backbone = ENCODERS[config.encoder]()
        self.decode_head = NrdHead(config, self.backbone.channels)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Args:
            images: ``(B, 3, H, W)`` float32, normalised, H and W multiples of 32.

        Returns:
            Logits ``(B, K, f·H/32, f·W/32)`` float32.

        Raises:
            ShapeError: The size is not a multiple of 32; the message names the nearest one.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images: expected (B, 3, H, W), got {tuple(images.shape)}.")
        check_size((images.shape[2], images.shape[3]), what="images")
        return self.decode_head(self.backbone(images))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Return class indices ``(B, H, W)`` int64 of ``(B, 3, H, W)`` float32 normalised images.

        Logits are enlarged bilinearly to H x W before the argmax; ties go to the lowest index.
        """
        return upsample(self(images), self.config.decode.upsample).argmax(dim=1)
