"""The network: encoder and head under mmseg's parameter names. torch only; no export or file code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nrd_trt.decode.reference import upsample
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.model.config import NetworkConfig
from nrd_trt.model.encoders import ENCODERS
from nrd_trt.model.heads import BilinearHead, DeepLabV3PlusHead, NrdHead
from nrd_trt.specs import CheckpointOptions, Head, ModelInfo, check_size

AnyHead = NrdHead | DeepLabV3PlusHead | BilinearHead
_HEADS: dict[Head, Callable[[NetworkConfig, tuple[int, ...]], AnyHead]] = {
    "nrd": NrdHead,
    "nrd_no_aspp": NrdHead,
    "deeplabv3plus": DeepLabV3PlusHead,
    "bilinear": BilinearHead,
    "deeplabv3": BilinearHead,
}


class Segmentor(nn.Module):
    """Encoder and head. Parameter names are mmseg's: ``backbone.*`` and ``decode_head.*``.

    Attributes:
        config: What fixes the network besides its weights.
        info: Classes, colours and preprocessing.
        options: What was said of its checkpoint beyond the file; None where nothing was.
    """

    def __init__(self, config: NetworkConfig, info: ModelInfo, options: CheckpointOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.info = info
        self.options = options
        windows = {"fix_window_mask": True} if config.fix_window_mask else {}
        self.backbone = ENCODERS[config.encoder](config.output_stride, config.widths, **windows)
        self.decode_head: AnyHead = _HEADS[config.head](config, self.backbone.channels)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Args:
            images: ``(B, 3, H, W)`` float32, normalised, H and W multiples of 32.

        Returns:
            Logits ``(B, K, H/s, W/s)`` float32, s = ``config.upsample``.

        Raises:
            ShapeError: The size is not a multiple of 32; the message names the nearest one.
        """
        return self.decode_head(self.features(images))  # type: ignore[no-any-return]

    def decode_inputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute what the per-patch decode of an NRD network takes.

        Args:
            images: As for a call.

        Returns:
            Theta ``(B, P, H/32, W/32)``, normalised guidance ``(B, m, H/s, W/s)`` and two ``(f,)`` tables, of the
            columns' and of the rows' coordinates.

        Raises:
            ConfigError: The network has another head.
            ShapeError: As for a call.
        """
        if not isinstance(self.decode_head, NrdHead):
            raise ConfigError(f"head {self.config.head!r}: expected an NRD head, the others decode no patches.")
        return self.decode_head.decode_inputs(self.features(images))

    def unused_modules(self) -> tuple[nn.Module, ...]:
        """Return the modules that no forward pass uses."""
        return (self.decode_head.conv_seg,) if self.config.is_nrd else ()

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Return class indices ``(B, H, W)`` int64 of ``(B, 3, H, W)`` float32 normalised images.

        Logits are enlarged bilinearly to H x W before the argmax; ties go to the lowest index.
        """
        return upsample(self(images), self.config.upsample).argmax(dim=1)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the encoder's feature maps, strides 4 to the output stride; images as for a call."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images: expected (B, 3, H, W), got {tuple(images.shape)}.")
        check_size((images.shape[2], images.shape[3]), what="images ")
        return self.backbone(images)  # type: ignore[no-any-return]


def random_network(config: NetworkConfig, info: ModelInfo, *, seed: int = 0) -> Segmentor:
    """Return a network with random weights: it takes as long as a trained one, and its masks mean nothing."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = Segmentor(config, info)
        if isinstance(model.decode_head, NrdHead):
            # The authors' initialisation of the controller gives logits near zero, where every pixel is a tie.
            for parameter in model.decode_head.get_submodule("classifier.classifier.1").parameters():
                nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)
