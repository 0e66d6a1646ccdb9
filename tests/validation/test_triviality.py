"""Networks that draw nothing: what tells them from trained ones, and where it is said."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nrd_trt.cli.common import headline
from nrd_trt.cli.validate import _lines
from nrd_trt.data.samples import Sample
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.network import Segmentor
from nrd_trt.validation.compare import Comparator, Comparison
from nrd_trt.validation.evaluate import evaluate
from nrd_trt.validation.references import torch_reference
from nrd_trt.validation.report import render_report
from nrd_trt.validation.triviality import Theta, trivial
from nrd_trt.validation.validate import validate
from tests.artefacts import bundle, checkpoint, scenes, trained_model

SIZE_HW = (96, 128)


def compared(model: Segmentor) -> Comparison:
    """Compare a network's masks with themselves, which is perfect agreement, and with labels."""
    comparator = Comparator(model.info.class_names)
    with torch_reference(model) as predict:
        for seed in range(2):
            scene = street_scene(seed, SIZE_HW)
            sample = Sample(image=scene.image, restore=np.asarray, label=scene.label)
            comparator.add(found := predict(sample), found.mask, sample)
    return comparator.result()


def changed(*, weight: float = 1.0, bias: float = 1.0, raised: float = 0.0) -> Segmentor:
    """The trained network with the layer that predicts theta scaled, and one class raised."""
    model = copy.deepcopy(trained_model())
    last = model.decode_head.classifier.classifier[1]
    with torch.no_grad():
        last.weight *= weight
        last.bias *= bias
        last.bias[-1] += raised
    return model


def untrained() -> Segmentor:
    torch.manual_seed(0)
    return Segmentor(trained_model().config, trained_model().info).eval().requires_grad_(False)


def test_a_trained_network_gives_no_warning() -> None:
    assert compared(trained_model()).warnings == ()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (untrained, ["drawn at random", "near zero"]),
        (lambda: changed(weight=0.0), ["on 100.0% of the pixels", "drawn at random", "the same weights"]),
        (lambda: changed(raised=100.0), ["on 100.0% of the pixels", "drawn at random", "the same weights"]),
        (lambda: changed(weight=1e-3, bias=1e-3), ["drawn at random", "near zero"]),
    ],
)
def test_what_draws_nothing_is_told(made: object, said: list[str]) -> None:
    got = compared(made())  # type: ignore[operator]
    assert got.pixel_agreement == 1.0
    assert len(got.warnings) == len(said)
    assert all(part in line for part, line in zip(said, got.warnings, strict=True))


def test_the_limits_themselves() -> None:
    assert not [*trivial({"a": 94, "b": 6}, miou=0.31, chance=0.1, theta=Theta(size=0.011, spread=0.11))]
    assert len([*trivial({"a": 95, "b": 5}, miou=0.27, chance=0.1, theta=Theta(size=0.011, spread=0.09))]) == 3
    assert not [*trivial({}, miou=None, chance=None)]
    assert not [*trivial({"a": 9, "b": 1}, miou=0.947, chance=0.435)], "two classes leave chance much"
    assert Theta.of(np.zeros((3, 2, 2))) == Theta(size=0.0, spread=0.0)
    theta = np.stack([np.full((2, 2), 3.0), np.array([[1.0, -1.0], [1.0, -1.0]])])
    assert Theta.of(theta) == Theta(size=pytest.approx(5**0.5), spread=pytest.approx((0.5 / 5) ** 0.5))


def test_it_leads_text_json_and_report(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 2, labels=True, size_hw=SIZE_HW)
    save_checkpoint(changed(raised=100.0), tmp_path / "flat.safetensors")
    evaluated = evaluate(tmp_path / "flat.safetensors", data, size=(64, 96), progress=False)
    assert len(evaluated.to_dict()["warnings"]) == 2
    leads = headline(evaluated.warnings)
    told = ("the network draws Bicyclist", "the network's mIoU")
    starts = [f"WARNING: agreement proves nothing about an engine where {sign}" for sign in told]
    assert all(line.startswith(start) for line, start in zip(leads, starts, strict=True))
    found = replace(validate(bundle("fp32"), threads=1, progress=False), warnings=evaluated.warnings)
    assert (found.to_dict()["warnings"], found.passed) == ([*evaluated.warnings], True)
    assert [*_lines(found)][:2] == leads
    page = render_report(read_bundle(bundle("fp32")), found)
    assert 0 < page.index("What speaks against these figures") < page.index(">PASSED<")
    sound = evaluate(checkpoint(), data, size=(64, 96), progress=False)
    assert sound.warnings == ()
