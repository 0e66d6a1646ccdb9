"""NVIDIA Model Optimizer as a subprocess: where it is missing, where it fails, and a real run where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from nrd_trt.calibration.modelopt import check_modelopt, quantize_with_modelopt
from nrd_trt.errors import CalibrationError, MissingDependencyError
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.quantize import DEFAULT_EXCLUDE, quantizable_layers, quantized_layers
from tests.helpers import feed, small_export


def test_where_it_is_missing_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'nrd-trt\[modelopt\]'"):
        check_modelopt()


def test_its_last_words_reach_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name that fails as a broken installation would."""
    package = tmp_path / "modelopt" / "onnx"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "quantization.py").write_text("raise SystemExit('no CUDA provider')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CalibrationError, match=r"exit code 1; it said: …no CUDA provider"):
        quantize_with_modelopt(small_export("float"), [feed("float", 1, 128, 256)["image"]], exclude=DEFAULT_EXCLUDE)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("modelopt") is None, reason="no Model Optimizer; nrd-trt[modelopt]")
def test_a_real_run_quantises_the_same_layers() -> None:
    model = small_export("float")
    images = [np.asarray(feed("float", 1, 128, 256, seed=seed)["image"]) for seed in (11, 12)]
    result = to_precision(quantize_with_modelopt(model, images, exclude=DEFAULT_EXCLUDE), "int8")
    left = set(quantizable_layers(model)) - set(quantized_layers(result))
    assert {"decode_head.classifier.classifier.1/Conv"} <= left
    assert len(quantized_layers(result)) > 10
    assert read_facts(result).precision == "int8"
    assert importer_problems(result) == []
