"""The loss: what is counted, at which size, with which weights, and what stays frozen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nrd_trt.training.objective import Objective
from tests.helpers import keyed_model
from tests.training.conftest import tiny

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(2, 3, 64, 64, generator=GENERATOR)
LABELS = torch.randint(0, 11, (2, 64, 64), generator=GENERATOR).to(torch.uint8)
LABELS[:, :8] = 255


def objective(class_weights: Tensor | None = None, **changes: Any) -> Objective:
    """Build it in evaluation mode, with weights whose logits are not flat."""
    recipe = tiny(**changes)
    segmentor = keyed_model(**vars(recipe.config)).requires_grad_(True)
    return Objective(segmentor, recipe, class_weights).eval()


def encoder_gradient(made: Objective) -> Tensor:
    loss, _ = made(IMAGES, LABELS)
    loss.backward()
    gradient = made.segmentor.backbone.layer1[0].conv[0].conv.weight.grad
    assert gradient is not None
    return gradient


def test_loss_is_the_cross_entropy_of_enlarged_logits() -> None:
    made = objective(aux_weight=0.0)
    logits = functional.interpolate(made.segmentor(IMAGES), (64, 64), mode="bilinear", align_corners=False)
    counted = LABELS != 255
    chances = logits.log_softmax(1).gather(1, LABELS.long().clamp(max=10)[:, None])[:, 0]
    loss, own = made(IMAGES, LABELS)
    assert chances[counted].std() > 0.05, "flat logits would hide everything"
    assert loss.item() == pytest.approx(-chances[counted].mean().item(), rel=1e-5)
    assert own.item() == loss.item() and not own.requires_grad


def test_auxiliary_head_adds_its_share_and_trains_the_encoder() -> None:
    with_head, without = objective(aux_weight=0.4), objective(aux_weight=0.0)
    without.segmentor.load_state_dict(with_head.segmentor.state_dict())
    loss, own = with_head(IMAGES, LABELS)
    auxiliary = with_head.auxiliary_head(with_head.segmentor.backbone(IMAGES)[2])
    assert auxiliary.shape == (2, 11, 4, 4), "the third stage, stride 16"
    assert with_head.auxiliary_head.conv_seg.weight.shape == (11, 8, 1, 1)
    assert not [name for name in without.state_dict() if name.startswith("auxiliary")]
    enlarged = functional.interpolate(auxiliary, (64, 64), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(enlarged, LABELS.long(), ignore_index=255)
    assert (loss - own).item() == pytest.approx(0.4 * expected.item(), rel=1e-4)
    assert own.item() == pytest.approx(without(IMAGES, LABELS)[1].item(), rel=1e-6)
    difference = encoder_gradient(with_head) - encoder_gradient(without)
    assert difference.abs().max() > 1e-3 * encoder_gradient(without).abs().max()


def test_class_weights_count_pixels_of_rare_classes_more() -> None:
    weights = torch.ones(11)
    weights[3] = 3.0
    plain, weighted = objective(aux_weight=0.0), objective(weights, aux_weight=0.0)
    assert "class_weights" not in weighted.state_dict(), "a resumed run counts them anew"
    enlarged = functional.interpolate(plain.segmentor(IMAGES), (64, 64), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(enlarged, LABELS.long(), weights, ignore_index=255).item()
    assert weighted(IMAGES, LABELS)[0].item() == pytest.approx(expected, rel=1e-6)
    assert weighted(IMAGES, LABELS)[0].item() != plain(IMAGES, LABELS)[0].item()


def test_a_batch_of_ignored_pixels_teaches_nothing_and_breaks_nothing() -> None:
    made = objective().train()
    loss, _ = made(IMAGES, torch.full_like(LABELS, 255))
    loss.backward()
    assert loss.item() == 0
    gradients = [parameter.grad for parameter in made.parameters() if parameter.requires_grad]
    # Zeros and not None: in a run of several processes every one must have a gradient to share.
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_loss_is_in_float32_under_autocast() -> None:
    made = objective()
    with torch.autocast("cpu", torch.bfloat16):
        loss, own = made(IMAGES, LABELS)
    assert loss.dtype == own.dtype == torch.float32
    exact = made(IMAGES, LABELS)[0].item()
    # Logits of bfloat16 have 8 bits, a relative 0.4 %; the mean over thousands of pixels is much closer than that.
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert loss.item() != exact


ENCODERS = {
    "mobilenetv2": ("conv1", "layer1", "layer2"),
    "resnetv1c18": ("stem", "layer1", "layer2"),
    "resnet50": ("conv1", "bn1", "layer1", "layer2"),
}


@pytest.mark.parametrize(
    ("encoder", "head", "stages"),
    [*((encoder, "nrd", 2) for encoder in ENCODERS), ("mobilenetv2", "nrd", 0), ("mobilenetv2", "bilinear", 0)],
)
def test_frozen_stages_keep_weights_and_statistics(encoder: str, head: Any, stages: int) -> None:
    """NRD does not use mmseg's classifier; a baseline trains it."""
    made = objective(config=replace(tiny().config, encoder=encoder, head=head), frozen_stages=stages).train()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made(IMAGES, LABELS)[0].backward()
    frozen = tuple(f"segmentor.backbone.{name}." for name in ENCODERS[encoder] if stages)
    for name, parameter in made.named_parameters():
        unused = head == "nrd" and "decode_head.conv_seg" in name
        assert parameter.requires_grad != (name.startswith(frozen) or unused), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    changed = {name for name, tensor in made.state_dict().items() if not tensor.equal(before[name])}
    statistics = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert changed & statistics == {name for name in statistics if not name.startswith(frozen)}


def test_frozen_statistics_stay_after_the_change_to_synchronised_ones() -> None:
    """On several GPUs: SyncBatchNorm replaces the stem's batch norm, which is a child of the encoder itself."""
    made = objective(config=replace(tiny().config, encoder="resnet50"), frozen_stages=1)
    made = nn.SyncBatchNorm.convert_sync_batchnorm(made).train()
    norms = {name: child for name, child in made.named_modules() if isinstance(child, nn.SyncBatchNorm)}
    frozen = ("segmentor.backbone.bn1", "segmentor.backbone.layer1.")
    assert {name for name, norm in norms.items() if not norm.training} == {n for n in norms if n.startswith(frozen)}
    assert not norms["segmentor.backbone.bn1"].weight.requires_grad
