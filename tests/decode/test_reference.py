"""The per-patch decode against a loop over single pixels that shares no code with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nrd_trt.decode.reference import patch_decode, upsample
from nrd_trt.errors import ShapeError
from nrd_trt.specs import DecodeSpec
from tests.helpers import random_decode_inputs

SPECS = [  # odd K, d and m; every f
    DecodeSpec(num_classes=3, hidden=5, guidance_channels=7, patch=4, upsample=8),
    DecodeSpec(num_classes=19, hidden=16, guidance_channels=16),
    DecodeSpec(num_classes=7, hidden=3, guidance_channels=1, patch=16, upsample=2),
    DecodeSpec(num_classes=2, hidden=1, guidance_channels=2, patch=2, upsample=16),
    DecodeSpec(num_classes=5, hidden=9, guidance_channels=3, patch=1, upsample=32),
]


def naive_decode(
    theta: np.ndarray, guidance: np.ndarray, x_table: np.ndarray, y_table: np.ndarray, spec: DecodeSpec, order: str
) -> np.ndarray:
    """Decode one pixel at a time in float64, x before y; `order` is how a weight matrix lies in theta."""
    f, layers = spec.patch, (spec.hidden, spec.hidden, spec.num_classes)
    batch, _, height, width = guidance.shape
    result = np.empty((batch, spec.num_classes, height, width))
    for b in range(batch):
        for row in range(height):
            for column in range(width):
                parameters = iter(theta[b, :, row // f, column // f].astype(np.float64))
                values = [x_table[column % f], y_table[row % f], *guidance[b, :, row, column]]
                for layer, outputs in enumerate(layers):
                    inputs = len(values)
                    weights = [next(parameters) for _ in range(inputs * outputs)]
                    biases = [next(parameters) for _ in range(outputs)]
                    sums = []
                    for o in range(outputs):
                        at = [o * inputs + i if order == "out,in" else i * outputs + o for i in range(inputs)]
                        sums.append(biases[o] + sum(weights[n] * float(v) for n, v in zip(at, values, strict=True)))
                    values = [max(value, 0.0) for value in sums] if layer < 2 else sums
                assert next(parameters, None) is None
                result[b, :, row, column] = values
    return result


def decode(arrays: tuple[np.ndarray, ...], spec: DecodeSpec) -> np.ndarray:
    theta, guidance, x_table, y_table = (torch.from_numpy(array.astype(np.float64)) for array in arrays)
    return patch_decode(theta, guidance, x_table, y_table, spec).numpy()


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"K{s.num_classes}d{s.hidden}m{s.guidance_channels}f{s.patch}")
def test_equals_the_loop_over_pixels(spec: DecodeSpec) -> None:
    arrays = random_decode_inputs(spec, 2, 1, 2 if spec.patch < 16 else 1)
    got = decode(arrays, spec)
    np.testing.assert_allclose(got, naive_decode(*arrays, spec, "out,in"), rtol=0, atol=1e-12)
    if spec.hidden > 1:  # the control: the other reading of the weights must not pass
        assert np.abs(got - naive_decode(*arrays, spec, "in,out")).max() > 0.1


def test_float32_stays_float32_and_near_float64() -> None:
    spec = SPECS[1]
    arrays = random_decode_inputs(spec, 1, 2, 2)
    single = patch_decode(*map(torch.from_numpy, arrays), spec)
    assert single.dtype == torch.float32
    exact = decode(arrays, spec)
    assert np.abs(single.numpy() - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("theta", "guidance"),
    [((1, 763, 2, 2), (1, 16, 16, 24)), ((1, 762, 2, 2), (1, 16, 16, 16)), ((2, 763, 2, 2), (1, 16, 16, 16))],
)
def test_wrong_shapes_are_refused(theta: tuple[int, ...], guidance: tuple[int, ...]) -> None:
    steps = torch.zeros(8)
    with pytest.raises(ShapeError, match="expected theta"):
        patch_decode(torch.zeros(theta), torch.zeros(guidance), steps, steps, DecodeSpec(num_classes=11))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_upsample_is_half_pixel_bilinear(scale: int) -> None:
    """Against the formula, one output pixel at a time."""
    source = np.random.default_rng(0).standard_normal((3, 5))
    got = upsample(torch.from_numpy(source)[None, None], scale)[0, 0].numpy()

    def taps(n: int, size: int) -> tuple[int, int, float]:
        at = max((n + 0.5) / scale - 0.5, 0.0)
        low = min(int(at), size - 1)
        return low, min(low + 1, size - 1), at - low

    expected = np.empty((3 * scale, 5 * scale))
    for row in range(3 * scale):
        y0, y1, b = taps(row, 3)
        for column in range(5 * scale):
            x0, x1, a = taps(column, 5)
            upper, lower = ((1 - a) * source[y, x0] + a * source[y, x1] for y in (y0, y1))
            expected[row, column] = (1 - b) * upper + b * lower
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
