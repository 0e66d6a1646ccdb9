"""What a trained network computes between its stages, as the measure of every other form of it. torch only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nrd_trt.data.preprocessing import normalise
from nrd_trt.decode.reference import patch_decode, upsample
from nrd_trt.model.heads import NrdHead
from nrd_trt.model.network import Segmentor


@torch.inference_mode()
def predict_stages(model: Segmentor, image: np.ndarray) -> dict[str, np.ndarray]:
    """Run one image through the network and keep what it computes at the end of each stage.

    Guidance is normalised by ``cat_norm``, which exported files fold into the convolution before it.

    Args:
        model: In evaluation mode.
        image: ``(h, w, 3) uint8`` RGB, sides multiples of 32.

    Returns:
        float32 arrays without the batch axis: ``preprocessing (3, h, w)``; ``c1`` and ``c4``, the encoder's first and
        last feature; of an NRD network ``theta``, ``guidance`` and the two ``(f,)`` tables ``x_table`` and ``y_table``;
        ``logits``; and ``mask (h, w) uint8``.

    Raises:
        ShapeError: The size is not a multiple of 32.
    """
    pixels = normalise(image[None], model.info)
    images = torch.from_numpy(pixels).to(next(model.parameters()).device)
    features = model.features(images)
    head, found = model.decode_head, {"c1": features[0], "c4": features[-1]}
    if isinstance(head, NrdHead):
        theta, guidance, x_table, y_table = head.decode_inputs(features)
        logits = patch_decode(theta, guidance, x_table, y_table, model.config.decode)
        found |= {"theta": theta, "guidance": guidance, "x_table": x_table[None], "y_table": y_table[None]}
    else:
        logits = head(features)
    mask = upsample(logits, model.config.upsample).argmax(dim=1).to(torch.uint8)
    found |= {"logits": logits, "mask": mask}
    return {"preprocessing": pixels[0], **{name: tensor[0].cpu().numpy() for name, tensor in found.items()}}


@torch.inference_mode()
def predict_stages_from(model: Segmentor, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute every stage from what another form of the network has before it, so that a fault shows where it is.

    The encoder starts from ``preprocessing``, theta and guidance from ``c4`` and ``c1``, logits from those, and the
    mask from ``logits``.

    Args:
        model: In evaluation mode.
        found: Stages of the other form, as `predict_stages` names and shapes them; what starts from one that is absent
            or has values that are not finite is left out.

    Returns:
        The stages from ``c1`` on, as `predict_stages` does.
    """
    device, head = next(model.parameters()).device, model.decode_head
    given = {
        name: torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)[None]
        for name, array in found.items()
        if name != "mask" and np.isfinite(array).all()
    }
    stages: dict[str, Tensor] = {}
    if "preprocessing" in given:
        features = model.features(given["preprocessing"])
        stages |= {"c1": features[0], "c4": features[-1]}
    if isinstance(head, NrdHead):
        if given.keys() >= {"c1", "c4"}:
            stages["theta"], stages["guidance"], x_table, y_table = head.decode_inputs((given["c1"], given["c4"]))
            if given.keys() >= {"theta", "guidance"}:
                inputs = given["theta"], given["guidance"], x_table, y_table
                stages["logits"] = patch_decode(*inputs, model.config.decode)
    elif "c4" in given and ("c1" in given or "c1" not in found):  # a head that needs no C1 may have none
        stages["logits"] = head((given.get("c1", given["c4"]), given["c4"]))
    if "logits" in given:
        stages["mask"] = upsample(given["logits"], model.config.upsample).argmax(dim=1).to(torch.uint8)
    return {name: tensor[0].cpu().numpy() for name, tensor in stages.items()}


@torch.inference_mode()
def excitation(model: Segmentor, image: np.ndarray) -> float | None:
    """Return how much an image moves the network, beside the images that it was trained on.

    Batch norms know how much their inputs varied in training. What they vary by over this image is a share of that, and
    the median of these shares is returned: about 1 for an image like those of the training.

    Args:
        model: In evaluation mode.
        image: ``(h, w, 3) uint8`` RGB, sides multiples of 32.

    Returns:
        The share, a ratio of standard deviations; None for a network without batch norms.
    """
    shares: list[float] = []

    def compare(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            shares.append(float((inputs[0].var((2, 3), correction=0).sum() / norm.running_var.sum()).sqrt()))

    hooks = [module.register_forward_pre_hook(compare) for module in model.modules()]
    try:
        model(torch.from_numpy(normalise(image[None], model.info)).to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return float(np.median(shares)) if shares else None


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
