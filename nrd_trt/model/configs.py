"""The configurations that checkpoints are compared with: the released ones and those of the zoo. torch only on use."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nrd_trt.data.classes import CAMVID_CLASSES, CAMVID_PALETTE
from nrd_trt.model.config import NetworkConfig
from nrd_trt.model.network import Segmentor
from nrd_trt.specs import ModelInfo

KNOWN_CONFIGS: dict[str, NetworkConfig] = {
    "cityscapes_r50": NetworkConfig(encoder="resnetv1c50", num_classes=19),
    "cityscapes_r101": NetworkConfig(encoder="resnetv1c101", num_classes=19),
    "ade20k_r101": NetworkConfig(encoder="resnetv1c101", num_classes=150),
    "ade20k_x101": NetworkConfig(encoder="resnext101_64x4d", num_classes=150),
    "pascal_context_r101": NetworkConfig(encoder="resnetv1c101", num_classes=60),
    "pascal_context_59_r101": NetworkConfig(encoder="resnetv1c101", num_classes=59),
    "camvid_r18": NetworkConfig(encoder="resnetv1c18", num_classes=11, channels=128, controller_channels=128),
    "camvid_mobilenetv2": NetworkConfig(encoder="mobilenetv2", num_classes=11, channels=128, controller_channels=128),
}

CAMVID_INFO = ModelInfo(class_names=CAMVID_CLASSES, palette=CAMVID_PALETTE, ignore_index=11, size_hw=(352, 480))


def nearest_config(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, float]:
    """Return the known configuration whose parameters resemble `shapes` most.

    Args:
        shapes: Parameter names and shapes of a checkpoint.

    Returns:
        Its name, and the share in 0-1 of names and shapes that the two have in common.
    """
    given = set(shapes.items())

    def similarity(name: str) -> float:
        known = set(expected_shapes(KNOWN_CONFIGS[name]).items())
        return len(given & known) / len(given | known)

    best = max(KNOWN_CONFIGS, key=similarity)
    return best, similarity(best)


def expected_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters of a configuration, without allocating them."""
    names = tuple(f"class_{index}" for index in range(config.num_classes))
    info = ModelInfo(class_names=names, palette=((0, 0, 0),) * config.num_classes)
    with torch.device("meta"):
        model = Segmentor(config, info)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
