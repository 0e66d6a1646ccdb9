"""Decodes to run: random weights, and those that a trained network predicts for a drawn scene.

No released checkpoint has another number of classes than the trained one's 11, so its class rows are lengthened: row
``11·n + c`` is the trained class c with its weights scaled by a factor between 0.8 and 1.1 and its bias lowered by 2 to
8 units of the median gap of the two best logits. The added classes are plausible losers that seldom win.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nrd_trt.specs import STRIDE, DecodeSpec

from .multiprocessor import MAX_PATCH, Array, Decode, allocate, allow, library

Element = Literal["fp32", "fp16", "bf16"]
Theta = Literal["random", "natural"]
Floats = NDArray[np.float32]

ELEMENTS: tuple[Element, ...] = ("fp32", "fp16", "bf16")
"""The place of a name is its number in decode_problem.h."""

CHECKPOINT = "nrd_r18_camvid"
HIDDEN, PATCH, FACTOR = 16, 8, 4
MASKS = [np.dtype(name) for name in ("int32", "float16", "uint8")]
"""The place of a type is its number in decode_problem.h."""
_SCENE = 3


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """fp32 inputs of a decode: theta ``(h, w, P)``, guidance ``(8h, 8w, 16)`` and the tables ``(8,)``."""

    theta: Floats
    guidance: Floats
    x_table: Floats
    y_table: Floats


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One image to decode.

    Attributes:
        classes: K.
        element: Type of theta and guidance.
        theta: ``(h, w, pitch)``, channels last; 16-bit types as bits, their pitch a multiple of 8 as TensorRT pads it.
            Planar ``(P, h, w)``.
        guidance: ``(8h, 8w, 16)``, planar ``(16, 8h, 8w)``.
        x_table: ``(8,)``, for each column of a patch.
        y_table: ``(8,)``, for each row.
        planar: Whether channels come first.
    """

    classes: int
    element: Element
    theta: Array
    guidance: Array
    x_table: Floats
    y_table: Floats
    planar: bool = False

    @property
    def patches_hw(self) -> tuple[int, int]:
        """Rows and columns of theta."""
        rows, columns = self.theta.shape[1:] if self.planar else self.theta.shape[:2]
        return rows, columns

    def in_planes(self) -> Problem:
        """Return the same problem with channels first."""
        channels = DecodeSpec(num_classes=self.classes).theta_channels
        theta, guidance = (array.transpose(2, 0, 1) for array in (self.theta[..., :channels], self.guidance))
        return Problem(**{**vars(self), "theta": _placed(theta), "guidance": _placed(guidance), "planar": True})

    def part(self, top: int, left: int, bottom: int, right: int) -> Problem:
        """Return the problem of the patches [top, bottom) x [left, right)."""
        theta = _placed(self.theta[top:bottom, left:right])
        rows, columns = slice(top * PATCH, bottom * PATCH), slice(left * PATCH, right * PATCH)
        guidance = _placed(self.guidance[rows, columns])
        return Problem(**{**vars(self), "theta": theta, "guidance": guidance})

    def widened(self) -> Problem:
        """Return the same problem in fp32; the arrays of the result must outlive what is made of it."""
        if self.element == "fp32":
            return self
        wide = {}
        for name, array in (("theta", self.theta), ("guidance", self.guidance)):
            half = (
                array.view(np.float16) if self.element == "fp16" else (array.astype(np.uint32) << 16).view(np.float32)
            )
            wide[name] = half.astype(np.float32)
        return Problem(**{**vars(self), **wide, "element": "fp32"})

    def decode(self, mask: Array, variant: int, *, prune: bool = True) -> Decode:
        """Return what the machine takes; the arrays must outlive it. The mask's type is one of `MASKS`."""
        request = Decode(
            classes=self.classes,
            type=ELEMENTS.index(self.element),
            rows=self.patches_hw[0],
            columns=self.patches_hw[1],
            mask=mask.ctypes.data,
            mask_type=MASKS.index(mask.dtype),
            variant=variant,
            prune=prune,
        )
        for view, array in ((request.theta, self.theta), (request.guidance, self.guidance)):
            plane, pitch = (array.shape[1] * array.shape[2], 1) if self.planar else (1, array.shape[2])
            view.data, view.batch, view.channel, view.pixel = array.ctypes.data, array.size, plane, pitch
        request.x_table = (ctypes.c_float * MAX_PATCH)(*self.x_table)
        request.y_table = (ctypes.c_float * MAX_PATCH)(*self.y_table)
        return request

    def empty_mask(self, dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """Return a mask of a value that no class has, and let kernels write it and read the tensors."""
        rows, columns = self.patches_hw
        mask = allocate((rows * STRIDE, columns * STRIDE), dtype)
        mask.fill(255)
        allow((self.theta, False), (self.guidance, False), (mask, True))
        return mask

    def reference(self, *, prune: bool = True) -> NDArray[np.uint8]:
        """Return the host reference's mask."""
        mask = self.empty_mask()
        library().machineReference(ctypes.byref(self.decode(mask, 0, prune=prune)))
        return mask


def make_problem(inputs: Inputs, classes: int, element: Element) -> Problem:
    """Store the inputs in the kernels' layout."""
    theta, guidance = (_placed(_stored(array, element)) for array in (inputs.theta, inputs.guidance))
    return Problem(
        classes=classes,
        element=element,
        theta=theta,
        guidance=guidance,
        x_table=inputs.x_table,
        y_table=inputs.y_table,
    )


def _placed(array: Array) -> Array:
    """Copy to where the driver would put it."""
    placed = allocate(array.shape, array.dtype)
    placed[...] = array
    return placed


def _stored(array: Floats, element: Element) -> Array:
    """Convert and pad. The padding is NaN, which no kernel may read."""
    if element == "fp32":
        return np.ascontiguousarray(array)
    padded = np.full((*array.shape[:2], -(-array.shape[2] // 8) * 8), np.nan, np.float32)
    padded[..., : array.shape[2]] = array
    if element == "fp16":
        return padded.astype(np.float16).view(np.uint16)
    bits = padded.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(padded), 0x7FFF, rounded).astype(np.uint16)


def random_inputs(classes: int, patches_hw: tuple[int, int], *, seed: int = 0) -> Inputs:
    """Draw theta of spread 0.5 and guidance of spread 1: class borders are everywhere."""
    rng = np.random.default_rng(seed)
    rows, columns = patches_hw
    channels = DecodeSpec(num_classes=classes).theta_channels
    theta = 0.5 * rng.standard_normal((rows, columns, channels), np.float32)
    guidance = rng.standard_normal((rows * PATCH, columns * PATCH, HIDDEN), np.float32)
    x_table, y_table = rng.standard_normal((2, PATCH), np.float32)
    return Inputs(theta=theta, guidance=guidance, x_table=x_table, y_table=y_table)


def natural_inputs(classes: int, size_hw: tuple[int, int]) -> Inputs:
    """Return what the trained network predicts for a drawn scene, with class rows for more or fewer than its own 11."""
    inputs = _predicted(size_hw)
    theta = _with_classes(inputs.theta, classes, _median_gap(size_hw)) if classes != 11 else inputs.theta
    return Inputs(theta=theta, guidance=inputs.guidance, x_table=inputs.x_table, y_table=inputs.y_table)


@cache
def _predicted(size_hw: tuple[int, int]) -> Inputs:
    from nrd_trt.data.synthetic import street_scene
    from nrd_trt.model import load_trained
    from nrd_trt.model.stages import predict_decode_inputs
    from nrd_trt.zoo import checkpoint_path

    image = street_scene(_SCENE, size_hw).image
    inputs = predict_decode_inputs(load_trained(checkpoint_path(CHECKPOINT)), image[None], device="cpu")
    theta, guidance, x_table, y_table = (np.asarray(tensor, np.float32) for tensor in inputs)
    last = (np.ascontiguousarray(array[0].transpose(1, 2, 0)) for array in (theta, guidance))
    return Inputs(**dict(zip(("theta", "guidance"), last, strict=True)), x_table=x_table, y_table=y_table)


@cache
def _median_gap(size_hw: tuple[int, int]) -> float:
    """Median over pixels of the difference of the two best trained logits."""
    problem = make_problem(_predicted(size_hw), 11, "fp32")
    rows, columns = problem.patches_hw
    problem = problem.part(rows // 2, 0, rows // 2 + 2, columns)
    logits = np.empty((11, 2 * PATCH, columns * PATCH), np.float32)
    request = problem.decode(np.empty(0, np.uint8), 0)
    library().machineReferenceLogits(ctypes.byref(request), logits.ctypes.data_as(ctypes.c_void_p))
    best = np.sort(logits, axis=0)
    return float(np.median(best[-1] - best[-2]))


def _with_classes(theta: Floats, classes: int, gap: float) -> Floats:
    own = DecodeSpec(num_classes=11).sections
    first, weights = sum(own[:4]), own[4]
    rng = np.random.default_rng(1)
    w2 = theta[..., first : first + weights].reshape(*theta.shape[:2], 11, HIDDEN)
    b2 = theta[..., first + weights :]
    source = np.arange(classes) % 11
    is_added = np.arange(classes) >= 11
    scale = np.where(is_added, rng.uniform(0.8, 1.1, classes), 1).astype(np.float32)
    lowered = np.where(is_added, rng.uniform(2, 8, classes) * gap, 0).astype(np.float32)
    more_w2 = w2[..., source, :] * scale[:, None]
    parts = [theta[..., :first], more_w2.reshape(*theta.shape[:2], -1), b2[..., source] * scale - lowered]
    return np.ascontiguousarray(np.concatenate(parts, axis=-1))
