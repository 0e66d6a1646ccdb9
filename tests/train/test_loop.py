"""The training loop on a folder of a few tiny scenes."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from nrd_trt.cli.train import train_command
from nrd_trt.data.augment import random_sample
from nrd_trt.data.synthetic import street_scene
from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.model.checkpoint import load_model
from nrd_trt.model.configs import CAMVID_INFO
from nrd_trt.train.loop import train
from nrd_trt.train.recipes import RECIPES, Recipe, find_recipe
from nrd_trt.train.samples import SampleStream, class_weights, split_pairs

SIZE = (64, 96)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for part, seeds in (("train", range(4)), ("val", range(4, 6))):
        for seed in seeds:
            _write_pair(folder / part, seed)
    return folder


def _write_pair(folder: Path, seed: int) -> None:
    scene = street_scene(seed, (70, 100))
    label = scene.label.copy()
    label[:3] = 11  # CamVid's void
    for name, array in (("images", scene.image), ("labels", label)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / name / f"{seed}.png")


def _tiny(**changes: object) -> Recipe:
    recipe = RECIPES["camvid_mobilenetv2"]
    config = replace(recipe.config, channels=16, controller_channels=16, c1_channels=16)
    base = replace(
        recipe, config=config, info=replace(recipe.info, size_hw=SIZE), crop_hw=SIZE, steps=4, batch=2,
        evaluations=2, warmup=1, synthetic_share=0.5,
    )  # fmt: skip
    return replace(base, **changes)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    out = tmp_path_factory.mktemp("run")
    train(_tiny(), data, out, progress=False)
    return out


def _log(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_leaves_loadable_checkpoints_and_a_finite_log(run: Path) -> None:
    rows = _log(run)
    assert [int(row["step"]) for row in rows] == [2, 4]
    assert all(math.isfinite(float(row["loss"])) and 0 <= float(row["miou"]) <= 1 for row in rows)
    for name in ("best.safetensors", "last.safetensors"):
        model = load_model(run / name)
        assert model.info.class_names == CAMVID_INFO.class_names and model.info.ignore_index == 11
        assert model.predict(torch.zeros(1, 3, *SIZE)).shape == (1, *SIZE)
    assert not list(run.glob(".*")), "temporary files are left over"


def test_resumed_run_equals_an_uninterrupted_one(data: Path, run: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "new" / "run"
    original = SampleStream.batch

    def interrupted(stream: SampleStream, step: int):
        if step == 3:
            raise KeyboardInterrupt
        return original(stream, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SampleStream, "batch", interrupted)
        train(_tiny(), data, out, progress=False)
    result = train(_tiny(), data, out, resume=True, progress=False)
    assert result.checkpoint == out / "best.safetensors"
    assert [row["miou"] for row in _log(out)] == [row["miou"] for row in _log(run)]
    want, got = (load_model(folder / "last.safetensors").state_dict() for folder in (run, out))
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_loss_falls_on_a_single_pair(tmp_path: Path) -> None:
    _write_pair(tmp_path / "data", 0)
    _write_pair(tmp_path / "data", 1)
    recipe = _tiny(steps=40, lr=3e-3, synthetic_share=0.0, evaluations=1, scale_range=(1.0, 1.0))
    train(recipe, tmp_path / "data", tmp_path / "out", bf16=True, progress=False)
    losses = [float(row["loss"]) for row in _log(tmp_path / "out")]
    assert losses[-1] < 0.8 * losses[0]


def test_finished_run_is_neither_overwritten_nor_mixed_with_another(data: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"already exists.*--resume"):
        train(_tiny(), data, run)
    with pytest.raises(ConfigError, match=r"seed=0 \(got 7\)"):
        train(_tiny(), data, run, seed=7, resume=True)
    with pytest.raises(ConfigError, match=r"steps=4 \(got 9\)"):
        train(_tiny(), data, run, steps=9, resume=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        train(_tiny(), data, run, resume=True, force=True)


def test_force_starts_afresh(data: Path, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="state"):
        train(_tiny(), data, tmp_path, resume=True)
    train(_tiny(), data, tmp_path, steps=1, force=True, progress=False)
    assert [row["step"] for row in _log(tmp_path)] == ["1"]


def test_nothing_to_resume(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out --resume"):
        train(_tiny(), data, tmp_path, resume=True)


def test_unusable_input(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="camvid_r18, camvid_mobilenetv2"):
        find_recipe("camvid_r19")
    with pytest.raises(ConfigError, match="expected images"):
        train(_tiny(), tmp_path, tmp_path / "out")
    _write_pair(tmp_path, 0)
    with pytest.raises(ConfigError, match="at least two"):
        train(_tiny(), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="expected a folder"):
        train(_tiny(), data, data / "train" / "images" / "0.png")
    other = replace(CAMVID_INFO, class_names=tuple("abcdefghijk"))
    with pytest.raises(ConfigError, match="synthetic_share"):
        train(_tiny(info=other), data, tmp_path / "out")


def test_diverging_loss_is_reported(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lower the learning rate"):
        train(_tiny(lr=1e30, steps=8, clip_norm=1e30, optimizer="sgd"), data, tmp_path, progress=False)


def test_split_keeps_every_tenth_image_for_validation(tmp_path: Path) -> None:
    for seed in range(11):
        _write_pair(tmp_path, seed)
    training, validation = split_pairs(tmp_path)
    assert len(validation) == 2 and len(training) == 9
    assert not set(training) & set(validation)


def test_samples_follow_the_seed(data: Path) -> None:
    training, _ = split_pairs(data)
    first, again = (SampleStream(_tiny(), training).batch(3) for _ in range(2))
    other = SampleStream(_tiny(seed=1), training).batch(3)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert first[0].dtype == np.float32 and first[1].dtype == np.uint8


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
def test_image_and_label_move_together(scale: float) -> None:
    label = np.kron(np.array([[0, 1, 2], [3, 4, 5]], np.uint8), np.ones((40, 40), np.uint8))
    image = np.repeat((label * 40)[..., None], 3, axis=2)
    info = replace(CAMVID_INFO, mean=(0, 0, 0), std=(1, 1, 1))
    out, mask = random_sample(
        image, label, SIZE, np.random.default_rng(5), info=info, scale_range=(scale, scale), jitter=0.0
    )
    assert out.shape == (3, *SIZE) and mask.shape == SIZE
    counted = mask != 255
    # only pixels beside a border between two classes may be a blend of both
    assert np.mean(np.abs(out[0][counted] / 40 - mask[counted]) < 0.05) > 0.8
    assert (out[:, ~counted] == 0).all()
    assert counted.all() == (scale >= 1)


def test_rare_classes_weigh_more(data: Path) -> None:
    weights = class_weights(split_pairs(data)[0], CAMVID_INFO)
    assert weights.shape == (11,) and weights.dtype == np.float32
    assert weights.min() >= 0.4 and weights.max() <= 3.0
    assert weights[3] < weights[6], "road is more frequent than signs"


def test_learning_rate_rises_then_falls_to_its_minimum() -> None:
    recipe = _tiny(steps=100, warmup=10, lr=1.0, min_lr=0.01)
    rates = [recipe.lr_at(step) for step in range(100)]
    assert rates[0] < 0.11 and max(rates) > 0.9 and rates.index(max(rates)) == 9
    assert rates[-1] < 0.03 and rates[9:] == sorted(rates[9:], reverse=True)


def test_command_prints_one_json_object(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(RECIPES, "camvid_mobilenetv2", _tiny())
    app = typer.Typer()
    app.command()(train_command)
    arguments = f"--recipe camvid_mobilenetv2 --data {data} -o {tmp_path / 'run'} --steps 1 --threads 1 --json"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert set(printed) == {"best_miou", "checkpoint"}
    assert Path(printed["checkpoint"]).is_file()
