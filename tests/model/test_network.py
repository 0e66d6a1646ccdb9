"""Shapes, sizes and variants of the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.model.config import NetworkConfig
from nrd_trt.model.encoders import ENCODERS
from nrd_trt.model.heads import NrdHead
from nrd_trt.model.network import Segmentor
from nrd_trt.model.stages import predict_stages, predict_stages_from
from tests.helpers import cached_small_model, keyed_model, small_model

BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
CHANNELS = {
    "resnetv1c18": BASIC,
    "resnetv1c34": BASIC,
    "resnetv1c50": BOTTLENECK,
    "resnetv1c101": BOTTLENECK,
    "resnet50": BOTTLENECK,
    "resnet101": BOTTLENECK,
    "resnext101_64x4d": BOTTLENECK,
    "mobilenetv2": (24, 32, 96, 320),
    **dict.fromkeys(("mit_b1", "mit_b2", "mit_b5"), (64, 128, 320, 512)),
    "twins_svt_large": (128, 256, 512, 1024),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_strides_and_channels(name: str) -> None:
    channels = CHANNELS[name]
    with torch.device("meta"):  # shapes without arithmetic
        encoder = ENCODERS[name]()
        features = encoder(torch.empty(2, 3, 64, 96))
    assert encoder.channels == channels
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(feature.shape) for feature in features] == expected


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 100, 256), "multiples of 32.*nearest valid size is 96x256"),
        ((1, 3, 128, 250), "multiples of 32.*nearest valid size is 128x256"),
        ((1, 3, 16, 16), "multiples of 32.*nearest valid size is 32x32"),
        *((shape, r"expected \(B, 3, H, W\)") for shape in ((3, 64, 64), (1, 4, 64, 64), (1, 64, 64, 3))),
    ],
    ids=str,
)
def test_other_shapes_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        cached_small_model()(torch.zeros(shape))


def test_forward_and_predict_of_a_batch_whose_images_do_not_meet() -> None:
    model = cached_small_model()
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    logits, mask = model(images), model.predict(images)
    assert (logits.shape, logits.dtype) == ((3, 11, 16, 24), torch.float32)
    assert (mask.shape, mask.dtype) == ((3, 64, 96), torch.int64)
    alone = torch.cat([model(image[None]) for image in images])
    assert not torch.allclose(alone[0], alone[1], atol=0.1)
    torch.testing.assert_close(model(images), alone, rtol=0, atol=1e-4)


def test_predict_breaks_ties_towards_the_lowest_class() -> None:
    model = small_model()
    last = model.decode_head.classifier.classifier[1]
    last.weight.zero_()
    last.bias.zero_()
    last.bias[-11 + 3] = last.bias[-11 + 7] = 1.0  # b2 of classes 3 and 7
    assert model.predict(torch.zeros(1, 3, 32, 32)).unique().tolist() == [3]


def test_no_aspp_has_the_authors_names() -> None:
    names = set(keyed_model("mobilenetv2", 11, head="nrd_no_aspp", channels=32).state_dict())
    assert {"decode_head.c1_bottleneck.conv.weight", "decode_head.c1_bottleneck.conv.bias"} <= names
    assert not any("aspp" in name or "image_pool" in name or "decode_head.bottleneck" in name for name in names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "vgg"}, "encoder 'vgg'.*resnetv1c50"),
        ({"head": "fcn"}, "head='fcn': expected one of 'nrd', "),
        ({"patch": 7}, "patch.*got 7"),
        ({"num_classes": 257}, "num_classes: expected 2 to 256.*got 257"),
        ({"head": "bilinear", "output_stride": 64}, "output stride: expected one of 32, 16, 8, got 64"),
        ({"output_stride": 16}, "output stride: an NRD head decodes one patch .* got 16"),
    ],
)
def test_config_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**{"encoder": "mobilenetv2", "num_classes": 19, **fields})


def test_controller_that_starts_as_a_perceptron() -> None:
    """All patches start with one perceptron whose every layer learns; the released start leaves W0 and W1 at rest."""
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32))
    sums = {}
    for perceptron in (False, True):
        torch.manual_seed(0)
        model = Segmentor(small_model().config, small_model().info).eval()
        head = model.decode_head
        assert isinstance(head, NrdHead)
        if perceptron:
            head.start_as_perceptron()
            theta = head.theta(model.backbone(images)[-1])
            spread, level = theta.std(dim=(2, 3)).max(), theta.std(dim=1).mean()
            assert spread < 0.02 * level
        model(images).square().sum().backward()
        bias = head.get_submodule("classifier.classifier.1").get_parameter("bias")
        assert bias.grad is not None
        sums[perceptron] = [float(part.abs().max()) for part in bias.grad.split(list(model.config.decode.sections))]
    assert min(sums[True]) > 1e-3
    assert max(sums[False][0], sums[False][2]) < 1e-6 * min(sums[True])


@pytest.mark.parametrize("head", ["nrd", "deeplabv3plus"])
def test_stages_behind_one_that_is_not_finite_are_left_out(head: str) -> None:
    model = small_model(head=head)
    stages = predict_stages(model, np.zeros((64, 64, 3), np.uint8))
    stages["c1"] = np.full_like(stages["c1"], np.inf)
    due = predict_stages_from(model, stages)
    assert {"c1", "c4", "mask"} <= due.keys()
    assert not {"theta", "guidance", "logits"} & due.keys()
