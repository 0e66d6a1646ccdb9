"""Pruning: which channels go, what is left of a network, the run that follows, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import nrd_trt
from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.network import Segmentor
from nrd_trt.model.recognise import expected_shapes
from nrd_trt.training import pruning
from nrd_trt.training.pruning import cost, pruned
from nrd_trt.training.recipes import Pruning
from nrd_trt.training.samples import Samples
from tests.helpers import keyed_model, same_network, small_model
from tests.training.conftest import SIZE, tiny

TINY = {"channels": 32, "controller_channels": 32, "info": {"size_hw": SIZE}}


def how(**changes: Any) -> Pruning:
    return Pruning(**{"source_sha256": "0" * 64, "keep": 0.6, "importance": "group_norm", **changes})


def samples(model: Segmentor, data: Path) -> Samples:
    return Samples(
        replace(tiny(synthetic_share=0.0), config=model.config, info=replace(tiny().info, size_hw=SIZE)), [data]
    )


def changed(model: Segmentor, other: Segmentor) -> dict[str, tuple[int, ...]]:
    """The shapes of convolutions that two networks do not have in common, those of `other`."""
    own, found = expected_shapes(model.config), expected_shapes(other.config)
    return {name: shape for name, shape in found.items() if len(shape) == 4 and shape != own[name]}


@pytest.mark.parametrize(
    ("encoder", "head", "round_to", "importance"),
    [("mobilenetv2", "nrd", 8, "group_norm"), ("resnetv1c18", "nrd_no_aspp", 16, "taylor")],
)
def test_a_pruned_network_has_its_share_of_multiply_adds_in_multiples(
    encoder: str, head: Any, round_to: int, importance: Any, data: Path, tmp_path: Path
) -> None:
    model = keyed_model(encoder, 11, head=head, **TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = pruned(model, how(round_to=round_to, importance=importance), samples(model, data))
    assert 0.5 < cost(found) / cost(model) <= 0.6
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in found.parameters()) and not found.training
    narrower = changed(model, found)
    last = "decode_head.classifier.classifier.1.weight"
    given = {name: shape[0] for name, shape in narrower.items() if shape[0] != expected_shapes(model.config)[name][0]}
    assert last not in given and found.config.decode == model.config.decode, (
        "theta and guidance have all their channels"
    )
    assert given and all(width % round_to == 0 for width in given.values())
    save_checkpoint(found, tmp_path / "m.safetensors")
    assert same_network(load_model(tmp_path / "m.safetensors"), found)


def test_what_matters_least_goes(data: Path) -> None:
    """Channels whose weights are tiny, planted in one block, are those that a norm finds."""
    model = small_model(**TINY)
    block = model.backbone.get_submodule("layer6.1.conv")
    expand = block.get_submodule("0.conv").get_parameter("weight")
    dead = torch.arange(len(expand)) % 3 == 0
    for name in ("0.conv", "0.bn", "1.conv", "1.bn"):
        block.get_submodule(name).get_parameter("weight")[dead] *= 1e-3
    block.get_submodule("2.conv").get_parameter("weight")[:, dead] *= 1e-3
    kept = expand[~dead].clone()
    found = pruned(model, how(keep=0.9), samples(model, data)).backbone.get_submodule("layer6.1.conv.0.conv")
    assert isinstance(found, nn.Conv2d)
    assert found.weight.abs().sum((1, 2, 3)).min() > 0.1 * kept.abs().sum((1, 2, 3)).min(), "a dead channel stayed"


@pytest.fixture(scope="module")
def source(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy(run / "best.safetensors", tmp_path_factory.mktemp("source") / "trained.safetensors"))


QUICK: dict[str, Any] = {"recipe": tiny(synthetic_share=0.0), "steps": 2, "evaluations": 1, "progress": False}


@pytest.fixture(scope="module")
def done(source: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished run of `prune` and its result; read-only."""
    out = tmp_path_factory.mktemp("pruned")
    stages: list[str] = []
    result = nrd_trt.prune(source, out, data, importance="group_norm", on_stage=stages.append, **QUICK)
    assert "of the multiply-adds stay" in stages[1]
    return out, result


