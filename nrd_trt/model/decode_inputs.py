"""What a trained network hands to its decode, for measurements of the decode alone. torch only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nrd_trt.data.preprocessing import normalise
from nrd_trt.model.network import Segmentor


@torch.inference_mode()
def predict_decode_inputs(
    model: Segmentor, images: np.ndarray, *, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run an NRD network up to its decode, image by image.

    Args:
        model: In evaluation mode; moved to `device`.
        images: ``(B, H, W, 3) uint8`` RGB, H and W multiples of 32.
        device: Where to run.

    Returns:
        Theta ``(B, P, H/32, W/32)``, normalised guidance ``(B, m, H/s, W/s)`` and the two ``(f,)`` tables, float32 on
        `device`.

    Raises:
        ConfigError: The network has no NRD head.
        ShapeError: The size is not a multiple of 32.
    """
    model.to(device)
    feeds = (torch.from_numpy(normalise(image[None], model.info)).to(device) for image in images)
    theta, guidance, x_tables, y_tables = zip(*map(model.decode_inputs, feeds), strict=True)
    return torch.cat(theta), torch.cat(guidance), x_tables[0], y_tables[0]
