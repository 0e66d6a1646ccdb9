"""Checkpoints: every form that is read, what is learned from them, and every bad input."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import nrd_trt
from nrd_trt.data.classes import CAMVID_CLASSES, CAMVID_PALETTE, CITYSCAPES_CLASSES
from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.config import KNOWN_CONFIGS, NetworkConfig
from nrd_trt.model.encoders import ENCODERS
from nrd_trt.model.network import Segmentor
from nrd_trt.model.recognise import StoredFacts, expected_shapes, nearest, recognise
from nrd_trt.specs import CheckpointOptions
from tests.bad_checkpoints import BAD_CHECKPOINTS
from tests.helpers import cached_small_model, same_network, small_model

CONV_SEG = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
CONTROLLER = "decode_head.classifier.classifier.1"
NORM_CONFIG = """
img_norm_cfg = dict(
    mean=[1.0, 2.0, 3.5], std=[4.0, 5.0, 6.5], to_rgb=False)
crop_size = (512, 1024)
"""


def state_of(model: Segmentor) -> dict[str, Tensor]:
    return dict(model.state_dict())


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"meta": {}, "state_dict": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {**state, "auxiliary_head.conv_seg.weight": torch.zeros(11, 256, 1, 1)},
        lambda state: {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
    ],
    ids=["bare", "mmseg", "model", "module", "mmseg-module", "auxiliary", "no-counters"],
)
def test_pth_forms(wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    model = cached_small_model()
    torch.save(wrap(state_of(model)), tmp_path / "m.pth")
    loaded = nrd_trt.load_model(tmp_path / "m.pth")
    assert same_network(loaded, model)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_safetensors_round_trip(tmp_path: Path) -> None:
    info = {
        "class_names": tuple(f"thing {index}" for index in range(11)),
        "palette": tuple((index, 2 * index, 255 - index) for index in range(11)),
        "mean": (1.0, 2.0, 3.5),
        "std": (4.0, 5.0, 6.5),
        "channel_order": "bgr",
        "ignore_index": 7,
        "size_hw": (96, 160),
    }
    model = small_model(info=info, dilations=(1, 2, 3, 4))
    path = tmp_path / "m.safetensors"
    extra = {"recipe": "none", "step": "12", "place": "Zürich"}
    saved = []
    for given in (extra, dict(reversed(extra.items()))):
        save_checkpoint(model, path, extra=given)
        saved.append(path.read_bytes())
    assert saved[0] == saved[1], "the bytes depend on the content alone"
    assert int.from_bytes(saved[0][:8], "little") % 8 == 0
    loaded = nrd_trt.load_model(path)
    assert loaded.info == model.info
    assert same_network(loaded, model)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {*extra, "nrd_trt.config", "nrd_trt.info"}
    assert {key: metadata[key] for key in extra} == extra
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_half_storage_rounds_once_and_refuses_overflow(tmp_path: Path) -> None:
    model = cached_small_model()
    save_checkpoint(model, tmp_path / "half.safetensors", half=True)
    save_checkpoint(model, tmp_path / "full.safetensors")
    loaded = state_of(nrd_trt.load_model(tmp_path / "half.safetensors"))
    for name, tensor in state_of(model).items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.half().float() if tensor.is_floating_point() else tensor)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    model = small_model()
    model.decode_head.classifier.classifier[1].bias[0] = 1e6
    with pytest.raises(CheckpointError, match=rf"{CONTROLLER}.bias does not fit torch.float16"):
        save_checkpoint(model, tmp_path / "m.safetensors", half=True)
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(("encoder", "head"), list(zip(ENCODERS, cycle(["nrd", "nrd_no_aspp"]), strict=False)))
def test_configuration_is_read_off_the_shapes(encoder: str, head: Any) -> None:
    config = NetworkConfig(encoder=encoder, num_classes=19, head=head, channels=96, controller_channels=48, hidden=8)
    assert recognise(expected_shapes(config), StoredFacts(), CheckpointOptions()) == config


def save_with(meta: dict[str, Any], path: Path) -> Path:
    """Write the small network as mmseg does, with this ``meta``."""
    torch.save({"meta": meta, "state_dict": state_of(cached_small_model())}, path)
    return path


def test_mmseg_meta_is_used(tmp_path: Path) -> None:
    """Under the names of mmseg 0 and of mmseg 1."""
    names, palette = tuple(f"thing {index}" for index in range(11)), [[i, i, 255 - i] for i in range(11)]
    old = {"CLASSES": names, "PALETTE": palette, "config": NORM_CONFIG}
    new = {"dataset_meta": {"classes": list(names), "palette": palette}}
    infos = [nrd_trt.load_model(save_with(meta, tmp_path / "m.pth")).info for meta in (old, new)]
    assert [(info.class_names, info.palette[2]) for info in infos] == [(names, (2, 2, 253))] * 2
    assert (infos[0].mean, infos[0].std, infos[0].channel_order) == ((1.0, 2.0, 3.5), (4.0, 5.0, 6.5), "bgr")
    assert infos[1].channel_order == "rgb"


def test_options_win_over_the_file(tmp_path: Path) -> None:
    save_with({"CLASSES": tuple("abcdefghijk"), "config": NORM_CONFIG}, tmp_path / "m.pth")
    loaded = nrd_trt.load_model(
        tmp_path / "m.pth", class_names=tuple("ABCDEFGHIJK"), mean=(7, 8, 9), std=(1, 2, 3), bgr=False,
        dilations=(1, 2, 3, 4),
    )  # fmt: skip
    assert "".join(loaded.info.class_names) == "ABCDEFGHIJK"
    assert (loaded.info.mean, loaded.info.std, loaded.info.channel_order) == ((7, 8, 9), (1, 2, 3), "rgb")
    assert loaded.config.dilations == (1, 2, 3, 4)


@pytest.mark.parametrize("core", ["_core", "core"])
def test_numpy_scalars_in_meta_load(core: str, tmp_path: Path) -> None:
    """As written under NumPy 2 and, with the module renamed in the pickle, under NumPy 1."""
    meta = {"best": np.float64(0.5), "iter": np.int64(3), "flag": np.bool_(True), "kind": np.dtype(np.float32)}
    save_with(meta, tmp_path / "new.pth")
    old, new = b"numpy._core.multiarray", f"numpy.{core}.multiarray".encode()
    with zipfile.ZipFile(tmp_path / "new.pth") as source, zipfile.ZipFile(tmp_path / "m.pth", "w") as target:
        for entry in source.namelist():
            data = source.read(entry)
            if entry.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            target.writestr(entry, data)
    assert same_network(nrd_trt.load_model(tmp_path / "m.pth"), cached_small_model())


@pytest.mark.parametrize(
    ("classes", "names"), [(11, CAMVID_CLASSES), (19, CITYSCAPES_CLASSES), (12, tuple(f"class_{i}" for i in range(12)))]
)
def test_class_names_without_any_in_the_file(classes: int, names: tuple[str, ...], tmp_path: Path) -> None:
    torch.save(state_of(small_model(num_classes=classes)), tmp_path / "m.pth")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        info = nrd_trt.load_model(tmp_path / "m.pth").info
    assert info.class_names == names
    assert len(set(info.palette)) == classes
    assert info.palette == CAMVID_PALETTE or classes != 11
    assert [("class_0" in str(entry.message)) for entry in caught] == ([True] if names[0] == "class_0" else [])


def test_names_of_another_number_are_left_out_with_a_warning(tmp_path: Path) -> None:
    path = save_with({"CLASSES": ("a", "b")}, tmp_path / "m.pth")
    with pytest.warns(UserWarning, match="names 2 classes but has 11"):
        assert nrd_trt.load_model(path).info.class_names == CAMVID_CLASSES
    with pytest.raises(ConfigError, match=r"class_names=: expected 11 names, got 2"):
        nrd_trt.load_model(path, class_names=("a", "b"))


@pytest.mark.parametrize(
    ("classes", "hidden", "left_out", "options", "metadata"),
    [
        (19, 8, (), {}, {}),  # rows of conv_seg, d solved
        (11, 16, CONV_SEG, {}, {}),  # the K that fits d = 16
        (19, 8, CONV_SEG, {"num_classes": 19}, {}),  # option, d solved
        (19, 8, CONV_SEG, {"hidden": 8}, {}),  # option, K solved
        (19, 8, CONV_SEG, {}, {"nrd_trt.config": '{"num_classes": 19, "hidden": 8}'}),
    ],
)
def test_classes_and_hidden(
    classes: int, hidden: int, left_out: tuple[str, ...], options: Any, metadata: dict[str, str], tmp_path: Path
) -> None:
    state = without(state_of(small_model(num_classes=classes, hidden=hidden)), *left_out)
    save_file(state, tmp_path / "m.safetensors", metadata)
    config = nrd_trt.load_model(tmp_path / "m.safetensors", **options).config
    assert (config.num_classes, config.hidden) == (classes, hidden)


@pytest.mark.parametrize("options", [{}, {"num_classes": 18}, {"num_classes": 19, "hidden": 16}, {"hidden": 7}])
def test_classes_that_do_not_fit_ask_for_the_options(options: dict[str, int], tmp_path: Path) -> None:
    torch.save(without(state_of(small_model(num_classes=19, hidden=8)), *CONV_SEG), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth.*give num_classes= and hidden="):
        nrd_trt.load_model(tmp_path / "m.pth", **options)


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_unreadable_files(name: str, tmp_path: Path) -> None:
    BAD_CHECKPOINTS[name](tmp_path / name)
    with pytest.raises((CheckpointError, ConfigError), match=re.escape(f"{tmp_path / name}: ")):
        nrd_trt.load_model(tmp_path / name)


class _Touch:
    """Would create a file if the loader ran it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("place", ["meta", "state_dict", "top"])
