"""Sizes, shapes and facts: ranges and messages."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
import pytest

from nrd_trt.errors import ConfigError, NrdTrtError, ShapeError
from nrd_trt.specs import DecodeSpec, InputShape, ModelInfo, TensorSpec, check_size, nearest_size


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((100, 200), "96x192"), ((0, 64), "32x64"), ((1, 1), "32x32"), ((500, 1000), "512x992"), ((64, -1), "64x32")],
)
def test_sizes_off_the_grid_name_the_nearest(size: tuple[int, int], nearest: str) -> None:
    got = f"{size[0]}x{size[1]}"
    with pytest.raises(ShapeError, match=rf"^size={got}: .*multiples of 32; the nearest valid size is {nearest}\.$"):
        check_size(size, what="size=")


@pytest.mark.parametrize("value", ["64x64", (64,), (64, 64, 3), (64.0, 64), 64, None])
def test_other_values_are_no_size(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^size=.*: expected height and width such as \(512, 1024\)\.$"):
        check_size(value, what="size=")


def test_nearest_size_is_nearest() -> None:
    for side in range(17, 300):
        near = nearest_size((side, side))[0]
        assert near % 32 == 0
        assert abs(near - side) == min(abs(candidate - side) for candidate in range(32, 400, 32))


def shape_of(**given: Any) -> InputShape:
    return InputShape.of(**given, default=(512, 1024))


def triples(shape: InputShape) -> list[tuple[int, int, int]]:
    return [(extent.min, extent.opt, extent.max) for extent in (shape.batch, shape.height, shape.width)]


RANGE = ((32, 64), (64, 128), (96, 256))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [(1, 1, 1), (512, 512, 512), (1024, 1024, 1024)]),
        ({"size": (64, 96), "batch": 4}, [(4, 4, 4), (64, 64, 64), (96, 96, 96)]),
        ({"size": [64, 96]}, [(1, 1, 1), (64, 64, 64), (96, 96, 96)]),
        ({"dynamic": RANGE, "batch": (1, 2, 8)}, [(1, 2, 8), (32, 64, 96), (64, 128, 256)]),
    ],
)
def test_shape(given: dict[str, Any], expected: list[tuple[int, int, int]]) -> None:
    shape = shape_of(**given)
    assert triples(shape) == expected
    assert shape.opt_hw == (expected[1][1], expected[2][1])
    assert msgspec.convert(json.loads(json.dumps(asdict(shape))), InputShape) == shape


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": (64, 64), "dynamic": RANGE}, "^size= and dynamic= exclude each other"),
        ({"dynamic": RANGE[:2]}, "^dynamic=.*expected three sizes"),
        ({"dynamic": "32x64:64x128:96x256"}, "^dynamic=.*expected three sizes"),
        ({"dynamic": ((64, 64), (32, 32), (96, 96))}, "MIN <= OPT <= MAX"),
        ({"dynamic": ((33, 32), (64, 64), (96, 96))}, "^dynamic=33x32: .*multiples of 32"),
        ({"batch": 0}, "1 <= MIN"),
        ({"batch": (1, 2)}, r"^batch=\(1, 2\): expected N or \(MIN, OPT, MAX\)"),
        ({"batch": "2"}, "^batch='2': expected N"),
        *(({"batch": batch}, "1 <= MIN <= OPT <= MAX") for batch in ((4, 2, 8), (1, 3, 2), (0, 1, 1), (-1, 1, 1))),
    ],
)
def test_shape_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(NrdTrtError, match=message):
        shape_of(**given)


def test_covers() -> None:
    shape = shape_of(dynamic=RANGE)
    inside, outside = [(32, 64), (96, 256), (50, 100)], [(31, 64), (32, 63), (97, 64), (96, 257)]
    assert all(map(shape.covers, inside))
    assert not any(map(shape.covers, outside))


def test_tensor_spec() -> None:
    spec = TensorSpec(name="image", dtype=np.dtype(np.uint8), shape=(None, 4, 3))
    for batch in (1, 9):
        spec.check(np.zeros((batch, 4, 3), np.uint8))
    for shape, dtype in (((1, 5, 3), np.uint8), ((1, 4, 3), np.int8), ((1, 4), np.uint8), ((1, 4, 3, 1), np.uint8)):
        with pytest.raises(ShapeError, match=rf"'image': expected uint8 any×4×3, got {np.dtype(dtype)}"):
            spec.check(np.zeros(shape, dtype))


@pytest.mark.parametrize(("classes", "parameters"), [(19, 899), (59, 1579), (60, 1596), (150, 3126), (256, 4928)])
def test_theta_channels_of_the_released_models(classes: int, parameters: int) -> None:
    spec = DecodeSpec(num_classes=classes)
    assert spec.theta_channels == parameters
    assert spec.sections == (288, 16, 256, 16, 16 * classes, classes)


@pytest.mark.parametrize(
    "fields",
    [{"num_classes": 1}, {"num_classes": 257}, {"hidden": 0}, {"guidance_channels": 0}, {"patch": 16}, {"upsample": 2}],
    ids=str,
)
def test_decode_spec_refuses(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        DecodeSpec(**{"num_classes": 19, **fields})


INFO: dict[str, Any] = {"class_names": ("a", "b"), "palette": ((0, 1, 2), (3, 4, 5))}


def test_model_info_round_trip() -> None:
    info = ModelInfo(**INFO, mean=(1.5, 2.5, 3.5), channel_order="bgr", ignore_index=1, size_hw=(64, 96))
    assert msgspec.convert(json.loads(json.dumps(asdict(info))), ModelInfo) == info


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
