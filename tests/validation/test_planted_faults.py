"""Faults planted in a bundle's file are caught by `validate`; test_causes.py holds what is said of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from nrd_trt.graph.metadata import with_precision
from nrd_trt.specs import Precision
from nrd_trt.validation.validate import Validation, validate
from tests.artefacts import bundle, checkpoint, other_checkpoint, plant, read_facts_of, rewrite_facts
from tests.faults import (
    Change,
    double,
    double_one_row,
    shift_coordinates,
    swap_rgb,
    transpose_w1_in_decode,
    transpose_w1_in_theta,
)

# Fault -> precision of the bundle, first stage beyond tolerance, what the hints say.
FAULTS: dict[str, tuple[Change, str, str, str]] = {
    "swapped RGB": (swap_rgb, "fp32", "preprocessing", "red and blue are swapped"),
    "swapped RGB, fp16": (swap_rgb, "fp16", "preprocessing", "red and blue are swapped"),
    "off-centre coordinates, fp16": (shift_coordinates, "fp16", "logits", "off by +0.50 of a step along x"),
    "W1 transposed in theta, fp16": (transpose_w1_in_theta, "fp16", "theta", "W1 is transposed"),
    "W1 transposed in the decode, bf16": (transpose_w1_in_decode, "bf16", "logits", "decodes as if W1 is transposed"),
    "scale ×2 of one channel": (double_one_row, "fp16", "c4", "backbone.layer5.1.conv.2.conv.weight (row 7 ×2.00)"),
}
for weight, precision, stage in (
    ("backbone.layer5.0.conv.1.conv.weight", "fp16", "c4"),
    ("decode_head.classifier.classifier.1.weight", "fp16", "theta"),
    ("decode_head.c1_bottleneck.1.conv.weight", "bf16", "guidance"),
):
    FAULTS[f"scale ×2 of {weight}"] = double(weight), precision, stage, f"{weight} (×2.00)"


def validated(path: Path, **changes: object) -> Validation:
    """Validate with the stages; the gates of the masks hold nothing back."""
    options = {"checkpoint": checkpoint(), "localise": True, "min_agreement": 0.0, "threads": 1, "progress": False}
    return validate(path, **{**options, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_sound_file_is_within_every_tolerance(precision: str, tmp_path: Path) -> None:
    """Planting itself is no fault."""
    found = validated(plant(bundle(precision), tmp_path / "same.nrd", lambda model: None))
    assert (found.precision_asked, found.passed) == (precision, True)
    assert found.precision_found is not None and found.precision_found[precision] > 30
    assert found.localisation is not None
    assert found.failures == ()
    assert found.localisation.first_beyond is None
    assert all(figures.within for figures in found.localisation.stages)
    assert found.localisation.arithmetic == ("native" if precision == "fp32" else "simulated")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_and_named(fault: str, tmp_path: Path) -> None:
    change, precision, stage, hint = FAULTS[fault]
    found = validated(plant(bundle(precision), tmp_path / "faulty.nrd", change))
    assert found.localisation is not None
    assert found.localisation.first_beyond == stage
    assert hint in "; ".join(found.localisation.hints)
    assert not found.passed
    assert any(stage.upper() in line.upper() for line in found.failures)


@pytest.mark.parametrize("change", [swap_rgb, shift_coordinates, transpose_w1_in_theta])
def test_the_gates_of_the_masks_alone_catch_a_fault_in_fp32(change: Change, tmp_path: Path) -> None:
    path = plant(bundle("fp32"), tmp_path / "faulty.nrd", change)
    found = validated(path, localise=False, min_agreement=None)
    assert any("pixel agreement" in line for line in found.failures)


@pytest.mark.parametrize("metadata", ["fp16", "fp32"])
def test_fp32_delivered_for_fp16_is_named(metadata: Precision, tmp_path: Path) -> None:
    """The file is the fp32 one, the bundle was asked for fp16: masks agree perfectly, and that is the fault."""
    path = plant(bundle("fp32"), tmp_path / "claims.nrd", lambda model: with_precision(model, metadata))
    rewrite_facts(path, precision={**read_facts_of(path)["precision"], "asked": "fp16"})
    found = validated(path, localise=False)
    assert found.pixel_agreement == 1.0
    assert any("precision fp16 is claimed and not delivered: convolutions are" in line for line in found.failures)
    assert found.precision_found is not None
    assert set(found.precision_found) == {"fp32"}


def test_an_engine_of_another_checkpoint_is_named() -> None:
    found = validated(bundle("fp32"), checkpoint=other_checkpoint())
    assert found.checkpoint_matches is False
    assert any("the checkpoint is not the one that the bundle was built from" in line for line in found.failures)
    assert found.localisation is not None
    assert found.localisation.first_beyond == "theta"
    assert "1 of " in "; ".join(found.localisation.hints)
    assert "decode_head.classifier.classifier.1.bias (row 762 is" in "; ".join(found.localisation.hints)


def test_coordinates_are_named_even_where_rounding_hides_them(tmp_path: Path) -> None:
    path = plant(bundle("bf16"), tmp_path / "faulty.nrd", partial(shift_coordinates, steps=0.01))
    found = validated(path, min_agreement=0.9).localisation
    assert found is not None
    assert all(figures.within for figures in found.stages)
    assert found.first_beyond == "logits"
    assert "off by +0.01 of a step along x" in found.hints[0]
