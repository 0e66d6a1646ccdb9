"""Averaged logits against a plain reference, which enlarges everything at once, and what engines cannot look at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nrd_trt.data.preprocessing import pad_image, scale_image
from nrd_trt.data.synthetic import street_scene
from nrd_trt.data.views import Viewing, views_of
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.runtime.blending import Network, Seams, average_logits, draw_views
from nrd_trt.runtime.engine import Engine, open_engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import InputShape, Size
from tests.artefacts import SIZE_HW, bundle, checkpoint, onnx_file
from tests.helpers import cached_small_model, model_info, small_export

INFO = model_info(3)
SHAPE = InputShape.static((64, 96))


def logits_of(image: np.ndarray) -> np.ndarray:
    """A network whose logits hang on pixels, their place and the size of the image: an eighth of it."""
    small = image[4::8, 4::8].astype(np.float32) / 255
    rows, columns = np.indices(small.shape[:2], np.float32)
    small[..., 0] += rows / 50
    small[..., 1] -= columns / 40
    return np.ascontiguousarray(small.transpose(2, 0, 1)) + image.shape[0] / 640


NETWORK = Network(logits_of=logits_of, info=INFO, upsample=8)


def enlarged(logits: np.ndarray | Tensor, size_hw: Size) -> Tensor:
    planes = torch.as_tensor(logits, dtype=torch.float64)
    return interpolate(planes[None], size=size_hw, mode="bilinear", align_corners=False)[0]


def whole(image: np.ndarray, run_hw: Size) -> Tensor:
    """Run an image in one go, at its own size."""
    return enlarged(logits_of(pad_image(image, run_hw, INFO)), run_hw)[:, : image.shape[0], : image.shape[1]]


def slide(image: np.ndarray, tile: Size, stride: Size) -> Tensor:
    """As mmseg's slide_inference is described: sums and counts of the whole image."""
    (height, width), (h, w) = image.shape[:2], tile
    total, count = torch.zeros(3, height, width, dtype=torch.float64), torch.zeros(height, width)
    for row in range(-(-max(height - h, 0) // stride[0]) + 1):
        for column in range(-(-max(width - w, 0) // stride[1]) + 1):
            bottom, right = min(row * stride[0] + h, height), min(column * stride[1] + w, width)
            place = np.s_[max(bottom - h, 0) : bottom, max(right - w, 0) : right]
            total[(slice(None), *place)] += whole(image[place], tile)
            count[place] += 1
    assert count.min() >= 1
    return total / count


def reference(rgb: np.ndarray, sizes: list[Size], flip: bool, look: Any) -> Tensor:
    found = []
    for size in sizes:
        image = scale_image(rgb, size, "pillow")
        found.append(enlarged(look(image), rgb.shape[:2]))
        if flip:
            found.append(enlarged(look(np.ascontiguousarray(image[:, ::-1])).flip(2), rgb.shape[:2]))
    return torch.stack(found).mean(dim=0)


def averaged(rgb: np.ndarray, viewing: Viewing, **options: Any) -> np.ndarray:
    return np.concatenate([*average_logits(rgb, views_of(rgb.shape[:2], viewing, shape=SHAPE), NETWORK, **options)], 1)


@pytest.mark.parametrize("rows", [7, None])
@pytest.mark.parametrize("image_hw", [(150, 203), (40, 300), (20, 30)])
def test_windows_at_several_scales_are_averaged_as_by_hand(image_hw: Size, rows: int | None) -> None:
    rgb = street_scene(1, (160, 320)).image[: image_hw[0], : image_hw[1]]
    viewing = Viewing(protocol="slide", tile=(64, 96), stride=(37, 50), scales=(0.75, 1.0, 1.25), flip=True)
    sizes = [(int(image_hw[0] * scale), int(image_hw[1] * scale)) for scale in viewing.scales]
    expected = reference(rgb, sizes, True, lambda image: slide(image, (64, 96), (37, 50)))
    np.testing.assert_allclose(averaged(rgb, viewing, rows=rows), expected, atol=1e-5)


def test_whole_images_at_several_scales_are_averaged_as_by_hand() -> None:
    rgb = street_scene(2, (128, 224)).image[:101, :203]
    viewing = Viewing(scales=(0.5, 1.0, 1.75), flip=True)
    expected = reference(rgb, [(32, 64), (64, 96), (128, 160)], True, lambda image: whole(image, image.shape[:2]))
    np.testing.assert_allclose(averaged(rgb, viewing, rows=10), expected, atol=1e-5)
    kept = Viewing(protocol="keep-ratio")  # 101x203 fits into 64x96 as 48x96, which is padded to 64x96
    expected = reference(rgb, [(48, 96)], False, lambda image: whole(image, (64, 96)))
    np.testing.assert_allclose(averaged(rgb, kept), expected, atol=1e-5)


def test_mask_and_confidence_are_those_of_the_mean() -> None:
    rgb = street_scene(1, (160, 224)).image
    viewing = Viewing(protocol="slide", scales=(1.0, 1.5))
    views = views_of(rgb.shape[:2], viewing, shape=SHAPE)
    drawn = draw_views(rgb, views, NETWORK, confidence=True, rows=33)
    shares = torch.softmax(torch.from_numpy(averaged(rgb, viewing)), dim=0)
    np.testing.assert_array_equal(drawn.mask, shares.argmax(dim=0))
    assert np.abs(drawn.confidence - (shares.max(dim=0).values * 255).round().numpy()).max() <= 1
    assert draw_views(rgb, views, NETWORK).confidence is None


def test_few_windows_are_held_and_each_is_run_once() -> None:
    rgb = street_scene(1, (320, 96)).image
    shown = []

    def noted(image: np.ndarray) -> np.ndarray:
        shown.append(image)
        return logits_of(image)

    views = views_of((320, 96), Viewing(protocol="slide", stride=(32, 96)), shape=SHAPE)
    for band, _ in enumerate(average_logits(rgb, views, replace(NETWORK, logits_of=noted), rows=32)):
        assert len(shown) == min(band + 1, 9)  # 9 windows, of which the bands of 32 rows need one more each
    assert len(shown) == len(views[0].windows) == 9


def test_seams_agree_where_windows_do() -> None:
    rgb = street_scene(1, (64, 160)).image
    views = views_of((64, 160), Viewing(protocol="slide", stride=(64, 64)), shape=SHAPE)
    flat, torn = Seams(), Seams()
    draw_views(rgb, views, replace(NETWORK, logits_of=lambda image: np.zeros((3, 8, 12), np.float32)), seams=flat)
    assert (flat.pixels, flat.agreement) == (2 * 32 * 64, 1.0)  # two windows share 32 columns of 64 rows
    turns = iter([1.0, -2.0])

    def contrary(image: np.ndarray) -> np.ndarray:
        return np.full((3, 8, 12), next(turns), np.float32) * np.array([1, 0, 0], np.float32)[:, None, None]

    draw_views(rgb, views, replace(NETWORK, logits_of=contrary), seams=torn)
    assert torn.agreement == 0.5  # the mean is -0.5 of class 0: class 1, which only the second window says
    assert Seams().agreement is None


# --- engines ---------------------------------------------------------------------------------------------------------


def test_bundle_and_checkpoint_agree() -> None:
    rgb = street_scene(3, (96, 160)).image
    fields: Any = {"protocol": "slide", "flip": True, "stride": (32, 64)}
    with (
        open_engine(checkpoint(), size=SIZE_HW) as network,
        open_engine(onnx_file("logits")) as engine,
    ):
        expected = network.predict(rgb, **fields)
        assert (engine.predict(rgb, **fields) == expected).mean() > 0.999
        assert (network.predict(rgb) != expected).any()
        with pytest.raises(ConfigError, match=r"protocol='keep-ratio'.*takes 64x96 only; take protocol='slide'"):
            engine.predict(rgb, protocol="keep-ratio")
        with pytest.raises(ConfigError, match=r"tile=32x32: expected a size of the engine, 64x96"):
            engine.predict(rgb, tile=(32, 32))
        with pytest.raises(ShapeError, match=r"expected \(H, W, 3\) uint8"):
            engine.predict(rgb[..., 0], **fields)
        assert (engine.predict(rgb, flip=True) == network.predict(rgb, flip=True)).mean() > 0.999


def test_engine_of_several_sizes_serves_the_others() -> None:
    model, network = small_export("uint8", "dynamic"), cached_small_model()
    rgb = street_scene(3, (96, 160)).image
    with Engine(OrtRunner(model, threads=1), read_facts(model)) as engine:  # 64x64 to 256x320, usually 128x256
        fields: Any = {"protocol": "keep-ratio", "scales": (0.75, 1.0)}
        views = views_of((96, 160), Viewing(**fields), shape=InputShape.static((128, 256)))
        plain = Network(logits_of=engine.logits, info=network.info, upsample=network.config.upsample)
        assert [view.run_hw for view in views] == [(96, 160), (128, 224)]
        np.testing.assert_array_equal(engine.predict(rgb, **fields), draw_views(rgb, views, plain).mask)
        with pytest.raises(ConfigError, match=r"needs a network of 512x864, the engine takes 64x64 to 256x320"):
            engine.predict(rgb, protocol="ade20k")
    masks = select_outputs(model, "mask")
    with Engine(OrtRunner(masks, threads=1), read_facts(masks)) as engine:
        assert engine.predict(rgb, protocol="keep-ratio").shape == (96, 160)  # one view needs no logits
        with pytest.raises(ConfigError, match=r"averaged by their logits.*outputs=\('mask', 'logits'\)"):
            engine.predict(rgb, **fields)


def test_bundle_of_masks_alone_has_one_view() -> None:
    with open_engine(bundle()) as engine, pytest.raises(ConfigError, match=r"gives mask only; build one"):
        engine.predict(street_scene(3, (96, 160)).image, tile=SIZE_HW)
