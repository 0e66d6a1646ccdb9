"""How a mask was drawn from its logits, found by drawing it in every known way. NumPy only.

The right way enlarges by ``linear (half_pixel)`` and takes the class of the largest logit, the lowest of equal ones.
Another one is named only where it gives the mask, clearly better than the right one and than every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nrd_trt.validation.stages import CLEARLY

_ROUNDING = 2e-3
"""Share of the pixels that another order of summation may turn, many times over."""
_ONE_TARGET = 0.99
"""Share of a class's pixels that are drawn as one class where labels have other numbers."""
_COORDINATES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
_ROUNDINGS = ("floor", "round_prefer_floor", "round_prefer_ceil", "ceil")
_CUBIC = -0.75  # ONNX's default, and PyTorch's
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """One way to enlarge: its name in ONNX, and what each row and column of the mask takes of those of the logits."""

    name: str
    rows: np.ndarray
    columns: np.ndarray

    def draw(self, logits: np.ndarray) -> np.ndarray:
        """Return logits ``(K, h, w)`` at the mask's size."""
        enlarged: np.ndarray = self.rows @ logits @ self.columns.T
        return enlarged


def describe_drawing(logits: np.ndarray, mask: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Tell in which way a mask is drawn from its logits; nothing where it is the right one, or no known one.

    Args:
        logits: ``(K, h, w)``.
        mask: ``(s·h, s·w)`` class indices.
        class_names: K names.
    """
    height, width = logits.shape[1:]
    right, *others = _rules(height, width, mask.shape[0] // height)
    enlarged = right.draw(logits)
    drawn = enlarged.argmax(0)
    wrong = float((drawn != mask).mean())
    if tie := _tie(enlarged, drawn, mask):
        return [tie]
    limit = min(_ROUNDING, wrong / CLEARLY)
    if wrong <= _ROUNDING / CLEARLY:
        return []
    names, left = _renamed(drawn, mask)
    if left <= limit:
        return [_describe_names(names, left, class_names)]
    masks = {rule.name: rule.draw(logits).argmax(0).astype(np.uint8) for rule in others}
    if best := _best({name: float((other != mask).mean()) for name, other in masks.items()}, limit):
        return [_describe_rule(best, right.name, wrong, float((masks[best] != mask).mean()))]
    found = {name: _renamed(other, mask) for name, other in masks.items()}
    if best := _best({name: left for name, (_, left) in found.items()}, limit):
        names, left = found[best]
        return [_describe_rule(best, right.name, wrong, left), _describe_names(names, left, class_names)]
    return []


def _best(left: dict[str, float], limit: float) -> str | None:
    """Return what explains all but a share of `limit`, and clearly more than every other; None where nothing does."""
    best, *rest = sorted(left, key=lambda name: left[name])
    if left[best] > limit or (rest and left[rest[0]] <= max(CLEARLY * left[best], limit / CLEARLY)):
        return None
    return best


def _tie(enlarged: np.ndarray, drawn: np.ndarray, mask: np.ndarray) -> str | None:
    """Tell where nothing but equal logits is decided otherwise, and always for the highest class."""
    highest = len(enlarged) - 1 - enlarged[::-1].argmax(0)
    tied = highest != drawn
    count = int(tied.sum())
    if not count or (highest != mask).any():
        return None
    return f"ties go to the highest class, expected the lowest: at all {count} pixels with equal best logits"


def _renamed(drawn: np.ndarray, mask: np.ndarray) -> tuple[dict[int, int], float]:
    """Return which class each drawn class has in the mask, and the share of the pixels that this leaves unexplained."""
    pairs = drawn.astype(np.int64) * 256 + mask
    counts = np.bincount(pairs.ravel(), minlength=256 * 256).reshape(256, 256)
    names, explained = {}, 0
    for number in np.flatnonzero(counts.sum(1)).tolist():
        target = int(counts[number].argmax())
        names[number] = target if counts[number, target] >= _ONE_TARGET * counts[number].sum() else number
        explained += int(counts[number, names[number]])
    return names, 1 - explained / mask.size


def _describe_names(names: dict[int, int], left: float, class_names: Sequence[str]) -> str:
    """Tell the numbers that classes have in the mask."""
    moved = {number: target for number, target in names.items() if number != target}
    listed = ", ".join(
        f"{class_names[number]} ({number}) as {target}" for number, target in list(moved.items())[:_SHOWN]
    )
    more = f" and {len(moved) - _SHOWN} more" if len(moved) > _SHOWN else ""
    offsets = {(target - number + 128) % 256 - 128 for number, target in names.items()}
    what = "classes are drawn under other numbers"
    if len(offsets) == 1 and len(names) > 1:
        what = f"labels are off by {offsets.pop():+d}"
    elif len(set(names.values())) < len(names):
        what = "classes are drawn as others"
    elif set(moved) == set(moved.values()):
        what = "labels are permuted"
    return f"{what}: {listed}{more}; that explains {1 - left:.2%} of the pixels"


def _describe_rule(name: str, right: str, wrong: float, left: float) -> str:
    return (
        f"the logits are enlarged by {name}, expected {right}: drawn so, {left:.2%} of the pixels differ from the "
        f"file's mask, against {wrong:.2%}"
    )


def _rules(height: int, width: int, scale: int) -> list[_Rule]:
    """Return every different way to enlarge, the right one first; one that has two names at these sizes has both."""
    found: dict[tuple[str, bytes], list[str]] = {}
    weights: dict[tuple[str, bytes], tuple[np.ndarray, np.ndarray]] = {}
    for mode in ("linear", "nearest", "cubic"):
        for coordinates in _COORDINATES:
            for rounding in _ROUNDINGS if mode == "nearest" else ("",):
                rows, columns = (_weights(size, scale, mode, coordinates, rounding) for size in (height, width))
                key = mode, rows.tobytes() + columns.tobytes()
                found.setdefault(key, []).append(f"{coordinates} {rounding}".strip())
                weights[key] = rows, columns
    return [
        _Rule(name=f"{mode} ({' or '.join(names)})", rows=weights[mode, key][0], columns=weights[mode, key][1])
        for (mode, key), names in found.items()
    ]


def _weights(size: int, scale: int, mode: str, coordinates: str, rounding: str) -> np.ndarray:
    """Return ``(scale·size, size) float32``: what each enlarged place takes of each place, as ONNX's Resize says."""
    places = np.arange(size * scale)
    at = {
        "half_pixel": (places + 0.5) / scale - 0.5,
        "pytorch_half_pixel": (places + 0.5) / scale - 0.5 if size * scale > 1 else np.zeros(1),
        "align_corners": places * (size - 1) / max(size * scale - 1, 1),
        "asymmetric": places / scale,
    }[coordinates]
    low = np.floor(at).astype(int)
    part = at - low
    if mode == "nearest":
        step = {"floor": 0, "ceil": part > 0, "round_prefer_floor": part > 0.5, "round_prefer_ceil": part >= 0.5}
        taps = [(low + step[rounding], np.ones_like(at))]
    elif mode == "linear":
        taps = [(low, 1 - part), (low + 1, part)]
    else:
        taps = [(low + step, _cubic(np.abs(part - step))) for step in (-1, 0, 1, 2)]
    weights = np.zeros((len(places), size))
    for tap, weight in taps:
        np.add.at(weights, (places, np.clip(tap, 0, size - 1)), weight)
    return weights.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Return the weight of a sample at a distance in 0-2 (Keys)."""
    near = (_CUBIC + 2) * distance**3 - (_CUBIC + 3) * distance**2 + 1
    far = _CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    weight: np.ndarray = np.where(distance <= 1, near, far)
    return weight
