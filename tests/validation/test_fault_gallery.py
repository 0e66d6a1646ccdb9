"""The fault gallery: what is planted is caught, by figures and by the structural proof, and no false cause is named.

test_causes.py holds what is said of causes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nrd_trt.graph.metadata import with_precision
from nrd_trt.specs import Precision
from nrd_trt.validation.validate import Validation, validate
from tests.artefacts import bundle, checkpoint, other_checkpoint, plant, read_facts_of, rewrite_facts
from tests.faults import Change, shift_coordinates, swap_rgb, transpose_in_theta
from tests.gallery.score import remembered, score, sound_failures
from tests.gallery.table import ALL, FAULTS, Case, Fault, Network

# Fault and precision -> the first stage beyond tolerance, and what is said of the cause.
SAID: dict[tuple[str, Precision], tuple[str, str]] = {
    ("BGR", "fp32"): ("preprocessing", "red and blue are swapped"),
    ("BGR", "fp16"): ("preprocessing", "red and blue are swapped"),
    ("pixel centres", "fp16"): ("logits", "off by +0.50 of a step along x"),
    ("W1 transposed in theta", "fp16"): ("theta", "W1 is transposed"),
    ("W1 transposed in the decode", "bf16"): ("logits", "decodes as if W1 is transposed"),
    ("scale of one channel ×2", "fp16"): (
        "c4",
        "`backbone.layer5.1.conv.2.conv`: weight differs in row 7 of 96: ×2 there",
    ),
    ("weights of a layer ×2", "fp16"): ("c4", "`backbone.layer5.0.conv.1.conv`: weight is ×2 of the expected"),
    ("theta ×2", "fp16"): ("theta", "`decode_head.classifier.classifier.1`: weight is ×2 of the expected"),
    ("guidance ×2", "bf16"): ("guidance", "`decode_head.c1_bottleneck.1.conv`: weight is ×2 of the expected"),
}

SPREAD = 30
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.all_combinations) for seed in range(1, 10))]


def cases() -> Iterator[object]:
    """Yield every fault in every precision; those for `make test` are spread over the table and the precisions."""
    for place, fault in enumerate(FAULTS.values()):
        chosen = {precision for name, precision in SAID if name == fault.name}
        if place % SPREAD == 0:
            chosen.add(fault.precisions[place // SPREAD % len(fault.precisions)])
        for precision in fault.precisions:
            marks = () if precision in chosen else (pytest.mark.all_combinations,)
            yield pytest.param(fault, precision, id=f"{fault.name}-{precision}", marks=marks)


@pytest.fixture(scope="module", autouse=True)
def drawn_once() -> Iterator[None]:
    with remembered():
        yield


@pytest.mark.parametrize(("fault", "precision"), [*cases()])
def test_a_fault_is_caught_and_no_false_cause_is_named(fault: Fault, precision: Precision) -> None:
    found = score(fault, precision)
    stage, said = SAID.get((fault.name, precision), (found.stage, ""))
    assert found.stage == stage
    assert said in "; ".join(found.causes)
    by_figures = bool(found.by_numbers) or not found.exceeds
    assert found.false_causes == ()
    assert by_figures, found
    assert found.caught or fault.where == "upstream"


def test_the_gallery_is_large_and_half_of_it_upstream() -> None:
    counts = {where: sum(fault.where == where for fault in FAULTS.values()) for where in ("file", "upstream")}
    assert min(counts.values()) >= 40


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("network", ["mobilenetv2", pytest.param("r18", marks=pytest.mark.all_combinations)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_sound_bundle_passes_whatever_the_images(network: Network, precision: Precision, seed: int) -> None:
    assert sound_failures(Case(network=network), precision, seed) == ()


def validated_leniently(path: Path, **changes: object) -> Validation:
    """Validate with the stages; the gates of the masks hold nothing back."""
    options = {"checkpoint": checkpoint(), "localise": True, "min_agreement": 0.0, "threads": 1, "progress": False}
    return validate(path, **{**options, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_sound_file_is_within_every_tolerance(precision: str, tmp_path: Path) -> None:
    """Planting itself is no fault."""
    found = validated_leniently(plant(bundle(precision), tmp_path / "same.nrd", lambda model: None))
    assert (found.precision_asked, found.passed) == (precision, True)
    assert found.precision_found is not None and found.precision_found[precision] > 30
    assert found.localisation is not None
    assert found.failures == ()
    assert found.localisation.first_beyond is None
    assert all(figures.within for figures in found.localisation.stages)
    assert found.localisation.arithmetic == ("native" if precision == "fp32" else "simulated")


@pytest.mark.parametrize("change", [swap_rgb, shift_coordinates, transpose_in_theta("W1")])
def test_the_gates_of_the_masks_alone_catch_a_fault_in_fp32(change: Change, tmp_path: Path) -> None:
    path = plant(bundle("fp32"), tmp_path / "faulty.nrd", change)
    found = validated_leniently(path, localise=False, min_agreement=None)
    assert any("pixel agreement" in line for line in found.failures)


@pytest.mark.parametrize("metadata", ["fp16", "fp32"])
def test_fp32_delivered_for_fp16_is_named(metadata: Precision, tmp_path: Path) -> None:
    """The file is the fp32 one, the bundle was asked for fp16: masks agree perfectly, and that is the fault."""
    path = plant(bundle("fp32"), tmp_path / "claims.nrd", lambda model: with_precision(model, metadata))
    rewrite_facts(path, precision={**read_facts_of(path)["precision"], "asked": "fp16"})
    found = validated_leniently(path, localise=False)
    assert found.pixel_agreement == 1.0
    assert any("precision fp16 is claimed and not delivered: convolutions are" in line for line in found.failures)
    assert found.precision_found is not None
    assert set(found.precision_found) == {"fp32"}


def test_an_engine_of_another_checkpoint_is_named() -> None:
    found = validated_leniently(bundle("fp32"), checkpoint=other_checkpoint())
    assert found.checkpoint_matches is False
    assert any("the checkpoint is not the one that the bundle was built from" in line for line in found.failures)
    assert found.localisation is not None
    assert found.localisation.first_beyond == "theta"
    assert "`decode_head.classifier.classifier.1`: bias differs in row 762 of 763 (b2 of class 10)" in "; ".join(
        found.localisation.hints
    )


def test_coordinates_are_named_even_where_rounding_hides_them(tmp_path: Path) -> None:
    path = plant(bundle("bf16"), tmp_path / "faulty.nrd", partial(shift_coordinates, steps=0.01))
    found = validated_leniently(path, min_agreement=0.9).localisation
    assert found is not None
    assert all(figures.within for figures in found.stages)
    assert found.first_beyond == "logits"
    assert "off by +0.01 of a step along x" in found.hints[0]
