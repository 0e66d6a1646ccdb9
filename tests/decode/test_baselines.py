"""The forms that the kernels are compared with draw the same masks; otherwise a comparison means nothing."""

from __future__ import annotations

import pytest
import torch

from nrd_trt.decode.baselines import BASELINES, authors_logits
from nrd_trt.decode.bench import random_inputs
from nrd_trt.decode.reference import patch_decode, upsample
from nrd_trt.specs import DecodeSpec

SPECS = [
    DecodeSpec(num_classes=19),
    DecodeSpec(num_classes=5, hidden=8, guidance_channels=32, patch=4, upsample=8),
    DecodeSpec(num_classes=150, hidden=4, guidance_channels=1, patch=16, upsample=2),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"K{s.num_classes}f{s.patch}")
def test_authors_form_equals_the_reference(spec: DecodeSpec) -> None:
    inputs = [tensor.double() for tensor in random_inputs(spec, 2, 2, 3, device="cpu")]
    expected = patch_decode(*inputs, spec)
    assert (authors_logits(*inputs, spec) - expected).abs().max() <= 1e-12 * expected.abs().max()
    swapped = inputs[0], inputs[1], inputs[3] + 1, inputs[2]
    assert (authors_logits(*swapped, spec) - expected).abs().max() > 0.1  # the control: x is not y


@pytest.mark.parametrize("name", BASELINES)
def test_every_form_draws_the_reference_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
    spec = SPECS[0]
    theta, guidance, *tables = random_inputs(spec, 2, 2, 3, device="cpu")
    mask = BASELINES[name](*tables, spec)(theta, guidance)
    wanted = upsample(patch_decode(theta, guidance, *tables, spec), 4).argmax(dim=1)
    assert (mask == wanted).float().mean() > 0.9999
    assert len(wanted.unique()) > 10


def test_random_inputs_are_the_same_for_one_seed() -> None:
    first, again, other = (random_inputs(SPECS[0], 1, 2, 2, seed=seed, device="cpu") for seed in (3, 3, 4))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[2].tolist() == [k / 8 for k in range(8)]
