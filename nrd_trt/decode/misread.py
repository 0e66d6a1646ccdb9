"""Ways to read theta, the coordinates and the patches wrongly, to tell which of them a wrong decode follows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from nrd_trt.decode.reference import patch_decode
from nrd_trt.specs import DecodeSpec

_SWAPPED = "x and y are swapped"
_SECTIONS = ("W0", "b0", "W1", "b1", "W2", "b2")


@torch.inference_mode()
def decode_arrays(
    theta: np.ndarray, guidance: np.ndarray, x_table: np.ndarray, y_table: np.ndarray, spec: DecodeSpec
) -> np.ndarray:
    """Decode one image as `patch_decode` does.

    Args:
        theta: ``(P, h, w) float32``.
        guidance: ``(m, f·h, f·w) float32``, normalised.
        x_table: ``(f,) float32``, of the columns.
        y_table: ``(f,) float32``, of the rows.
        spec: Build-time constants.

    Returns:
        Logits ``(K, f·h, f·w) float32``.
    """
    arrays = (theta, guidance, x_table, y_table)
    weights, details, x, y = (torch.from_numpy(np.array(array, np.float32, order="C")) for array in arrays)
    return patch_decode(weights[None], details[None], x, y, spec)[0].numpy()


def decode_misread(
    theta: np.ndarray, guidance: np.ndarray, x_table: np.ndarray, y_table: np.ndarray, spec: DecodeSpec
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``(what is misread, logits (K, f·h, f·w))`` for each known mistake; some have more than one form.

    Args:
        theta: As for `decode_arrays`, as all that follow.
        guidance: See there.
        x_table: See there.
        y_table: See there.
        spec: See there.
    """
    x, y = np.asarray(x_table, np.float32), np.asarray(y_table, np.float32)
    for mistake, tables in _misread_tables(x, y).items():
        yield mistake, decode_arrays(theta, guidance, *tables, spec)
    for mistake, order in misread_orders(spec):
        yield mistake, decode_arrays(theta[order], guidance, x, y, spec)
        if mistake == _SWAPPED:  # in the tables and in W0: x runs along the rows
            yield mistake, decode_arrays(theta[order], guidance, y, x, spec)
    for name, section in _section_slices(spec).items():
        if name.startswith("b"):
            without = theta.copy()
            without[section] = 0
            yield f"{name} is not added", decode_arrays(without, guidance, x, y, spec)
    yield "each patch is transposed", _transposed_patches(decode_arrays(theta, guidance, x, y, spec), spec.patch)


def misread_orders(spec: DecodeSpec) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``(what is misread, (P,) channels of theta in the order in which they are read)``.

    An order and its inverse are one mistake, made by who reads or by who writes.
    """
    parts = _section_slices(spec)
    d, m = spec.hidden, spec.guidance_channels
    channels = np.arange(spec.theta_channels)

    def written_as(names: tuple[str, ...]) -> np.ndarray:
        """Where each channel stands in a layout with the sections in another order."""
        return np.argsort(np.concatenate([channels[parts[name]] for name in names]))

    def in_w0(columns: list[int]) -> np.ndarray:
        order = channels.copy()
        order[parts["W0"]] = order[parts["W0"]].reshape(d, 2 + m)[:, columns].ravel()
        return order

    guidance = list(range(2, 2 + m))
    mistakes = [(f"{name} is transposed", order) for name, order in transposed_channels(spec).items()]
    mistakes += [
        ("b0 and b1 are exchanged", written_as(("W0", "b1", "W1", "b0", "W2", "b2"))),
        ("all weights come before all biases", written_as(("W0", "W1", "W2", "b0", "b1", "b2"))),
        ("every bias comes before its weights", written_as(("b0", "W0", "b1", "W1", "b2", "W2"))),
        ("the layers come in reverse order", written_as(("W2", "b2", "W1", "b1", "W0", "b0"))),
        (_SWAPPED, in_w0([1, 0, *guidance])),
        ("W0 takes the guidance before the coordinates", in_w0([*guidance, 0, 1])),
    ]
    for mistake, order in mistakes:
        yield mistake, order
        if not np.array_equal(inverse := np.argsort(order), order):
            yield mistake, inverse


def transposed_channels(spec: DecodeSpec) -> dict[str, np.ndarray]:
    """Return, for each weight matrix of theta, the ``(P,)`` channels in the order of its transpose."""
    d, k, m = spec.hidden, spec.num_classes, spec.guidance_channels
    parts, found = _section_slices(spec), {}
    for name, (rows, columns) in {"W0": (d, 2 + m), "W1": (d, d), "W2": (k, d)}.items():
        order = np.arange(spec.theta_channels)
        order[parts[name]] = order[parts[name]].reshape(columns, rows).T.ravel()
        found[name] = order
    return found


def describe_channel(channel: int, spec: DecodeSpec) -> str:
    """Tell what a channel of theta holds, e.g. ``"W2 of class 4"``, ``"b1"``."""
    for name, part in _section_slices(spec).items():
        if part.start <= channel < part.stop:
            place = channel - part.start
            owner = {"W2": f" of class {place // spec.hidden}", "b2": f" of class {place}"}
            return name + owner.get(name, "")
    raise IndexError(channel)


def _section_slices(spec: DecodeSpec) -> dict[str, slice]:
    stops = np.cumsum(spec.sections).tolist()
    return {name: slice(stop - size, stop) for name, size, stop in zip(_SECTIONS, spec.sections, stops, strict=True)}


def _misread_tables(x: np.ndarray, y: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the columns' and the rows' table by mistake."""
    patch = len(x)
    if patch == 1:
        return {_SWAPPED: (y, x)}
    wide = patch / (patch - 1)
    steps = np.arange(patch, dtype=np.float32) / patch
    return {
        "the coordinates are those of pixel centres, half a step off": (x + (x[1] - x[0]) / 2, y + (y[1] - y[0]) / 2),
        "the coordinates reach from edge to edge of a patch": (x[0] + (x - x[0]) * wide, y[0] + (y - y[0]) * wide),
        "the coordinates are not normalised by cat_norm": (steps, steps),
        _SWAPPED: (y, x),
    }


def _transposed_patches(logits: np.ndarray, patch: int) -> np.ndarray:
    """Swap rows and columns within every patch of ``(K, f·h, f·w)``."""
    classes, height, width = logits.shape
    tiles = logits.reshape(classes, height // patch, patch, width // patch, patch)
    return tiles.transpose(0, 1, 4, 3, 2).reshape(logits.shape)
