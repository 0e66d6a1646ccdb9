"""The configuration of a network, and the known ones: those released, and those of the zoo. torch only on use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nrd_trt.data.classes import CAMVID_CLASSES, CAMVID_PALETTE
from nrd_trt.errors import ConfigError
from nrd_trt.model.encoders import ENCODERS, OUTPUT_STRIDES
from nrd_trt.model.plans import MOBILENETV2, TWINS, WIDEST, Widths, check_widths
from nrd_trt.specs import STRIDE, DecodeSpec, Head, ModelInfo, check_choice

AsppChannels = tuple[int, int, int, int, int]
NRD_HEADS: tuple[Head, ...] = ("nrd", "nrd_no_aspp")
GUIDANCE_STRIDE = 4
"""Stride of the encoder's first stage, from which NRD and DeepLabV3+ take detail."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything that fixes the network besides its weights.

    Attributes:
        encoder: A name in `nrd_trt.model.encoders.ENCODERS`.
        num_classes: K.
        head: ``"nrd"`` (released) or ``"nrd_no_aspp"`` (controller directly on the last stage); or a baseline:
            ``"deeplabv3plus"``, ``"bilinear"`` (the same ASPP, one classifier, bilinear enlargement) or ``"deeplabv3"``
            (dense ASPP, bilinear enlargement).
        channels: Width of ASPP and controller.
        c1_channels: Width of the guidance branch's 3x3 convolution, of DeepLabV3+'s 1x1 one.
        controller_channels: Width of the controller's hidden layer, `channels` over mmseg's channel_reduce_factor.
        hidden: d, width of the per-patch perceptron.
        guidance_channels: m.
        patch: f, side of a patch in pixels of the logits.
        dilations: Dilations of the four ASPP branches.
        output_stride: Stride of the encoder's last stage; below 32 its last stages are dilated instead of strided.
        widths: Channels within the encoder; None for its own.
        fix_window_mask: Whether Twins masks the padding of its windows where the authors' code does not, which is where
            one side of the image is a multiple of 224 and the other is not.
        aspp_channels: Width of each branch of ASPP, image pooling first; None for `channels` in all five.
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
    output_stride: int = STRIDE
    widths: Widths | None = None
    aspp_channels: AsppChannels | None = None
    fix_window_mask: bool = False

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ConfigError(f"encoder {self.encoder!r}: expected one of {', '.join(ENCODERS)}.")
        check_choice("head", self.head, Head)
        if not 2 <= self.num_classes <= 256:
            raise ConfigError(f"num_classes: expected 2 to 256 (the mask is uint8), got {self.num_classes}.")
        if self.output_stride not in OUTPUT_STRIDES:
            strides = ", ".join(map(str, OUTPUT_STRIDES))
            raise ConfigError(f"output stride: expected one of {strides}, got {self.output_stride}.")
        if self.widths is not None:
            check_widths(self.encoder, self.widths)
        if self.fix_window_mask and self.encoder not in TWINS:
            raise ConfigError(
                f"fix_window_mask: expected an encoder with windows ({', '.join(TWINS)}), got {self.encoder}."
            )
        if self.aspp_channels is not None and not all(1 <= width <= WIDEST for width in self.aspp_channels):
            raise ConfigError(f"aspp_channels: expected 1 to {WIDEST} in every branch, got {self.aspp_channels}.")
        if not self.is_nrd:
            return
        if self.output_stride != STRIDE:
            raise ConfigError(
                f"output stride: an NRD head decodes one patch per location of stride {STRIDE}, got "
                f"{self.output_stride}; a dilated encoder takes one of the other heads."
            )
        if self.patch * GUIDANCE_STRIDE != STRIDE:
            raise ConfigError(
                f"patch: expected {STRIDE // GUIDANCE_STRIDE}, as the head's guidance map has stride "
                f"{GUIDANCE_STRIDE}, got {self.patch}; heads that resize the guidance are not supported."
            )

    def with_stride(self, output_stride: int) -> NetworkConfig:
        """Return the same network on an encoder of this stride, ASPP's dilations in proportion (D8: 1, 12, 24, 36)."""
        dilations = tuple(n * self.output_stride // output_stride if n > 1 else n for n in self.dilations)
        return replace(self, output_stride=output_stride, dilations=dilations)  # type: ignore[arg-type]

    @property
    def is_nrd(self) -> bool:
        """Whether the head decodes patches; the others are baselines."""
        return self.head in NRD_HEADS

    @property
    def decode(self) -> DecodeSpec:
        """Constants of the per-patch decode, for NRD heads."""
        return DecodeSpec(
            num_classes=self.num_classes,
            hidden=self.hidden,
            guidance_channels=self.guidance_channels,
            patch=self.patch,
            upsample=self.upsample,
        )

    @property
    def upsample(self) -> int:
        """Factor from the logits' size to the mask's size."""
        if self.is_nrd:
            return STRIDE // self.patch
        return GUIDANCE_STRIDE if self.head == "deeplabv3plus" else self.output_stride


KNOWN_CONFIGS: dict[str, NetworkConfig] = {
    "cityscapes_r50": NetworkConfig(encoder="resnetv1c50", num_classes=19),
    "cityscapes_r101": NetworkConfig(encoder="resnetv1c101", num_classes=19),
    "ade20k_r101": NetworkConfig(encoder="resnetv1c101", num_classes=150),
    "ade20k_x101": NetworkConfig(encoder="resnext101_64x4d", num_classes=150),
    "ade20k_mit_b1": NetworkConfig(encoder="mit_b1", num_classes=150, controller_channels=256),
    "ade20k_mit_b2": NetworkConfig(encoder="mit_b2", num_classes=150),
    "ade20k_mit_b5": NetworkConfig(encoder="mit_b5", num_classes=150),
    "ade20k_twins_l": NetworkConfig(encoder="twins_svt_large", num_classes=150),
    "pascal_context_r101": NetworkConfig(encoder="resnetv1c101", num_classes=60),
    "pascal_context_59_r101": NetworkConfig(encoder="resnetv1c101", num_classes=59),
    "camvid_r18": NetworkConfig(encoder="resnetv1c18", num_classes=11, channels=128, controller_channels=128),
    "camvid_mobilenetv2": NetworkConfig(encoder="mobilenetv2", num_classes=11, channels=128, controller_channels=128),
    "camvid_tiny": NetworkConfig(
        encoder="mobilenetv2",
        num_classes=11,
        channels=48,
        c1_channels=24,
        controller_channels=48,
        widths=MOBILENETV2.widths(16, (8, 16, 24, 40, 64, 96, 192)),
    ),
}

CAMVID_INFO = ModelInfo(class_names=CAMVID_CLASSES, palette=CAMVID_PALETTE, ignore_index=11, size_hw=(352, 480))
