"""What training minimises: the loss of the network and of its auxiliary head. torch only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from nrd_trt.data.folders import IGNORE
from nrd_trt.model.encoders import ConvBnAct
from nrd_trt.model.network import Segmentor
from nrd_trt.training.distillation import Guide, features_distance, logits_distance, make_adapter
from nrd_trt.training.recipes import Recipe

_AUX_STAGE = 2  # stride 16, as released


class Objective(nn.Module):
    """Network and auxiliary head with their losses; one module, so that gradients of both are shared by all ranks."""

    class_weights: Tensor | None

    def __init__(
        self,
        segmentor: Segmentor,
        recipe: Recipe,
        class_weights: Tensor | None,
        teacher_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.segmentor = segmentor
        self.aux_weight = recipe.aux_weight
        self.frozen_stages = recipe.frozen_stages
        if recipe.aux_weight:  # mmseg's FCNHead with one convolution, which is dropped after training
            in_channels, width = segmentor.backbone.channels[_AUX_STAGE], recipe.aux_channels
            convs = nn.Sequential(ConvBnAct(in_channels, width, 3, act=nn.ReLU()))
            conv_seg = nn.Conv2d(width, recipe.config.num_classes, 1)
            self.auxiliary_head = nn.Sequential(OrderedDict(convs=convs, conv_seg=conv_seg))
        if teacher_channels is not None:
            self.adapter = make_adapter(segmentor.backbone.channels[-1], teacher_channels)
        self.register_buffer("class_weights", class_weights, persistent=False)
        for module in (*self._frozen(), *segmentor.unused_modules()):
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Objective:
        """Switch to training; frozen stages keep their statistics."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> Iterator[nn.Module]:
        """The encoder's stem and first stages, looked up anew: SyncBatchNorm takes the place of a stem's batch norm."""
        names = {"stem", "conv1", "bn1", *(f"layer{stage + 1}" for stage in range(self.frozen_stages))}
        for name, module in self.segmentor.backbone.named_children() if self.frozen_stages else ():
            if name in names:
                yield module

    def forward(self, images: Tensor, labels: Tensor, guide: Guide | None = None) -> tuple[Tensor, Tensor]:
        """Return the loss to minimise and the share of it that is the network's own, both scalar float32.

        Args:
            images: ``(B, 3, H, W) float32``, normalised.
            labels: ``(B, H, W) uint8``, 255 is ignored.
            guide: What the teacher tells of the images, where there is one.
        """
        features = self.segmentor.backbone(images)
        logits = self.segmentor.decode_head(features)
        own = self._cross_entropy(logits, labels)
        loss = own
        if self.aux_weight:
            loss = loss + self.aux_weight * self._cross_entropy(self.auxiliary_head(features[_AUX_STAGE]), labels)
        if guide is not None:
            adapted = self.adapter(features[-1])
            with torch.autocast(logits.device.type, enabled=False):
                temperature = self.recipe.teacher_temperature
                loss = loss + self.recipe.teacher_logits * logits_distance(logits, guide, labels, temperature)
                loss = loss + self.recipe.teacher_features * features_distance(adapted, guide)
        return loss, own.detach()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over all counted pixels, of logits enlarged to the labels' size."""
        with torch.autocast(logits.device.type, enabled=False):
            size_hw = [labels.shape[1], labels.shape[2]]
            logits = functional.interpolate(logits.float(), size=size_hw, mode="bilinear", align_corners=False)
            if not (labels != IGNORE).any():
                return logits.sum() * 0  # the mean over no pixel would be NaN
            return functional.cross_entropy(logits, labels.long(), self.class_weights, ignore_index=IGNORE)
