"""The trained checkpoint on real street scenes; skipped where there are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nrd_trt.data.folders import list_pairs
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.gates import Gates
from tests.artefacts import build, checkpoint

STEP = 10


@pytest.fixture
def frames(camvid: Path, tmp_path: Path) -> Path:
    """Every tenth validation frame, as images/ and labels/."""
    folder = tmp_path / "frames"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for pair in list_pairs(camvid / "val")[::STEP]:
        for path, kind in zip(pair, ("images", "labels"), strict=True):
            shutil.copy(path, folder / kind / path.name)
    return folder


@pytest.mark.all_combinations
def test_fp16_bundle_passes_its_default_gates(frames: Path, tmp_path: Path) -> None:
    target = tmp_path / "camvid.nrd"
    facts = build(checkpoint(), target, size=(352, 480), precision="fp16", data=frames, min_agreement=None)
    validation = facts["validation"]
    assert facts["passed"] is True, (validation["failures"], facts["parity"])
    assert validation["gates"] == vars(Gates.of("fp16"))
    assert validation["pixel_agreement"] >= 0.995
    assert validation["images"] == len(list((frames / "images").iterdir())) >= 5
    assert validation["miou_engine"] > 0.3  # a trained network; a guess gives 0.09
    assert abs(validation["miou_engine"] - validation["miou_reference"]) <= 0.002
    assert (validation["arithmetic"], validation["reference"]) == ("simulated", "torch")
    stored = read_bundle(target).references()
    assert stored.images.shape == (8, 352, 480, 3)
