"""The comparison's decoders and dilated encoders: shapes, mmseg's arithmetic, and how their checkpoints are told."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

import nrd_trt
from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.config import NRD_HEADS, NetworkConfig
from nrd_trt.model.encoders import ENCODERS, OUTPUT_STRIDES, RESNETS
from nrd_trt.model.network import Segmentor
from nrd_trt.model.recognise import StoredFacts, expected_shapes, recognise
from nrd_trt.specs import CheckpointOptions, Head
from tests.helpers import keyed_model, same_network, small_model

HEADS = get_args(Head)
BASELINES = [head for head in HEADS if head not in NRD_HEADS]
IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
D8 = {"output_stride": 8, "dilations": (1, 12, 24, 36)}


@cache
def small(encoder: str = "resnetv1c18", **changes: Any) -> Segmentor:
    """Build a narrow network; do not change it."""
    return keyed_model(encoder, 11, **{"head": "deeplabv3", "channels": 16, **changes})


@pytest.mark.parametrize(
    ("head", "output_stride"), [("deeplabv3plus", 8), ("deeplabv3plus", 32), ("bilinear", 16), ("deeplabv3", 8)]
)
def test_baselines_draw_masks_with_every_parameter(head: str, output_stride: int) -> None:
    model = small_model(head=head, output_stride=output_stride).requires_grad_(True)
    stride = 4 if head == "deeplabv3plus" else output_stride
    assert model.config.upsample == stride
    logits = model(IMAGES)
    assert logits.shape == (1, 11, 64 // stride, 96 // stride)
    assert logits.std() > 1e-3
    assert model.predict(IMAGES).shape == (1, 64, 96)
    assert model.unused_modules() == ()
    logits.square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("head", BASELINES)
def test_baselines_have_mmsegs_names(head: str) -> None:
    names = {name.removeprefix("decode_head.") for name in small_model(head=head).state_dict() if "decode_head" in name}
    modules = {name.rpartition(".")[0].removesuffix(".bn").removesuffix(".conv") for name in names}
    pool = {"image_pool.1", "aspp_modules.0", "bottleneck", "conv_seg"}
    dense = {f"aspp_modules.{index}" for index in (1, 2, 3)}
    separable = {f"{name}.{half}_conv" for name in dense for half in ("depthwise", "pointwise")}
    refined = {f"sep_bottleneck.{index}.{half}_conv" for index in (0, 1) for half in ("depthwise", "pointwise")}
    expected = {"deeplabv3": dense, "bilinear": separable, "deeplabv3plus": separable | refined | {"c1_bottleneck"}}
    assert modules == pool | expected[head]


def test_aspp_branches_are_dilated_as_told() -> None:
    for head in (*BASELINES, "nrd"):
        aspp = small_model(head=head, dilations=(1, 12, 24, 36)).decode_head.aspp_modules
        first, *others = aspp
        assert first.conv.kernel_size == (1, 1)
        convs = [branch.conv if head == "deeplabv3" else branch.depthwise_conv.conv for branch in others]
        assert [(conv.dilation, conv.padding, conv.kernel_size) for conv in convs] == [
            ((rate, rate), (rate, rate), (3, 3)) for rate in (12, 24, 36)
        ]


# Per output stride and stage: stride and dilation of the first block's 3x3 convolution, dilation of the other blocks'.
RESNET = {
    32: [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)],
    16: [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)],
    8: [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)],
}
# Per output stride and layer: stride and dilation of the first block; all others have 1 and 1.
MOBILENET = {
    32: [(1, 1), (2, 1), (2, 1), (2, 1), (1, 1), (2, 1), (1, 1)],
    16: [(1, 1), (2, 1), (2, 1), (2, 1), (1, 1), (1, 2), (1, 2)],
    8: [(1, 1), (2, 1), (2, 1), (1, 2), (1, 2), (1, 4), (1, 4)],
}


def geometry(conv: nn.Conv2d) -> tuple[int, int, int]:
    """Stride, dilation and padding."""
    assert conv.stride[0] == conv.stride[1] and conv.dilation[0] == conv.dilation[1]
    return conv.stride[0], conv.dilation[0], int(conv.padding[0])


@pytest.mark.parametrize("encoder", RESNETS)
@pytest.mark.parametrize("output_stride", OUTPUT_STRIDES)
def test_resnet_convolutions_are_mmsegs(encoder: str, output_stride: int) -> None:
    with torch.device("meta"):
        network = ENCODERS[encoder](output_stride)
    for stage, (stride, first, others) in enumerate(RESNET[output_stride]):
        for index, block in enumerate(network.get_submodule(f"layer{stage + 1}")):
            dilation = others if index else first
            own_stride = 1 if index else stride
            dilated, plain = block.conv2, [block.conv1, getattr(block, "conv3", None)]
            if not hasattr(block, "conv3"):  # a BasicBlock dilates its first convolution only
                dilated, plain = block.conv1, [block.conv2]
            assert geometry(dilated) == (own_stride, dilation, dilation)
            assert all(geometry(conv) == (1, 1, conv.kernel_size[0] // 2) for conv in plain)
            if block.downsample is not None:
                assert index == 0 and geometry(block.downsample[0]) == (own_stride, 1, 0)


@pytest.mark.parametrize("output_stride", OUTPUT_STRIDES)
def test_mobilenet_convolutions_are_mmsegs(output_stride: int) -> None:
    with torch.device("meta"):
        network = ENCODERS["mobilenetv2"](output_stride)
    for layer, (stride, dilation) in enumerate(MOBILENET[output_stride]):
        for index, block in enumerate(network.get_submodule(f"layer{layer + 1}")):
            (depthwise,) = [part.conv for part in block.conv if part.conv.groups > 1]
            assert geometry(depthwise) == ((1, 1, 1) if index else (stride, dilation, dilation))


@pytest.mark.parametrize(
    ("encoder", "output_stride"), [("resnetv1c18", 16), ("resnetv1c50", 8), ("resnet50", 16), ("mobilenetv2", 8)]
)
def test_dilated_encoders_and_strided_ones_with_equal_weights(encoder: str, output_stride: int) -> None:
    """The stages before the first dilated one are the same maps; the others have more pixels.

    In bottlenecks every 3x3 convolution is dilated by as much as its input is finer, so that the pixels which the
    strided encoder has too get its values (this is what contract_dilation is for). BasicBlocks and MobileNetV2 dilate
    only some of their convolutions, and compute something else.
    """
    strided = small(encoder, head="bilinear").backbone
    dilated = small(encoder, head="bilinear", output_stride=output_stride).backbone
    assert strided.state_dict().keys() == dilated.state_dict().keys()
    assert dilated.channels == strided.channels
    plain, other = strided(IMAGES), dilated(IMAGES)
    strides = (4, 8, min(16, output_stride), output_stride)
    assert [tuple(feature.shape[2:]) for feature in other] == [(64 // s, 96 // s) for s in strides]
    for stage in range(4):
        step = (4, 8, 16, 32)[stage] // strides[stage]
        difference = (other[stage][:, :, ::step, ::step] - plain[stage]).abs().max() / plain[stage].abs().max()
        if step == 1:
            assert difference == 0
        elif "50" in encoder:
            assert difference < 1e-5  # float32's rounding, of sums in another order
        else:
            assert difference > 0.01


def mmseg_config(backbone: str, head: str = "dilations=(1, 12, 24, 36)") -> str:
    return f"""
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    pretrained='open-mmlab://resnet18_v1c',
    backbone=dict({backbone},
        norm_cfg=dict(type='SyncBN', requires_grad=True)),
    decode_head=dict(type='ASPPHead', in_channels=512, {head}, loss_decode=dict(type='CrossEntropyLoss')),
    auxiliary_head=dict(type='FCNHead', dilations=(9, 9, 9, 9)))
