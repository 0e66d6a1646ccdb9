"""What differences look like, on small arrays: each is named as what it is, and what is none of them is not named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nrd_trt.decode.reference import upsample
from nrd_trt.program import Operation, Program
from nrd_trt.validation.drawing import describe_drawing
from nrd_trt.validation.hints import describe_channels, describe_pixels, describe_tables
from nrd_trt.validation.structure_constants import describe_constant, readings_of

RNG = np.random.default_rng(5)
TENSOR = RNG.standard_normal((6, 5, 7)) * np.array([1, 2, 3, 4, 5, 0.001])[:, None, None]
PICTURE = RNG.standard_normal((3, 9, 9))


def test_inputs_that_differ_in_a_known_way_or_in_none() -> None:
    swapped, permuted, scaled, constant, unknown = (
        str(describe_pixels(PICTURE, got))
        for got in (
            PICTURE[::-1] * 1.02 + 0.3,
            PICTURE[[1, 2, 0]],
            PICTURE * 2 + 1,
            PICTURE * np.array([1, 0, 1])[:, None, None],
            PICTURE[:, ::-1],
        )
    )
    assert swapped.startswith("red and blue are swapped (RGB and BGR)")
    assert permuted == "the channels are permuted: channels 0, 1, 2 of the file are 1, 2, 0 of PyTorch"
    assert "another mean or standard deviation: channels 0, 1, 2 of the file are 2.000·x +1.000" in scaled
    assert constant == "channel 1 is constant (0)"
    assert unknown == "None"
    grey = np.broadcast_to(PICTURE[:1], PICTURE.shape)
    assert describe_pixels(grey, grey * 2) is None  # of equal channels nobody can tell the order


def test_channels_that_are_moved_scaled_raised_or_constant() -> None:
    rolled = TENSOR[[0, 2, 1, 3, 4, 5]]
    assert describe_channels(TENSOR, TENSOR, 0.01) == []
    assert describe_channels(TENSOR, rolled, 0.01) == ["2 channels are permuted, from channel 1 on"]
    known = [("so it is", np.array([0, 2, 1, 3, 4, 5])), ("otherwise", np.array([1, 0, 2, 3, 4, 5]))]
    assert describe_channels(TENSOR, rolled, 0.01, known_orders=known) == ["so it is"]
    changed = TENSOR.copy()
    changed[3] = 2 * changed[3] + 5
    assert describe_channels(TENSOR, changed, 0.01) == ["channel 3 is scaled by 2.00, up to an offset"]
    changed = TENSOR.copy()
    changed[[1, 4]] = [[[0]], [[3]]]
    assert describe_channels(TENSOR, changed, 0.01) == ["channels 1, 4 are constant (0 to 3)"]
    changed = TENSOR.copy()
    changed[2] += 8
    (said,) = describe_channels(TENSOR, changed, 0.01, names=list("abcdef"))
    assert said == "channel 2 (c) is raised by 8"
    assert describe_channels(TENSOR, RNG.standard_normal(TENSOR.shape), 0.01) == []
    changed[0, 0, 0] = np.nan
    assert describe_channels(TENSOR, changed, 0.01) == ["1 values are not finite"]


def test_a_description_has_to_leave_much_less_than_it_explains() -> None:
    """Within the tolerance of int8 many things look alike: a channel that is clipped is not one that is scaled."""
    clipped = np.minimum(TENSOR, 0.5)
    assert describe_channels(TENSOR, clipped, 0.3, rounding=0.1) == []
    alike = TENSOR.copy()
    alike[4] = 1.005 * alike[3]
    assert describe_channels(alike, alike[[0, 3, 2, 1, 4, 5]], 0.01) == []  # channel 1 is 3 or 4: who can tell


def test_constant_channels_are_never_permuted() -> None:
    """One zero channel is like every quiet one."""
    quiet = TENSOR * np.array([1, 1e-4, 1e-4, 1e-4, 1, 1])[:, None, None]
    changed = quiet.copy()
    changed[0] = 0
    assert describe_channels(quiet, changed, 0.01) == ["channel 0 is constant (0)"]


def test_coordinates_are_off_in_steps() -> None:
    x, y = np.arange(8) / 8 * 0.3 + 1, np.arange(8) / 8 * -2.0
    said = describe_tables((x, y), {"node N": (x, y), "function F": (x + 0.3 / 16, y)})
    assert said == ["the coordinates of function F are off by +0.50 of a step along x and +0.00 along y"]
    assert describe_tables((x, y), {"node N": (x, y)}) == []
    assert describe_tables((x, y), {"node N": (y, x)}) == ["the coordinates of node N have x and y swapped"]
    edges = x[0] + (x - x[0]) * 8 / 7, y
    assert describe_tables((x, y), {"N": edges}) == [
        "the coordinates of N are others, by up to 1.00 of a step along x and 0.00 along y"
    ]


# --- weights ---------------------------------------------------------------------------------------------------------

WEIGHT = RNG.standard_normal((6, 4, 3, 3)).astype(np.float32)


def said_of(values: np.ndarray, loss: float = 0.0, **others: np.ndarray) -> str | None:
    operations = (
        Operation(name=name, kind="Conv", operands=("pixels", array), labels=("input", "weight"))
        for name, array in {"w": WEIGHT, **others}.items()
    )
    operation, *_ = program = tuple(operations)
    found = readings_of(Program(operations=program, results={}), None)(operation, "weight")
    found = replace(found, orders=(("the rows go backwards", np.arange(6)[::-1]),))
    return describe_constant(values, WEIGHT, max(loss, 1e-6), found)


def with_rows(rows: object, value: object) -> np.ndarray:
    changed = WEIGHT.copy()
    changed[rows] = value  # type: ignore[index]
    return changed


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (WEIGHT, None),
        (WEIGHT * 2, "is ×2 of the expected"),
        (with_rows(3, WEIGHT[3] * 0.5), "differs in row 3 of 6: ×0.5 there"),
        (WEIGHT * np.array([1, 2, 3, 1, 1, 1])[:, None, None, None], "differs in rows 1–2 of 6: ×2 to ×3 there"),
        (WEIGHT * 0, "is zero"),
        (with_rows(np.s_[2:4], 0), "differs in rows 2–3 of 6: zero there"),
        (with_rows(np.s_[:, 1], 0), "is zero in input channel 1 of 4"),
        (WEIGHT[::-1], "stands as if the rows go backwards"),
        (WEIGHT[[0, 1, 3, 2, 4, 5]], "differs in rows 2–3 of 6: in another order"),
        (WEIGHT.swapaxes(2, 3), "has its kernels transposed"),
        (WEIGHT[..., ::-1, ::-1], "has its kernels mirrored"),
        (WEIGHT + 1, "differs in rows 0–5 of 6, by up to 1 "),
        (with_rows((0, 0, 0, 0), np.nan), "has 1 values that are not finite"),
    ],
)
def test_weights_that_are_not_the_checkpoints(values: np.ndarray, said: str | None) -> None:
    got = said_of(values)
    assert got is None if said is None else got is not None and got.startswith(said)


def test_weights_are_held_against_what_their_type_may_lose() -> None:
    noisy = WEIGHT + RNG.uniform(-0.05, 0.05, WEIGHT.shape)
    assert said_of(noisy, loss=0.05) is None
    assert str(said_of(noisy, loss=0.005)).startswith("differs in rows 0–5 of 6, by up to 0.04")


def test_weights_of_another_layer_are_named_where_there_is_only_one() -> None:
    other = RNG.standard_normal(WEIGHT.shape)
    assert said_of(other, v=other, u=WEIGHT) == "is that of `v`"
    assert said_of(other, v=other, u=other) != said_of(other, v=other)  # two layers with the same weights


# --- masks -----------------------------------------------------------------------------------------------------------

NAMES = list("abcdef")
LOGITS = RNG.standard_normal((6, 12, 10)).astype(np.float32)


def enlarged(logits: np.ndarray) -> np.ndarray:
    return upsample(torch.from_numpy(logits)[None], 4)[0].numpy()


def right_mask() -> np.ndarray:
    mask: np.ndarray = enlarged(LOGITS).argmax(0)
    return mask


def test_a_mask_that_is_drawn_rightly_has_no_other_way() -> None:
    assert describe_drawing(LOGITS, right_mask(), NAMES) == []


def test_nearest_has_its_rule_and_figures() -> None:
    mask = LOGITS.argmax(0).repeat(4, 0).repeat(4, 1)
    (said,) = describe_drawing(LOGITS, mask, NAMES)
    assert said.startswith("the logits are enlarged by nearest (half_pixel round_prefer_floor or ")
    assert "asymmetric floor" in said
    assert "expected linear (half_pixel or pytorch_half_pixel): drawn so, 0.00% of the pixels differ" in said
    renamed, numbers = describe_drawing(LOGITS, mask + 1, NAMES)
    assert "the logits are enlarged by nearest" in renamed
    assert numbers.startswith("labels are off by +1: a (0) as 1, b (1) as 2")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([1, 2, 3, 4, 5, 6], "labels are off by +1: a (0) as 1, b (1) as 2, c (2) as 3, d (3) as 4 and 2 more"),
        ([255, 0, 1, 2, 3, 4], "labels are off by -1: a (0) as 255"),
        ([0, 2, 1, 3, 4, 5], "labels are permuted: b (1) as 2, c (2) as 1; that explains 100.00% of the pixels"),
        ([0, 1, 1, 3, 4, 5], "classes are drawn as others: c (2) as 1"),
        ([0, 9, 2, 3, 4, 5], "classes are drawn under other numbers: b (1) as 9"),
    ],
)
def test_classes_under_other_numbers(table: list[int], said: str) -> None:
    (got,) = describe_drawing(LOGITS, np.array(table)[right_mask()], NAMES)
    assert got.startswith(said)


def test_a_mask_that_nothing_explains_is_left_alone() -> None:
    mask = right_mask()
    mask[:10] = RNG.integers(0, 6, mask[:10].shape)
    assert describe_drawing(LOGITS, mask, NAMES) == []
    lost = np.where(right_mask() == 2, RNG.integers(3, 6, mask.shape), right_mask())  # a class that goes to several
    assert describe_drawing(LOGITS, lost, NAMES) == []


def test_ties_that_go_to_the_highest_class_are_named() -> None:
    logits = LOGITS.copy()
    logits[5] = logits[2]
    best = enlarged(logits)
    lowest, highest = best.argmax(0), 5 - best[::-1].argmax(0)
    assert describe_drawing(logits, lowest, NAMES) == []
    (said,) = describe_drawing(logits, highest, NAMES)
    count = int((lowest != highest).sum())
    assert said == f"ties go to the highest class, expected the lowest: at all {count} pixels with equal best logits"
