"""Runs on a folder of a few tiny scenes: what they leave behind, how they go on, what they refuse, and the verb."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from nrd_trt.cli.main import app
from nrd_trt.errors import CheckpointError, ConfigError, MissingDependencyError
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import load_encoder
from nrd_trt.model.config import CAMVID_INFO
from nrd_trt.model.encoders import ENCODERS
from nrd_trt.training import loop, record
from nrd_trt.training.loop import predict_mask
from nrd_trt.training.recipes import RECIPES
from nrd_trt.training.samples import Samples
from nrd_trt.training.train import train
from tests.training.conftest import SIZE, States, logged, tiny, write_pair

R18 = replace(tiny().config, encoder="resnetv1c18")
FORKS = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",  # threads of other tests' libraries
    "ignore:This DataLoader will create",  # on a machine with one core
)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_run_leaves_loadable_checkpoints_a_finite_log_and_a_picture(run: Path) -> None:
    rows = logged(run)
    assert [int(row["step"]) for row in rows] == [2, 4]
    assert all(math.isfinite(float(row["loss"])) and 0 <= float(row["miou"]) <= 1 for row in rows)
    assert [float(row["lr"]) for row in rows] == pytest.approx([tiny().lr_at(1), tiny().lr_at(3)], rel=0.01)
    for name in ("best.safetensors", "last.safetensors"):
        model = load_model(run / name)
        assert model.info.class_names == CAMVID_INFO.class_names and model.info.ignore_index == 11
        assert model.predict(torch.zeros(1, 3, *SIZE)).shape == (1, *SIZE)
    with Image.open(run / "curves.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    names = {"best.safetensors", "curves.png", "last.safetensors", "log.csv", "state.pt"}
    assert {path.name for path in run.iterdir()} == names, "temporary files are left over"
    assert not [name for name in load_file(run / "best.safetensors") if name.startswith("auxiliary")]
    assert [name for name in torch.load(run / "state.pt")["objective"] if name.startswith("auxiliary")]


@pytest.mark.parametrize(
    ("evaluations", "scores", "best", "saved"),
    [
        (2, {3: 0.6, 5: 0.5}, "3", [0, 2, 3, 4, 5]),
        (99, {1: 0.2, 2: 0.6, 3: 0.6, 4: 0.5, 5: 0.5}, "2", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_validations_are_spread_evenly_and_the_best_is_kept(
    evaluations: int,
    scores: dict[int, float],
    best: str,
    saved: list[int],
    data: Path,
    tmp_path: Path,
    states: States,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state to resume from is written after each validation, and after every so many steps."""

    def advance(run: Any, *_: object) -> float:
        run.step += 1
        return 1.0

    left = iter(scores.values())
    monkeypatch.setattr(loop, "_SAVE_EVERY", 2)
    monkeypatch.setattr(loop._Run, "advance", advance)
    monkeypatch.setattr(loop, "mean_iou", lambda matrix: next(left))
    result = train(tiny(steps=5, evaluations=evaluations), data, tmp_path, progress=False)
    assert result.best_miou == 0.6
    assert [state.step for state in states.kept] == saved
    assert {int(row["step"]): float(row["miou"]) for row in logged(tmp_path) if row["miou"]} == scores
    with safe_open(tmp_path / "best.safetensors", framework="pt") as file:
        header = file.metadata()
    assert (header["step"], header["miou"], header["recipe"], header["seed"]) == (
        best, "0.6000", "camvid_mobilenetv2", "0",
    )  # fmt: skip


def test_loss_falls_on_a_single_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY", 8)
    for seed in range(2):
        write_pair(tmp_path / "data", seed)
    whole = replace(tiny().augmentation, scale_range=(1.0, 1.0), colour="none")
    recipe = tiny(steps=24, lr=3e-3, synthetic_share=0.0, evaluations=1, augmentation=whole)
    train(recipe, tmp_path / "data", tmp_path / "out", progress=False)
    rows = logged(tmp_path / "out")
    assert [row["step"] for row in rows] == ["8", "16", "24"]
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])


