"""Distillation: what a trained network tells of a batch, and how far its student is from that. torch only."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nrd_trt.data.folders import IGNORE
from nrd_trt.errors import ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.model import load_model
from nrd_trt.model.network import Segmentor
from nrd_trt.specs import ModelInfo

_STRIDE = 4
"""Logits are compared at a quarter of the image's height and width."""


class Guide(NamedTuple):
    """What a teacher tells of a batch: logits ``(B, K, H/s, W/s)`` and its last feature map ``(B, C, H/t, W/t)``."""

    logits: Tensor
    features: Tensor


class Teacher:
    """A trained network, in evaluation mode, that draws the batches of its student.

    Attributes:
        network: The network; its weights never change.
        sha256: Hash of its checkpoint.
        channels: Channels of its last feature map.
    """

    def __init__(self, checkpoint: Path, student: ModelInfo, device: torch.device) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: The teacher's.
            student: Classes and normalisation of the student, whose batches the teacher is given.
            device: Where both are.

        Raises:
            CheckpointError: The checkpoint is unusable.
            ConfigError: It has other classes than the student.
        """
        network: Segmentor = load_model(checkpoint).requires_grad_(False)
        _check_classes(checkpoint, network.info, student)
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sha256 = sha256_file(checkpoint)
        self.channels = network.backbone.channels[-1]
        self._scale, self._offset = (value.to(device) for value in _renormalisation(student, network.info))
        self._flipped = student.channel_order != network.info.channel_order

    @torch.no_grad()
    def guide(self, images: Tensor) -> Guide:
        """Draw a batch.

        Args:
            images: ``(B, 3, H, W) float32``, normalised as the student's.
        """
        features = self.network.features((images.flip(1) if self._flipped else images) * self._scale + self._offset)
        return Guide(logits=self.network.decode_head(features).float(), features=features[-1].float())


def _check_classes(checkpoint: Path, teacher: ModelInfo, student: ModelInfo) -> None:
    theirs, ours = teacher.class_names, student.class_names
    if theirs != ours:
        differ = next((f", {a!r} for {b!r}" for a, b in zip(theirs, ours, strict=False) if a != b), "")
        raise ConfigError(
            f"teacher={checkpoint}: expected the student's {len(ours)} classes in their order, got "
            f"{len(theirs)}{differ}; take a teacher of the same classes."
        )


def _renormalisation(student: ModelInfo, teacher: ModelInfo) -> tuple[Tensor, Tensor]:
    """Return what brings images normalised for the student to the teacher's normalisation: factors and summands."""
    std_s, mean_s, std_t, mean_t = (
        torch.tensor(values).view(3, 1, 1) for values in (student.std, student.mean, teacher.std, teacher.mean)
    )
    if student.channel_order != teacher.channel_order:  # given in each one's own order
        std_s, mean_s = std_s.flip(0), mean_s.flip(0)
    return std_s / std_t, (mean_s - mean_t) / std_t


def logits_distance(student: Tensor, guide: Guide, labels: Tensor, temperature: float) -> Tensor:
    """Return the mean Kullback-Leibler divergence of the student's classes from the teacher's, times T squared.

    G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: the square keeps the gradient's size.

    Args:
        student: Logits ``(B, K, H/s, W/s)``.
        guide: The teacher's.
        labels: ``(B, H, W) uint8``; pixels of 255 are not counted.
        temperature: T, by which logits are divided.
    """
    size_hw = [labels.shape[1] // _STRIDE, labels.shape[2] // _STRIDE]
    ours, theirs = (
        functional.interpolate(logits.float(), size=size_hw, mode="bilinear", align_corners=False) / temperature
        for logits in (student, guide.logits)
    )
    counted = functional.interpolate(labels[:, None].float(), size=size_hw, mode="nearest")[:, 0] != IGNORE
    divergence = functional.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction="none", log_target=True).sum(1)
    return (divergence * counted).sum() / counted.sum().clamp(min=1) * temperature**2


def features_distance(adapted: Tensor, guide: Guide) -> Tensor:
    """Return 1 less the mean cosine between features of the student and the teacher, which no scale changes.

    Args:
        adapted: The student's last feature map, with the teacher's channels.
        guide: The teacher's, enlarged or shrunk to the student's where their strides differ.
    """
    size_hw = list(adapted.shape[-2:])
    theirs = functional.interpolate(guide.features, size=size_hw, mode="bilinear", align_corners=False)
    return 1 - functional.cosine_similarity(adapted.float(), theirs, dim=1).mean()


def make_adapter(student_channels: int, teacher_channels: int) -> nn.Module:
    """Return the 1x1 convolution that gives the student's features the teacher's channels; dropped after training."""
    return nn.Conv2d(student_channels, teacher_channels, 1)
