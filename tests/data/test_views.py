"""Which views and windows there are, against sizes that were computed by hand from mmcv's and mmseg's rules."""

from __future__ import annotations

from typing import Any

import pytest

from nrd_trt.data.views import Viewing, Window, kept_ratio, views_of, windows_of
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.specs import InputShape, Size

SHAPE = InputShape.static((64, 96))


def sizes(image_hw: Size, *, encoder: str = "", **fields: Any) -> list[tuple[tuple[Size, ...], Size]]:
    views = views_of(image_hw, Viewing.of(fields), shape=SHAPE, encoder=encoder)  # type: ignore[arg-type]
    return [(view.steps, view.run_hw) for view in views]


@pytest.mark.parametrize(
    ("image_hw", "bounds_hw", "scale", "expected"),
    [
        ((375, 500), (512, 2048), 1.0, (512, 683)),  # 512 / 375 = 1.36533; 500 of it are 682.67
        ((500, 375), (512, 2048), 1.0, (683, 512)),
        ((512, 2560), (512, 2048), 1.0, (410, 2048)),  # the long side decides: 2048 / 2560 = 0.8, 409.6
        ((375, 500), (520, 520), 1.0, (390, 520)),
        ((375, 500), (512, 2048), 1.75, (896, 1195)),  # 896 / 375 = 2.38933; 1194.67
        ((375, 500), (520, 520), 0.75, (293, 390)),  # 390 / 500 = 0.78; 292.5 and a half is rounded up
    ],
)
def test_kept_ratio_is_mmcvs(image_hw: Size, bounds_hw: Size, scale: float, expected: Size) -> None:
    assert kept_ratio(image_hw, bounds_hw, scale) == expected


def test_presets_are_the_released_pipelines() -> None:
    assert sizes((1024, 2048), protocol="cityscapes") == [(((1024, 2048),), (1024, 2048))]
    assert sizes((375, 500), protocol="ade20k") == [(((512, 683),), (512, 704))]  # padded to 32
    assert sizes((375, 500), protocol="pascal_context") == [(((390, 520),), (416, 544))]
    # AlignedResize: scaled once more, and nothing is padded.
    assert sizes((375, 500), protocol="ade20k", encoder="mit_b1") == [(((512, 683), (512, 704)), (512, 704))]
    assert sizes((375, 500), protocol="ade20k", encoder="mit_b5") == [(((640, 853), (640, 864)), (640, 864))]
    assert sizes((375, 500), protocol="ade20k", encoder="twins_svt_l") == [(((512, 683),), (512, 704))]


def test_scales_and_mirrored_views() -> None:
    assert sizes((50, 70), scales=[0.5, 1.0, 1.5]) == [
        (((32, 64),), (32, 64)),  # 48 lies between 32 and 64, and Python rounds 1.5 to 2
        (((64, 96),), (64, 96)),
        (((96, 128),), (96, 128)),  # 144 is 4.5 times 32
    ]
    views = views_of((50, 70), Viewing(scales=(1.0, 2.0), flip=True), shape=SHAPE)
    assert [(view.size_hw, view.flipped) for view in views] == [
        ((64, 96), False),
        ((64, 96), True),
        ((128, 192), False),
        ((128, 192), True),
    ]
    padded = views_of((50, 70), Viewing(scales=(2.0,)), shape=SHAPE, fit="pad")
    assert [(view.size_hw, view.run_hw) for view in padded] == [((100, 140), (128, 192))]


def test_windows_are_mmsegs() -> None:
    """1024x2048 by 768 and 513: ceil((1024 - 768) / 513) + 1 = 2 rows, ceil((2048 - 768) / 513) + 1 = 4 columns."""
    windows = windows_of((1024, 2048), (768, 768), (513, 513))
    assert [(window.top, window.left) for window in windows] == [
        (top, left) for top in (0, 256) for left in (0, 513, 1026, 1280)
    ]
    assert {(window.height, window.width) for window in windows} == {(768, 768)}
    assert windows_of((40, 96), (64, 96), (42, 64)) == (Window(top=0, left=0, height=40, width=96),)
    assert [window.left for window in windows_of((64, 128), (64, 64), (64, 64))] == [0, 64]  # none twice


def test_tile_asks_for_slide_and_two_thirds() -> None:
    viewing = Viewing.of({"tile": (64, 64)})
    (view,) = views_of((64, 150), viewing, shape=SHAPE)
    assert (viewing.protocol, view.run_hw) == ("slide", (64, 64))
    assert [window.left for window in view.windows] == [0, 42, 84, 86]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"protocol": "coco"}, r"protocol='coco': expected one of 'whole', .*'pascal_context'"),
        ({"scales": (1.0, 0.5)}, "in rising order"),
        ({"scales": (1.0, 1.0)}, "each number once"),
        ({"scales": (-0.5, 1.0)}, "expected numbers above 0"),
        ({"scales": ()}, "expected numbers above 0"),
        ({"scales": "1"}, "expected numbers above 0"),
        ({"scales": (float("nan"),)}, "expected numbers above 0"),
        ({"tile": (64, 64), "stride": (65, 64)}, r"stride=65x64: expected at most the window's 64x64"),
        ({"protocol": "slide", "stride": (0, 64)}, r"stride=0x64: expected 1 or more"),
        ({"protocol": "slide", "stride": 64}, r"stride=64: expected height and width"),
        ({"protocol": "whole", "tile": (64, 64)}, r"expected protocol='slide' where tile= or stride="),
        ({"stride": (64, 64)}, r"expected protocol='slide'"),
    ],
)
def test_what_is_no_protocol_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Viewing.of(fields)


def test_what_only_an_image_or_a_network_shows_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"tile=100x64.*96x64"):
        Viewing(protocol="slide", tile=(100, 64))
    with pytest.raises(ConfigError, match="stride=96x96: expected at most the window's 64x96"):
        views_of((200, 200), Viewing(protocol="slide", stride=(96, 96)), shape=SHAPE)
    with pytest.raises(ConfigError, match="scales=1000: expected at most 89 million pixels"):
        views_of((200, 200), Viewing(scales=(1000.0,)), shape=SHAPE)