def test_validation_compares_whole_images_with_their_labels(data: Path, tmp_path: Path) -> None:
    """The mIoU of the log, computed anew from the stored weights and the files."""
    train(tiny(steps=1, evaluations=1, fit="letterbox", resample="cv2"), data, tmp_path, progress=False)
    model, samples = load_model(tmp_path / "best.safetensors"), Samples(tiny(), [data])
    pairs = [samples.read(pair) for pair in samples.validation]
    masks = [predict_mask(model, image, "letterbox", "cv2") for image, _ in pairs]
    assert {mask.shape for mask in masks} == {(70, 100)}
    label, mask = np.stack([label for _, label in pairs]), np.stack(masks)
    mask = np.where(label == 255, 254, mask)
    unions = {k: ((label == k) | (mask == k)).sum() for k in range(11)}
    scores = [((label == k) & (mask == k)).sum() / union for k, union in unions.items() if union]
    assert f"{np.mean(scores):.4f}" == logged(tmp_path)[-1]["miou"]


@pytest.mark.parametrize("ema", [0.15, 0.0])
def test_the_moving_average_is_stored(ema: float, data: Path, tmp_path: Path, states: States) -> None:
    """With a decay of 0 these are the weights themselves."""
    train(tiny(steps=3, evaluations=3, ema=ema), data, tmp_path, progress=False)
    expected = states.network(0)
    for step in range(3):
        decay = min(ema, (1 + step) / (10 + step))  # 0.1, 0.15, 0.15: it starts from random weights
        now = states.network(step + 1)
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in now}
    average = states.kept[3].average
    counters = {name for name in average if name.endswith("num_batches_tracked")}
    for name in average.keys() - counters:
        torch.testing.assert_close(average[name], expected[name], rtol=1e-5, atol=1e-6)
    assert equal(average, states.network(3)) == (ema == 0)
    assert not equal(states.network(2), states.network(3))
    assert equal(load_file(tmp_path / "last.safetensors"), average)


# A call after which a run ends, counted from the start of that run; each run resumes the one before it.
INTERRUPTIONS: list[tuple[Any, str, int]] = [
    (loop, "prepare_folder", 1),  # before the first state: starts again
    (loop, "write_state", 1),  # of step 0
    (Samples, "batch", 2),
    (loop, "save_checkpoint", 2),  # the best weights of step 2, whose state is not there yet
    (record.Log, "write", 1),  # of step 2, which will be made and logged again
    (loop, "write_state", 2),  # of step 2, next to the latest weights of step 0
    (Samples, "batch", 1),
]


def interrupt(patch: pytest.MonkeyPatch, place: Any, name: str, calls: int) -> None:
    original, done = getattr(place, name), []

    def call(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        done.append(result)
        if len(done) == calls:
            raise KeyboardInterrupt
        return result

    patch.setattr(place, name, call)


def test_interrupted_runs_end_like_an_unbroken_one(data: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    for interruption in INTERRUPTIONS:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, *interruption)
            train(tiny(), data, out, progress=False, resume=out.exists())
    train(tiny(), data, out, progress=False, resume=True)
    for name in ("last.safetensors", "best.safetensors"):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    columns = ("step", "loss", "lr", "miou")
    rows = [[[row[column] for column in columns] for row in logged(folder)] for folder in (out, run)]
    assert rows[0] == rows[1]
    first, second = (torch.load(folder / "state.pt")["torch_rng"] for folder in (out, run))
    assert first.equal(second)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in run.iterdir())


