"""Wrong ways to decode give what they say, written here by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nrd_trt.decode.misread import decode_arrays, decode_misread, describe_channel, misread_orders
from nrd_trt.specs import DecodeSpec
from tests.decode.test_reference import naive_decode
from tests.helpers import random_decode_inputs

SPEC = DecodeSpec(num_classes=3, hidden=5, guidance_channels=7, patch=4, upsample=8)
THETA, GUIDANCE, *_ = random_decode_inputs(SPEC, 1, 1, 1)
X, Y = np.array([0, 2, 4, 6], np.float32), np.array([1, 1.5, 2, 2.5], np.float32)
W0, B0, W1, B1, W2, B2 = (
    slice(0, 45), slice(45, 50), slice(50, 75), slice(75, 80), slice(80, 95), slice(95, 98),
)  # fmt: skip


def joined(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate([part.ravel() for part in parts]).reshape(THETA.shape)


def changed(part: slice, values: np.ndarray | float) -> np.ndarray:
    theta = THETA.copy()
    theta[0, part, 0, 0] = np.ravel(values)
    return theta


def matrix(part: slice, rows: int) -> np.ndarray:
    values: np.ndarray = THETA[0, part, 0, 0].reshape(rows, -1)
    return values


def read_as_transposed(part: slice, rows: int) -> np.ndarray:
    """What stands in the file row by row of the transpose, read row by row of the matrix."""
    flat = THETA[0, part, 0, 0]
    columns = flat.size // rows
    return changed(part, [[flat[column * rows + row] for column in range(columns)] for row in range(rows)])


def test_known_mistakes_are_decoded_as_they_are_named() -> None:
    flat = THETA[0, :, 0, 0]
    w0 = matrix(W0, 5)
    b0, b1, b2 = flat[B0], flat[B1], flat[B2]
    misread = {
        "the coordinates are those of pixel centres, half a step off": (
            THETA, np.array([1, 3, 5, 7]), np.array([1.25, 1.75, 2.25, 2.75]),
        ),
        "the coordinates reach from edge to edge of a patch": (
            THETA, np.array([0, 8 / 3, 16 / 3, 8]), np.array([1, 5 / 3, 7 / 3, 3]),
        ),
        "the coordinates are not normalised by cat_norm": (THETA, np.arange(4) / 4, np.arange(4) / 4),
        "W0 is transposed": (read_as_transposed(W0, 5), X, Y),
        "W1 is transposed": (read_as_transposed(W1, 5), X, Y),
        "W2 is transposed": (read_as_transposed(W2, 3), X, Y),
        "b0 and b1 are exchanged": (changed(B0, b1) + changed(B1, b0) - THETA, X, Y),
        "b0 is not added": (changed(B0, 0), X, Y),
        "b1 is not added": (changed(B1, 0), X, Y),
        "b2 is not added": (changed(B2, 0), X, Y),
        # written weights first: what is read as W0 is W0, as b0 the head of W1, and so on
        "all weights come before all biases": (
            joined(
                flat[W0], flat[W1][:5], np.concatenate([flat[W1][5:], flat[W2][:5]]), flat[W2][5:10],
                np.concatenate([flat[W2][10:], b0, b1]), b2,
            ), X, Y,
        ),
        "x and y are swapped": (THETA, Y, X),
        "W0 takes the guidance before the coordinates": (changed(W0, w0[:, [*range(2, 9), 0, 1]]), X, Y),
    }  # fmt: skip
    found: dict[str, list[np.ndarray]] = {}
    for name, logits in decode_misread(THETA[0], GUIDANCE[0], X, Y, SPEC):
        found.setdefault(name, []).append(logits)
    others = {"every bias comes before its weights", "the layers come in reverse order", "each patch is transposed"}
    assert found.keys() == misread.keys() | others
    for name, (theta, x, y) in misread.items():
        expected = naive_decode(theta, GUIDANCE, x, y, SPEC, "out,in")[0]
        errors = [float(np.abs(logits - expected).max()) for logits in found[name]]
        assert min(errors) <= 1e-4, name
    right = decode_arrays(THETA[0], GUIDANCE[0], X, Y, SPEC)
    np.testing.assert_array_equal(found["each patch is transposed"][0], right.swapaxes(1, 2))  # one patch
    for name, forms in found.items():
        assert min(float(np.abs(logits - right).max()) for logits in forms) > 0.01, name


def test_x_and_y_are_swapped_in_every_place_where_they_can_be() -> None:
    """In the tables, in W0, or along the axes; a network whose axes are alike shows the last one only."""
    forms = [logits for name, logits in decode_misread(THETA[0], GUIDANCE[0], X, Y, SPEC) if "swapped" in name]
    w0 = matrix(W0, 5)
    swapped = changed(W0, w0[:, [1, 0, *range(2, 9)]])
    for theta, x, y in ((THETA, Y, X), (swapped, X, Y), (swapped, Y, X)):
        expected = naive_decode(theta, GUIDANCE, x, y, SPEC, "out,in")[0]
        assert min(float(np.abs(logits - expected).max()) for logits in forms) <= 1e-4


def test_an_order_and_its_inverse_are_one_mistake() -> None:
    orders: dict[str, list[np.ndarray]] = {}
    for name, order in misread_orders(SPEC):
        assert sorted(order.tolist()) == list(range(SPEC.theta_channels))
        orders.setdefault(name, []).append(order)
    assert len(orders["W1 is transposed"]) == 1  # a square matrix
    first, second = orders["W2 is transposed"]
    np.testing.assert_array_equal(first[second], np.arange(SPEC.theta_channels))


@pytest.mark.parametrize(
    ("channel", "said"),
    [(44, "W0"), (45, "b0"), (79, "b1"), (80, "W2 of class 0"), (85, "W2 of class 1"), (97, "b2 of class 2")],
)
def test_channels_of_theta_have_names(channel: int, said: str) -> None:
    assert describe_channel(channel, SPEC) == said
