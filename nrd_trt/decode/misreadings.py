"""Ways to read theta and the coordinates wrongly, to tell which of them a wrong decode follows. torch only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nrd_trt.decode.reference import patch_decode
from nrd_trt.specs import DecodeSpec


@torch.inference_mode()
def decode_misread(
    theta: np.ndarray, guidance: np.ndarray, x_table: np.ndarray, y_table: np.ndarray, spec: DecodeSpec
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``(what is misread, logits (K, f·h, f·w))`` for each known mistake.

    Args:
        theta: ``(P, h, w) float32``.
        guidance: ``(m, f·h, f·w) float32``, normalised.
        x_table: ``(f,) float32``, of the columns.
        y_table: ``(f,) float32``, of the rows.
        spec: Build-time constants.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (theta, guidance, x_table, y_table)]
    weights, details, x, y = tensors[0][None], tensors[1][None], tensors[2], tensors[3]
    half_x, half_y = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2

    def decoded(read: Tensor, columns: Tensor, rows: Tensor) -> np.ndarray:
        return patch_decode(read, details, columns, rows, spec)[0].numpy()

    yield "the coordinates are those of pixel centres, half a step off", decoded(weights, x + half_x, y + half_y)
    yield "x and y are swapped", decoded(weights, y, x)
    for name, channels in transposed_channels(spec).items():
        yield f"{name} is transposed", decoded(weights[:, torch.from_numpy(channels)], x, y)


def transposed_channels(spec: DecodeSpec) -> dict[str, np.ndarray]:
    """Return, for each weight matrix of theta, the ``(P,)`` channels in the order of its transpose."""
    w0, b0, w1, b1, *_ = spec.sections
    d, k, m = spec.hidden, spec.num_classes, spec.guidance_channels
    starts = {"W0": (0, d, 2 + m), "W1": (w0 + b0, d, d), "W2": (w0 + b0 + w1 + b1, k, d)}
    found = {}
    for name, (start, rows, columns) in starts.items():
        order = np.arange(spec.theta_channels)
        stop = start + rows * columns
        order[start:stop] = order[start:stop].reshape(columns, rows).T.ravel()
        found[name] = order
    return found
