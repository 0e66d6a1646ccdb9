"""Distillation: what is compared, what a teacher sees, and runs that have one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from nrd_trt.data.preprocessing import normalise
from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.config import CAMVID_INFO
from nrd_trt.training.distillation import Guide, Teacher, features_distance, logits_distance
from nrd_trt.training.objective import Objective
from nrd_trt.training.train import train
from tests.helpers import small_model
from tests.training.conftest import logged, tiny

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_distance_of_logits_is_the_divergence_of_their_softmax() -> None:
    """Of what is counted, at a quarter of the labels' size, where the logits already are."""
    ours, theirs = random(2, 11, 8, 12), random(2, 11, 8, 12, seed=1)
    labels = torch.zeros(2, 32, 48, dtype=torch.uint8)
    labels[0, :16] = 255
    student, teacher = (np.exp(logits.double().numpy() / 2) for logits in (ours, theirs))
    student, teacher = (values / values.sum(1, keepdims=True) for values in (student, teacher))
    divergence = (teacher * np.log(teacher / student)).sum(1)
    counted = np.concatenate([divergence[0, 4:].ravel(), divergence[1].ravel()])
    found = logits_distance(ours, Guide(logits=theirs, features=theirs), labels, temperature=2.0)
    assert found.item() == pytest.approx(counted.mean() * 4, rel=1e-5)
    assert logits_distance(theirs, Guide(theirs, theirs), labels, 2.0).item() == pytest.approx(0, abs=1e-6)
    nothing = torch.full_like(labels, 255)
    assert logits_distance(ours, Guide(theirs, theirs), nothing, 2.0).item() == 0


def test_the_distance_of_features_knows_no_scale_and_no_stride() -> None:
    theirs = random(2, 6, 4, 4)
    assert features_distance(theirs * 7, Guide(theirs, theirs)).item() == pytest.approx(0, abs=1e-6)
    assert features_distance(-theirs, Guide(theirs, theirs)).item() == pytest.approx(2, abs=1e-6)
    same = features_distance(torch.ones(2, 6, 8, 8), Guide(theirs, torch.ones(2, 6, 4, 4)))
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_sees_images_in_its_own_normalisation(tmp_path: Path) -> None:
    info = replace(CAMVID_INFO, mean=(10.0, 20.0, 30.0), std=(40.0, 50.0, 60.0), channel_order="bgr")
    network = small_model()
    network.info = info
    save_checkpoint(network, tmp_path / "t.safetensors")
    teacher = Teacher(tmp_path / "t.safetensors", CAMVID_INFO, CPU)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    guide = teacher.guide(torch.from_numpy(normalise(pixels, CAMVID_INFO)))
    own = torch.from_numpy(normalise(pixels, info))
    torch.testing.assert_close(guide.logits, network(own), rtol=1e-4, atol=1e-4)
    assert guide.features.shape[1] == teacher.channels
    assert not guide.logits.requires_grad and not teacher.network.training


def test_a_guide_moves_encoder_and_adapter(run: Path) -> None:
    recipe = tiny(aux_weight=0.0)
    teacher = Teacher(run / "best.safetensors", recipe.info, CPU)
    torch.manual_seed(0)
    made = Objective(small_model(**vars(recipe.config)).requires_grad_(True), recipe, None, teacher.channels).eval()
    images, labels = random(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.uint8)
    loss, own = made(images, labels, teacher.guide(images))
    plain, _ = made(images, labels)
    assert plain.item() == own.item() and loss.item() > own.item()
    (loss - plain).backward()
    first = made.segmentor.backbone.layer1[0].conv[0].conv.weight.grad
    adapter = made.adapter.weight.grad
    assert first is not None and first.abs().max() > 0 and isinstance(adapter, Tensor) and adapter.abs().max() > 0


@pytest.fixture(scope="module")
def guided(data: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that had a teacher; read-only."""
    out = tmp_path_factory.mktemp("guided")
    result = train(tiny(steps=2), data, out, progress=False, teacher=run / "best.safetensors")
    best = max(float(row["miou"]) for row in logged(run) if row["miou"])
    assert result.teacher_miou == pytest.approx(best, abs=1e-4)
    assert result.to_dict()["teacher_miou"] == result.teacher_miou
    return out


def test_a_run_tells_its_teacher_and_stores_the_student_alone(run: Path, guided: Path) -> None:
    with safe_open(guided / "last.safetensors", framework="pt") as file:
        header, names = file.metadata(), set(file.keys())
    with safe_open(run / "last.safetensors", framework="pt") as file:
        assert names == set(file.keys())
        assert "teacher_sha256" not in file.metadata()
    assert header["teacher_sha256"] == Teacher(run / "best.safetensors", CAMVID_INFO, CPU).sha256
    assert torch.load(guided / "state.pt")["objective"]["adapter.weight"].ndim == 4


def test_a_run_goes_on_with_the_same_teacher_only(data: Path, run: Path, guided: Path, tmp_path: Path) -> None:
    again = shutil.copytree(guided, tmp_path / "again")
    result = train(tiny(steps=2), data, again, progress=False, teacher=run / "best.safetensors", resume=True)
    assert result.teacher_miou is not None
    for teacher in (None, run / "last.safetensors"):
        with pytest.raises(ConfigError, match=r"state\.pt: the run has teacher_sha256=\w+ \(got .*same values"):
            train(tiny(steps=2), data, again, progress=False, teacher=teacher, resume=True)


def test_teachers_that_cannot_teach_are_refused_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    others: dict[str, Any] = {"class_names": (*CAMVID_INFO.class_names[:-1], "Horse")}
    network = small_model()
    network.info = replace(CAMVID_INFO, **others)
    save_checkpoint(network, tmp_path / "horse.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"PK\3\4")
    for name, error, message in (
        ("horse.safetensors", ConfigError, r"11 classes in their order, got 11, 'Horse' for 'Bicyclist'"),
        ("broken.pth", CheckpointError, r"broken\.pth"),
        ("absent.pth", CheckpointError, r"absent\.pth"),
    ):
        with pytest.raises(error, match=message):
            train(tiny(), data, tmp_path / "out", progress=False, teacher=tmp_path / name)
    assert not (tmp_path / "out" / "state.pt").exists() and not (tmp_path / "out" / "log.csv").exists()
