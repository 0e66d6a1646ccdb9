"""Sizes, shapes and facts: parsers, ranges, messages."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from nrd_trt.errors import ConfigError, NrdTrtError, ShapeError
from nrd_trt.specs import DecodeSpec, InputShape, ModelInfo, Range, TensorSpec, nearest_size, parse_size


@pytest.mark.parametrize(("text", "size"), [("512x1024", (512, 1024)), ("32X64", (32, 64)), (" 96x32 ", (96, 32))])
def test_parse_size(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "512", "512x", "x512", "512x1024x3", "-32x32", "512*512", "a32x32", "32.0x32"])
def test_other_texts_are_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HEIGHTxWIDTH"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "nearest"), [("100x200", "96x192"), ("0x64", "32x64"), ("1x1", "32x32"), ("500x1000", "512x992")]
)
def test_sizes_off_the_grid_name_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(ShapeError, match=rf"{text}.*multiples of 32.*nearest valid size is {nearest}\."):
        parse_size(text)


def test_nearest_size_is_nearest() -> None:
    for side in range(17, 300):
        near = nearest_size((side, side))[0]
        assert near % 32 == 0
        assert abs(near - side) == min(abs(candidate - side) for candidate in range(32, 400, 32))


@pytest.mark.parametrize("values", [(0, 1, 1), (2, 1, 3), (1, 3, 2), (-1, 1, 1)])
def test_range_refuses(values: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="1 <= MIN <= OPT <= MAX"):
        Range(min=values[0], opt=values[1], max=values[2])


def parse(**given: Any) -> InputShape:
    return InputShape.parse(**{"size": None, "dynamic": None, "batch": "1", "default": (512, 1024), **given})


def triples(shape: InputShape) -> list[tuple[int, int, int]]:
    return [(extent.min, extent.opt, extent.max) for extent in (shape.batch, shape.height, shape.width)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [(1, 1, 1), (512, 512, 512), (1024, 1024, 1024)]),
        ({"size": "64x96", "batch": "4"}, [(4, 4, 4), (64, 64, 64), (96, 96, 96)]),
        ({"dynamic": "32x64:64x128:96x256", "batch": "1:2:8"}, [(1, 2, 8), (32, 64, 96), (64, 128, 256)]),
    ],
)
def test_parse_shape(given: dict[str, str], expected: list[tuple[int, int, int]]) -> None:
    shape = parse(**given)
    assert triples(shape) == expected
    assert shape.opt_hw == (expected[1][1], expected[2][1])
    assert InputShape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "64x64", "dynamic": "32x32:32x32:64x64"}, "exclude each other"),
        ({"dynamic": "32x32:64x64"}, "expected MIN:OPT:MAX"),
        ({"dynamic": "64x64:32x32:96x96"}, "MIN <= OPT <= MAX"),
        ({"dynamic": "33x32:64x64:96x96"}, "multiples of 32"),
        ({"batch": "0"}, "1 <= MIN"),
        ({"batch": "1:2"}, "expected N or MIN:OPT:MAX"),
        ({"batch": "two"}, "expected N or MIN:OPT:MAX"),
        ({"batch": "4:2:8"}, "MIN <= OPT <= MAX"),
    ],
)
def test_parse_shape_refuses(given: dict[str, str], message: str) -> None:
    with pytest.raises(NrdTrtError, match=message):
        parse(**given)


def test_covers() -> None:
    shape = parse(dynamic="32x64:64x128:96x256")
    inside, outside = [(32, 64), (96, 256), (50, 100)], [(31, 64), (32, 63), (97, 64), (96, 257)]
    assert all(map(shape.covers, inside))
    assert not any(map(shape.covers, outside))


@pytest.mark.parametrize(
    ("array", "fits"),
    [
        (np.zeros((1, 4, 3), np.uint8), True),
        (np.zeros((9, 4, 3), np.uint8), True),
        (np.zeros((1, 5, 3), np.uint8), False),
        (np.zeros((1, 4, 3), np.int8), False),
        (np.zeros((1, 4), np.uint8), False),
        (np.zeros((1, 4, 3, 1), np.uint8), False),
    ],
)
def test_tensor_spec(array: np.ndarray, fits: bool) -> None:
    spec = TensorSpec(name="image", dtype=np.dtype(np.uint8), shape=(None, 4, 3))
    if fits:
        spec.check(array)
        return
    with pytest.raises(ShapeError, match=rf"'image': expected uint8 any×4×3, got {array.dtype}"):
        spec.check(array)


@pytest.mark.parametrize(("classes", "parameters"), [(19, 899), (59, 1579), (60, 1596), (150, 3126), (256, 4928)])
def test_theta_channels_of_the_released_models(classes: int, parameters: int) -> None:
    spec = DecodeSpec(num_classes=classes)
    assert spec.theta_channels == parameters
    assert spec.sections == (288, 16, 256, 16, 16 * classes, classes)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": 1}, {"num_classes": 257}, {"hidden": 0}, {"guidance_channels": 0}, {"patch": 16},
        {"upsample": 2},
    ],
    ids=str,
)  # fmt: skip
def test_decode_spec_refuses(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        DecodeSpec(**{"num_classes": 19, **fields})


INFO: dict[str, Any] = {"class_names": ("a", "b"), "palette": ((0, 1, 2), (3, 4, 5))}


def test_model_info_round_trip() -> None:
    info = ModelInfo(**INFO, mean=(1.5, 2.5, 3.5), channel_order="bgr", ignore_index=1, size_hw=(64, 96))
    assert ModelInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"palette": ((0, 0, 0),)}, "palette: expected 2 colours, got 1"),
        ({"mean": (1.0,)}, "three numbers"),
        ({"std": (1.0, 1.0)}, "three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std > 0"),
        ({"channel_order": "grb"}, "channel_order.*'grb'"),
    ],
)
def test_model_info_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelInfo(**{**INFO, **fields})