def test_the_run_fine_tunes_what_was_pruned(done: tuple[Path, Any], source: Path) -> None:
    out, result = done
    found = result.to_dict()
    assert list(found) == ["macs_before", "macs_after", "miou_before", "miou_after", "checkpoint"]
    model, narrow = load_model(source), load_model(found["checkpoint"])
    assert (found["macs_before"], found["macs_after"]) == (cost(model), cost(narrow))
    assert found["macs_after"] <= 0.6 * found["macs_before"]
    assert narrow.config.widths is not None and narrow.info == model.info
    with safe_open(out / "best.safetensors", "pt") as file:
        metadata = file.metadata()
    digest = sha256_file(source)
    assert metadata["teacher_sha256"] == digest and metadata["recipe"] == "camvid_mobilenetv2"
    stored = json.loads(metadata["pruning"])
    assert stored == {"source_sha256": digest, "keep": 0.6, "importance": "group_norm", "round_to": 8}


def test_a_run_goes_on_as_it_began(done: tuple[Path, Any], source: Path, data: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done[0], tmp_path / "again")
    again = nrd_trt.prune(source, out, data, importance="group_norm", resume=True, **QUICK)
    assert again.to_dict() == {**done[1].to_dict(), "checkpoint": str(out / "best.safetensors")}
    with pytest.raises(ConfigError, match=r"state\.pt: the run has pruning=.*'keep': 0\.6.*resume with the same"):
        nrd_trt.prune(source, out, data, keep=0.5, importance="group_norm", resume=True, **QUICK)
    (out / "state.pt").write_bytes(b"PK\3\4")
    with pytest.raises(CheckpointError, match=r"state\.pt: not a readable training state"):
        nrd_trt.prune(source, out, data, resume=True, **QUICK)


def test_a_pruned_network_is_pruned_again_and_proven_as_a_bundle(
    done: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    model = load_model(done[0] / "best.safetensors")
    again = pruned(model, how(keep=0.7), samples(model, data))
    assert cost(again) <= 0.7 * cost(model)
    save_checkpoint(again, tmp_path / "again.safetensors")
    bundle = nrd_trt.build(
        tmp_path / "again.safetensors", tmp_path / "a.nrd", precision="fp32", builder="onnxruntime", size=SIZE
    )
    assert bundle.passed
    validation = bundle.record.validation
    structure = validation and validation.structure
    assert structure is not None and structure.found == 0 and structure.checked


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickest network, in a file that names no recipe."""
    path = tmp_path_factory.mktemp("small") / "m.safetensors"
    save_checkpoint(small_model(**TINY), path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0.0}, r"keep=0: expected a share of the multiply-adds above 0 and below 1"),
        ({"keep": 1.0}, r"keep=1: expected a share"),
        ({"keep": float("nan")}, r"keep=nan: expected a share"),
        ({"round_to": 4}, r"round_to=4: expected 8, or 16 for int8"),
        ({"importance": "luck"}, r"importance='luck': expected one of"),
        ({"recipe": None}, r"expected a checkpoint that names the recipe it was trained by, got none; give recipe="),
        ({"distill": False, "teacher": "a.pth"}, r"teacher= and distill=False exclude each other"),
        ({"keep": 0.01}, r"keep=0\.01: expected 0\.\d+ or more, as every layer keeps a quarter"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str, small: Path, data: Path, tmp_path: Path) -> None:
    options = {"importance": "group_norm", **QUICK, **changes}
    with pytest.raises(ConfigError, match=message):
        nrd_trt.prune(small, tmp_path / "out", data, **options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_baselines_and_data_without_labels_are_refused(small: Path, data: Path, tmp_path: Path) -> None:
    save_checkpoint(small_model(head="bilinear"), tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match=r"b\.safetensors: expected an NRD head, got bilinear"):
        nrd_trt.prune(tmp_path / "b.safetensors", tmp_path / "out", data, **QUICK)
    (bare := tmp_path / "bare").mkdir()
    shutil.copytree(data / "train" / "images", bare / "images")
    with pytest.raises(ConfigError, match="label"):
        nrd_trt.prune(small, tmp_path / "out", bare, **QUICK)


def test_a_pruning_that_removes_nothing_is_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_pruning.dependency.group.Group.prune", lambda self: None)
    monkeypatch.setattr(pruning, "_measure_anew", lambda *_: None)
    model = small_model(**TINY)
    with pytest.raises(ConfigError, match=r"keep=0\.6: expected fewer multiply-adds.*nothing was removed"):
        pruned(model, how(), samples(model, data))