train_cfg = dict()
"""


RESNET_D8 = "type='ResNetV1c', depth=18, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True"
RESNET_D16 = "type='ResNetV1c', depth=18, dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1), contract_dilation=True"
RESNET_PLAIN = "type='ResNetV1c', depth=18, dilations=(1, 1, 1, 1), strides=(1, 2, 2, 2)"
MOBILENET_D8 = "type='MobileNetV2', widen_factor=1.0, strides=(1, 2, 2, 1, 1, 1, 1), dilations=(1, 1, 1, 2, 2, 4, 4)"


def write_mmseg(path: Path, model: Segmentor, config: str | None) -> Path:
    meta = {} if config is None else {"mmseg_version": "0.11", "config": config}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("head", "output_stride", "encoder"),
    [
        ("deeplabv3plus", 32, "mobilenetv2"),
        ("bilinear", 16, "resnext101_64x4d"),
        ("deeplabv3", 8, "resnetv1c18"),
        ("deeplabv3plus", 8, "resnext101_64x4d"),
    ],
)
def test_baselines_are_read_off_shapes_and_facts(head: Any, output_stride: int, encoder: str) -> None:
    config = NetworkConfig(
        encoder=encoder, num_classes=19, head=head, channels=96, c1_channels=12 if head == "deeplabv3plus" else 48,
        output_stride=output_stride, dilations=(1, 2, 3, 4),
    )  # fmt: skip
    facts = StoredFacts(output_stride=output_stride, dilations=(1, 2, 3, 4))
    assert recognise(expected_shapes(config), facts, CheckpointOptions()) == config


@pytest.mark.parametrize(
    ("backbone", "encoder", "output_stride"),
    [
        (RESNET_D8, "resnetv1c18", 8),
        (RESNET_D16, "resnetv1c18", 16),
        (RESNET_PLAIN, "resnetv1c18", 32),
        ("type='ResNetV1c', depth=18, style='pytorch'", "resnetv1c18", 32),
        (MOBILENET_D8, "mobilenetv2", 8),
        ("type='MobileNetV2'", "mobilenetv2", 32),
    ],
)
def test_mmseg_config_tells_the_dilation(backbone: str, encoder: str, output_stride: int, tmp_path: Path) -> None:
    model = small(encoder, output_stride=output_stride, dilations=(1, 12, 24, 36))
    path = write_mmseg(tmp_path / "m.pth", model, mmseg_config(backbone))
    loaded = nrd_trt.load_model(path)
    assert (loaded.config.output_stride, loaded.config.dilations) == (output_stride, (1, 12, 24, 36))
    assert same_network(loaded, model)
    other = nrd_trt.load_model(path, output_stride=32, dilations=(1, 6, 12, 18)).config
    assert (other.output_stride, other.dilations) == (32, (1, 6, 12, 18)), "options win over the file"


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        (None, "output_stride= and dilations="),
        ("model = dict(type='EncoderDecoder')", "output_stride= and dilations="),
        ("no python (", "output_stride= and dilations="),
        ("encoder = dict(dilations=(1, 1, 2, 4))", "output_stride= and dilations="),
        (mmseg_config(RESNET_D8, "dropout_ratio=0.1"), "dilations="),
        (mmseg_config("type='OtherNet', strides=(1, 2, 1, 1)"), "output_stride="),
    ],
)
def test_baselines_that_do_not_tell_are_not_guessed(config: str | None, asked: str, tmp_path: Path) -> None:
    model = small(**D8)
    path = write_mmseg(tmp_path / "m.pth", model, config)
    with pytest.raises(
        CheckpointError, match=rf"m\.pth: a deeplabv3 network .*; give {asked} \(mmseg's D8: output_stride="
    ):
        nrd_trt.load_model(path)
    assert same_network(nrd_trt.load_model(path, **D8), model)


@pytest.mark.parametrize(
    "backbone",
    [
        RESNET_D8.replace(", contract_dilation=True", ""),
        RESNET_D8.replace("True", "False"),
        RESNET_D8.replace("(1, 1, 2, 4)", "(1, 1, 1, 1)"),
        RESNET_D8.replace("(1, 1, 2, 4)", "(1, 1, 4, 8)"),
        RESNET_D8.replace("strides=(1, 2, 1, 1), ", ""),
        RESNET_PLAIN.replace("(1, 2, 2, 2)", "(1, 2, 2, 1)"),
        RESNET_PLAIN + ", style='caffe'",
        RESNET_D8 + ", multi_grid=(1, 2, 4)",
        MOBILENET_D8.replace("(1, 1, 1, 2, 2, 4, 4)", "(1, 1, 1, 1, 1, 2, 4)"),
    ],
)
def test_other_forms_of_encoders_are_refused(backbone: str, tmp_path: Path) -> None:
    encoder, head = ("mobilenetv2", "nrd") if "MobileNet" in backbone else ("resnetv1c18", "deeplabv3")
    path = write_mmseg(tmp_path / "m.pth", small(encoder, head=head), mmseg_config(backbone))
    with pytest.raises(
        CheckpointError, match=r"m\.pth: encoder (ResNetV1c|MobileNetV2)\(.*other forms are not support"
    ):
        nrd_trt.load_model(path)


def test_nrd_on_a_dilated_encoder_is_never_loaded(tmp_path: Path) -> None:
    """The tensors are those of the released networks, the masks would be others."""
    model = small(head="nrd")
    path = write_mmseg(tmp_path / "m.pth", model, mmseg_config(RESNET_D8, "dilations=(1, 3, 6, 9)"))
    with pytest.raises(ConfigError, match=r"m\.pth: output stride: an NRD head decodes one patch .* got 8"):
        nrd_trt.load_model(path)
    plain = write_mmseg(tmp_path / "plain.pth", model, mmseg_config(RESNET_PLAIN, "dilations=(1, 2, 3, 4)"))
    assert nrd_trt.load_model(plain).config.dilations == (1, 2, 3, 4)
    with pytest.raises(ConfigError, match=r"plain\.pth: output stride"):
        nrd_trt.load_model(plain, output_stride=16)


@pytest.mark.parametrize("head", HEADS)
def test_round_trip_of_every_head(head: str, tmp_path: Path) -> None:
    """Of other widths and numbers of classes than the released ones, too."""
    changes: dict[str, Any] = {"num_classes": 2, "channels": 48, "dilations": (1, 2, 3, 4)}
    changes |= {"hidden": 8, "guidance_channels": 4} if head in NRD_HEADS else {"output_stride": 16}
    model = small_model(head=head, **changes)
    save_checkpoint(model, tmp_path / "m.safetensors")
    loaded = nrd_trt.load_model(tmp_path / "m.safetensors")
    assert (loaded.config.head, loaded.config.output_stride) == (head, model.config.output_stride)
    assert loaded.config.dilations == model.config.dilations
    logits = loaded(IMAGES)
    assert logits.equal(model(IMAGES))
    assert logits.shape == (1, 2, 64 // loaded.config.upsample, 96 // loaded.config.upsample)
    assert logits.std() > 1e-3
