"""The confidence is proven as masks are: against PyTorch where a bundle is built, and against what it stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import nrd_trt
from nrd_trt.engine.bundle import REFERENCE_FILE, read_bundle
from nrd_trt.gates import Gates
from nrd_trt.runtime.torch_runner import TorchRunner
from tests.artefacts import build, bundle, checkpoint, onnx_file, trained_model, write_model

SURE = "mask,confidence"


def test_it_is_compared_where_it_is_given() -> None:
    record = read_bundle(bundle(output=SURE)).record.validation
    assert record.reference == "torch" and 0 <= record.confidence_difference < 1e-4
    stored = nrd_trt.validate(bundle(output=SURE), threads=1, progress=False)
    assert stored.reference == "stored" and 0 <= stored.confidence_difference < 1e-4
    assert nrd_trt.validate(bundle(), threads=1, progress=False).confidence_difference is None
    references = read_bundle(bundle(output=SURE)).references()
    with TorchRunner(trained_model(), confidence=True) as reference:
        want = reference.infer({"image": references.images[:1]})["confidence"]
    assert references.confidences is not None and np.array_equal(references.confidences[:1], want)
    with np.load(bundle() / REFERENCE_FILE) as plain:
        assert sorted(plain) == ["images", "masks", "near_ties", "source"]  # as ever


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_with_another_confidence_fails_its_gate(precision: str, tmp_path: Path) -> None:
    file = onnx.load(onnx_file(SURE))
    node = next(node for node in file.functions[0].node if list(node.output) == ["full_level"])
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array([250.0], np.float32)))
    source = write_model(file, f"less_sure_{precision}.onnx")
    facts = build(source, tmp_path / "a.nrd", precision=precision, checkpoint=checkpoint(), min_agreement=None)
    failures = facts["validation"]["failures"]
    assert not facts["passed"] and any(line.startswith("confidence off by 0.01") for line in failures), failures


def test_who_asks_for_less_agreement_gets_a_looser_gate_of_confidence() -> None:
    default, looser = Gates.of("int8"), Gates.of("int8", 0.94)
    assert default.max_confidence_difference == 0.04
    assert looser.max_confidence_difference == pytest.approx(0.08)