def test_code_in_a_pickle_is_named_and_does_not_run(place: str, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    data: dict[str, Any] = {"meta": {}, "state_dict": state_of(cached_small_model())}
    (data if place == "top" else data[place])["x"] = _Touch(target)
    torch.save(data, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth: .*(posix|nt|os)\.mkdir.*could run code"):
        nrd_trt.load_model(tmp_path / "m.pth")
    assert not target.exists()
    save_with({"args": Namespace(a=1)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"got an object of type argparse\.Namespace"):
        nrd_trt.load_model(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("head", "without", "expected"),
    [
        ("nrd", "backbone.", "NRD head on a known encoder, got an encoder of another kind"),
        ("nrd", "decode_head.c1_bottleneck.1.", r"NRD head .*, got no decode_head\.c1_bottleneck\.1\.conv\.weight"),
        ("nrd", "decode_head.", "NRD head .* or a DeepLab baseline on a known encoder, got a head of another kind"),
        ("deeplabv3plus", "backbone.", "NRD head .* or a DeepLab baseline .*, got an encoder of another kind"),
        *(
            ("deeplabv3plus", f"decode_head.{name}", "NRD head .* or a DeepLab baseline .*, got a head of another kind")
            for name in ("image_pool.1.conv.weight", "conv_seg.weight", "c1_bottleneck.conv.weight")
        ),
    ],
)
def test_other_networks_are_named_as_such(head: Any, without: str, expected: str) -> None:
    config = NetworkConfig(encoder="mobilenetv2", num_classes=11, head=head)
    shapes = {name: shape for name, shape in expected_shapes(config).items() if not name.startswith(without)}
    facts = StoredFacts(output_stride=32, dilations=(1, 3, 6, 9))
    with pytest.raises(CheckpointError, match=rf"^expected an {expected}; The nearest known configuration is "):
        recognise(shapes, facts, {})


def test_faulty_tensors_are_listed(tmp_path: Path) -> None:
    name, state = "decode_head.bottleneck.conv.weight", state_of(cached_small_model())
    faulty = without(state, "decode_head.cat_norm.running_var") | {
        "decode_head.extra.weight": torch.zeros(1),
        "decode_head.bottleneck.bn.bias": torch.zeros(5),
        name: state[name] * torch.nan,
        "decode_head.cat_norm.weight": state["decode_head.cat_norm.weight"] / 0.0,
    }
    listed = (
        "; 1 missing: decode_head.cat_norm.running_var; 1 unexpected: decode_head.extra.weight; "
        "1 misshapen: decode_head.bottleneck.bn.bias (expected [32], got [5]); 2 not finite: "
    )
    fewer = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.layer2.")}
    many = ("missing: backbone.layer2.0.conv.0.bn.bias, ", " and 20 more. ")
    for given, found in ((faulty, (listed, name)), (fewer, many)):
        torch.save(given, tmp_path / "m.pth")
        with pytest.raises(CheckpointError) as caught:
            nrd_trt.load_model(tmp_path / "m.pth")
        for text in (f"{tmp_path / 'm.pth'}: ", *found, "nearest known configuration is camvid_mobilenetv2"):
            assert text in str(caught.value)


def test_nearest_config_finds_itself() -> None:
    for name, config in KNOWN_CONFIGS.items():
        found = nearest(expected_shapes(config))
        assert found == f"The nearest known configuration is {name} (100% of the tensors agree)."