def test_finished_run_is_neither_overwritten_nor_mixed_with_another(data: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"already exists.*resume=True"):
        train(tiny(), data, run, progress=False)
    with pytest.raises(ConfigError, match=r"state\.pt: the run has seed=0 \(got 7\); resume with the same values"):
        train(tiny(seed=7), data, run, progress=False, resume=True)


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: next(iter(state["optimizers"][1]["state"].values())).pop(name)


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a step that the recipe does not have": lambda state: state.update(step=5),
    "a step that is no number": lambda state: state.update(step="4"),
    "a best mIoU that is none": lambda state: state.update(best=None),
    "weights of another shape": lambda state: state["objective"].update(
        {next(iter(state["objective"])): torch.ones(2)}
    ),
    "an average that is a list": lambda state: state.update(average=[1]),
    "a momentum that is missing": _without("momentum"),
    "a momentum of another shape": lambda state: state["optimizers"][1]["state"][0].update(momentum=torch.ones(2)),
    "a parameter that is not there": lambda state: state["optimizers"][0]["state"].update({1 << 20: {}}),
    "an optimiser too many": lambda state: state["optimizers"].append({}),
    "a random state of another size": lambda state: state.update(torch_rng=torch.zeros(3, dtype=torch.uint8)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_that_does_not_fit_is_refused(damage: str, data: Path, run: Path, tmp_path: Path) -> None:
    state = torch.load(run / "state.pt")
    DAMAGES[damage](state)
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt: not a readable training state .*force=True"):
        train(tiny(), data, tmp_path, progress=False, resume=True)


def test_force_keeps_the_old_run_until_the_new_one_can_start(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "state.pt").write_bytes(b"PK\3\4 broken off")
    with pytest.raises(CheckpointError, match=r"state\.pt: not a readable training state .*force=True"):
        train(tiny(), data, tmp_path / "out", progress=False, resume=True)
    recipe = tiny(batch=4, steps=1)
    train(recipe, data, tmp_path / "out", progress=False, force=True)
    assert [row["step"] for row in logged(tmp_path / "out")] == ["1"]
    with pytest.raises(ConfigError, match=r"state\.pt: the run has parts=1 \(got 2\)"):
        train(recipe, data, tmp_path / "out", progress=False, accumulate=2, resume=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for seed in range(2):
        write_pair(tmp_path / "bad", seed)
    Image.fromarray(np.full((70, 100), 77, np.uint8)).save(tmp_path / "bad" / "labels" / "1.png")
    with pytest.raises(ConfigError, match=r"1\.png: expected class indices"):
        train(tiny(), tmp_path / "bad", tmp_path / "out", progress=False, force=True)
    with pytest.raises(CheckpointError, match="found none"):
        train(tiny(), data, tmp_path / "out", progress=False, force=True, init_encoder=tmp_path / "none.pth")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_diverging_loss_is_reported(data: Path, tmp_path: Path) -> None:
    recipe = tiny(lr=1e30, steps=8, clip_norm=1e30, optimizer="sgd")
    with pytest.raises(ConfigError, match=r"expected a finite loss, got (nan|inf) at step \d; lower the learning rate"):
        train(recipe, data, tmp_path, progress=False)


def test_validation_labels_without_a_counted_pixel(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_pair(tmp_path / part, 0)
    Image.fromarray(np.full((70, 100), 255, np.uint8)).save(tmp_path / "val" / "labels" / "0.png")
    with pytest.raises(ConfigError, match=r"validation labels: expected pixels of some class.*data="):
        train(tiny(steps=1), tmp_path, tmp_path / "out", progress=False)


@FORKS
def test_workers_change_nothing(data: Path, run: Path, tmp_path: Path) -> None:
    train(tiny(), data, tmp_path, progress=False, workers=2)
    assert (tmp_path / "last.safetensors").read_bytes() == (run / "last.safetensors").read_bytes()
    assert [row["loss"] for row in logged(tmp_path)] == [row["loss"] for row in logged(run)]


@FORKS
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_met_by_a_worker_is_named(workers: int, tmp_path: Path) -> None:
    for seed in range(2):
        write_pair(tmp_path, seed)
    (tmp_path / "images" / "1.png").write_text("no picture")
    recipe = tiny(synthetic_share=0.0, weigh_classes=False)
    with pytest.raises(ConfigError) as caught:
        train(recipe, tmp_path, tmp_path / "out", progress=False, workers=workers)
    assert str(caught.value).startswith(f"{tmp_path / 'images' / '1.png'}: expected an image, cannot read it")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("arithmetic", ["bf16", "fp16"])
def test_sixteen_bit_products_learn_nearly_the_same(arithmetic: Any, data: Path, run: Path, tmp_path: Path) -> None:
    train(tiny(), data, tmp_path, progress=False, arithmetic=arithmetic)
    assert (tmp_path / "last.safetensors").read_bytes() != (run / "last.safetensors").read_bytes()
    losses = [[float(row["loss"]) for row in logged(out)] for out in (tmp_path, run)]
    # bfloat16 keeps 8 bits: a relative 0.4 % per product, which four steps do not blow up beyond a few percent.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "last.safetensors").values())


def _encoder_state(encoder: str) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return ENCODERS[encoder](32).state_dict()


def _imagenet(state: dict[str, Tensor], path: Path) -> None:
    """As mmseg's ImageNet files: the encoder's names alone, next to a classifier."""
    assert "stem.0.weight" in state
    torch.save({**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)


def test_encoder_files(tmp_path: Path) -> None:
    """Those of ImageNet, mmseg's and our own; of a network that cannot be loaded itself, too."""
    given = _encoder_state("resnetv1c18")
    named = {f"backbone.{name}": tensor for name, tensor in given.items()}
    _imagenet(given, tmp_path / "a.pth")
    head = {"decode_head.conv_seg.weight": torch.zeros(9, 9, 1, 1)}
    unsupported = "model = dict(backbone=dict(type='ResNetV1c', depth=18, style='caffe'))"
    torch.save({"meta": {"config": unsupported}, "state_dict": {**named, **head}}, tmp_path / "b.pth")
    save_file(named, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.pth: encoder ResNetV1c\(.*other forms are not supported"):
        load_model(tmp_path / "b.pth")
    for path in sorted(tmp_path.iterdir()):
        encoder = ENCODERS["resnetv1c18"](32)
        assert not equal(encoder.state_dict(), given)
        load_encoder(encoder, path)
        assert equal(encoder.state_dict(), given)
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "b.pth")
    larger = ENCODERS["resnetv1c34"](32)  # has every tensor of the smaller ResNet, and more blocks
    for name in ("a", "b"):
        message = rf"{name}\.pth: expected the \d+ tensors of the encoder, \d+ are missing or of another shape"
        with pytest.raises(CheckpointError, match=message):
            load_encoder(larger, tmp_path / f"{name}.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: expected the \d+ tensors of the encoder"):
        load_encoder(ENCODERS["mobilenetv2"](32), tmp_path / "a.pth")


def test_an_encoder_may_have_torchvisions_names(tmp_path: Path) -> None:
    given = _encoder_state("mobilenetv2")
    named = {
        f"features.{index}.{name.rpartition('.')[2]}": tensor for index, (name, tensor) in enumerate(given.items())
    }
    torch.save({**named, "features.999.weight": torch.zeros(1280, 320, 1, 1)}, tmp_path / "v.pth")
    encoder = ENCODERS["mobilenetv2"](32)
    load_encoder(encoder, tmp_path / "v.pth")
    assert equal(encoder.state_dict(), given)
    with pytest.raises(CheckpointError, match=r"v\.pth: expected the \d+ tensors of the encoder"):
        load_encoder(ENCODERS["resnetv1c18"](32), tmp_path / "v.pth")


def test_training_starts_from_the_encoders_file(data: Path, tmp_path: Path, states: States) -> None:
    given = _encoder_state("resnetv1c18")
    _imagenet(given, tmp_path / "e.pth")
    recipe = tiny(config=R18, steps=1, evaluations=1, frozen_stages=2)
    train(recipe, data, tmp_path / "out", progress=False, init_encoder=tmp_path / "e.pth")
    for found in (states.network(0), states.kept[0].average):
        encoder = {name: tensor for name, tensor in found.items() if name.startswith("backbone.")}
        assert equal({f"backbone.{key}": tensor for key, tensor in given.items()}, encoder)
    last = load_file(tmp_path / "out" / "last.safetensors")
    frozen = [key for key in given if key.startswith(("stem.", "layer1.", "layer2."))]
    assert all(last[f"backbone.{key}"].equal(given[key]) for key in frozen)
    assert not last["backbone.layer3.0.conv1.weight"].equal(given["layer3.0.conv1.weight"])


def test_a_finished_run_that_is_resumed_keeps_its_encoder_and_tells_its_best(
    data: Path, run: Path, tmp_path: Path
) -> None:
    """The same call with resume=True must not start the encoder over."""
    torch.save(_encoder_state("mobilenetv2"), tmp_path / "e.pth")
    before = (run / "last.safetensors").read_bytes()
    result = train(tiny(), data, run, progress=False, init_encoder=tmp_path / "e.pth", resume=True)
    assert (run / "last.safetensors").read_bytes() == before
    assert (result.checkpoint, result.notes) == (run / "best.safetensors", ())
    assert f"{result.best_miou:.4f}" == max(row["miou"] for row in logged(run))
    assert result.to_dict() == {"best_miou": result.best_miou, "checkpoint": str(run / "best.safetensors")}


@pytest.fixture
def verb(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `nrd-trt train` with the tiny recipe; further arguments win."""
    monkeypatch.setitem(RECIPES, "tiny", tiny(name="tiny"))
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*arguments: object) -> Any:
        given = ["--recipe", "tiny", "--data", data, "-o", tmp_path / "run", "--steps", 1, "--threads", 1, *arguments]
        return CliRunner().invoke(app, ["train", *map(str, given)])

    return invoke


def test_verb_prints_one_json_object(verb: Any, tmp_path: Path) -> None:
    result = verb("--json", "--data", "synthetic", "--seed", 3, "--synthetic-share", 0.25)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert set(printed) == {"best_miou", "checkpoint"}
    assert printed["checkpoint"] == str(tmp_path / "run" / "best.safetensors") and Path(printed["checkpoint"]).is_file()
    assert f"{printed['best_miou']:.4f}" == logged(tmp_path / "run")[-1]["miou"]
    state = torch.load(tmp_path / "run" / "state.pt")
    recipe = json.loads(state["recipe"])
    assert (state["step"], recipe["steps"], recipe["seed"], recipe["synthetic_share"]) == (1, 1, 3, 0.25)


def test_verb_speaks_to_people(verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, *, extra: str, purpose: str) -> Any:
        raise MissingDependencyError(f"{purpose} needs {module}: pip install nrd-trt[{extra}]")

    monkeypatch.setattr(record, "require", absent)
    result = verb()
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("best mIoU 0.") and str(tmp_path / "run" / "best.safetensors") in result.stdout
    note = "curves.png was not drawn: drawing the curves needs matplotlib.figure: pip install nrd-trt[plot]\n"
    assert result.stderr.endswith(note)  # on a slow machine a bar comes before it
    assert not (tmp_path / "run" / "curves.png").exists()
    assert "not drawn" not in verb("--force", "-q").stderr


def test_verb_refuses(verb: Any) -> None:
    for arguments, message in (
        (["--recipe", "camvid_r19"], "--recipe camvid_r19: expected one of cityscapes_r50"),
        (["--resume", "--force"], "--resume and --force exclude each other"),
    ):
        result = verb("--json", *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ") and message in result.stderr
        assert message in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "camvid_r19"}, r"^recipe='camvid_r19': expected one of cityscapes_r50, .*, camvid_tiny\.$"),
        ({"device": "tpu"}, r"^device='tpu': expected one of 'auto', 'cpu', 'cuda'\."),
        ({"arithmetic": "fp8"}, r"^arithmetic='fp8': expected one of 'auto', 'fp32', 'bf16', 'fp16'\."),
        ({"controller_init": "zero"}, r"^controller_init='zero': expected one of 'released', 'perceptron'\."),
        ({"workers": -1}, r"^workers=-1: expected 0 or more\."),
        ({"accumulate": 0}, r"^accumulate=0: expected 1 or more\."),
        ({"accumulate": 3}, "batch of 8 to be a multiple"),
        ({"threads": 0}, r"^threads=0: expected 1 or more\."),
        ({"steps": 0}, "expected steps, batch and evaluations >= 1"),
        ({"epochs": 3}, "^epochs=: expected a known argument, or one of head, output_stride, .*, controller_init"),
        ({"data": "nowhere"}, "nowhere: expected a folder of labelled images"),
        ({"resume": True}, "out: expected the folder of an earlier run, found none; leave out resume="),
        ({"init_encoder": "none.pth"}, r"none\.pth: expected a checkpoint file, found none"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"recipe": "camvid_mobilenetv2", "data": data, "output": tmp_path / "out", **changes}
    with pytest.raises((ConfigError, CheckpointError), match=message):
        train(**given, progress=False)
    assert not list(tmp_path.rglob("*.*"))
