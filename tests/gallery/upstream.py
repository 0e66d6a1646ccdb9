"""Faults to plant in the product itself: each patches what makes or runs files, while a bundle is built and validated.

A file that is derived anew with the same fault is just as wrong, so what catches these has to come from elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from nrd_trt.calibration import histograms, ranges
from nrd_trt.calibration.recipes import Recipe
from nrd_trt.calibration.stream import CalibrationStream
from nrd_trt.data import preprocessing
from nrd_trt.data.preprocessing import Fitting
from nrd_trt.decode import function
from nrd_trt.exporting import onnx_export, precision
from nrd_trt.graph import precision as casts
from nrd_trt.graph import quantize
from nrd_trt.graph.formats import INT8, NumberFormat
from nrd_trt.graph.tensors import copy_model
from nrd_trt.model import folding
from nrd_trt.runtime import graph_io
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.ort_runner import OrtRunner
from tests.faults import Change

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Takes a function of the product and returns the faulty one."""


def everywhere(patch: pytest.MonkeyPatch, original: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Put another function in the place of one in every module of the package that has it."""
    for module in [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "nrd_trt"]:
        for name, value in list(vars(module).items()):
            if value is original:
                patch.setattr(module, name, other)


class Planter:
    """Patches the product and counts how often what it patched was called.

    Args:
        patch: Undoes everything.

    Attributes:
        calls: Number of calls.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._patch = patch

    def wrap(self, original: Callable[..., Any], make: Wrap) -> None:
        """Replace a function in every module of the package that has it."""
        everywhere(self._patch, original, self._counted(original, make))

    def set(self, owner: Any, name: str, make: Wrap) -> None:
        """Replace one method, or a function in one module only."""
        self._patch.setattr(owner, name, self._counted(getattr(owner, name), make))

    def rewrite(self, name: str, changes: Mapping[str, str]) -> None:
        """Change the text of a decode function."""
        text = getattr(function, name)
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        self._patch.setattr(function, name, text)
        self.set(function, "_parse", lambda parse: parse)

    def _counted(self, original: Callable[..., Any], make: Wrap) -> Callable[..., Any]:
        faulty = make(original)

        @wraps(original)
        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return faulty(*args, **kwargs)

        return called


Patch = Callable[[Planter], None]


# --- the exporter -----------------------------------------------------------------------------------------------------


def exported(change: Change) -> Patch:
    """Let the exporter write every fp32 file with a fault."""

    def make(export: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
        def faulty(*args: Any, **kwargs: Any) -> onnx.ModelProto:
            model = export(*args, **kwargs)
            change(model)
            return model

        return faulty

    return lambda planter: planter.wrap(onnx_export.export_onnx, make)


def folded(change: Callable[[nn.BatchNorm2d], None]) -> Patch:
    """Fold every batch norm as if it were another one."""

    def make(fuse: Callable[..., nn.Conv2d]) -> Callable[..., nn.Conv2d]:
        def faulty(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
            change(norm)
            return fuse(conv, norm)

        return faulty

    def patch(planter: Planter) -> None:
        planter.set(folding, "fuse_conv_bn_eval", make)

    return patch


def other_eps(norm: nn.BatchNorm2d) -> None:
    """Fold with the eps of another framework."""
    norm.eps = 1e-3


def no_root(norm: nn.BatchNorm2d) -> None:
    """Divide by the variance instead of by its root."""
    norm.running_var = (norm.get_buffer("running_var") + norm.eps) ** 2 - norm.eps


def no_mean(norm: nn.BatchNorm2d) -> None:
    """Forget the running mean."""
    norm.get_buffer("running_mean").zero_()


def cat_norm(change: Callable[[nn.BatchNorm2d], None]) -> Patch:
    """Fold ``cat_norm`` as if it were another one."""

    def make(fold: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(head: Any) -> Any:
            change(head.cat_norm)
            return fold(head)

        return faulty

    def patch(planter: Planter) -> None:
        planter.set(folding, "_fold_cat_norm", make)

    return patch


def no_shift(norm: nn.BatchNorm2d) -> None:
    """Forget the bias and the running mean."""
    with torch.no_grad():
        norm.bias.zero_()
        norm.get_buffer("running_mean").zero_()


def coordinates(planter: Planter) -> None:
    """Take pixel centres, and write them into the tables."""

    def make(fold: Callable[..., Any]) -> Callable[..., Any]:
        return lambda head: tuple(table + (table[1] - table[0]) / 2 for table in fold(head))

    planter.set(folding, "_fold_cat_norm", make)


def decode(**changes: str) -> Patch:
    """Write the decode's body with a fault; see `_STATEMENTS` for what can be written otherwise."""
    text = {_STATEMENTS[name]: new for name, new in changes.items()}
    return lambda planter: planter.rewrite("_DECODE_BODY", text)


_STATEMENTS = {
    "sizes": "input_sections = Constant <value = int64[2] {{2, {m}}}> ()",
    "split": "w0_xy, w0_guidance = Split",
    "patch": "rows = Transpose <perm = [0, 3, 1, 4, 2, 5]>",
    "first_bias": "z0_guidance = Add (from_guidance, b0)",
    "second_bias": "z1 = Add (z1_weighted, b1)",
    "activation": "a1 = Relu (z1)",
    "w1": "w1 = Reshape (w1_flat, w1_shape)",
}


def enlarged(old: str, new: str) -> Patch:
    """Enlarge the logits in another way."""
    return lambda planter: planter.rewrite("_MASK_BODY", {old: new})


# --- precision and ranges ---------------------------------------------------------------------------------------------


def kept_nodes_lost(planter: Planter) -> None:
    """Keep nothing in fp32, whatever leaves 16 bits."""
    planter.wrap(precision.nodes_to_keep, lambda _: lambda *args, **kwargs: {})


def cut_weights(planter: Planter) -> None:
    """Convert weights by way of bfloat16, whose lower half is cut off."""

    def cut(model: onnx.ModelProto) -> onnx.ModelProto:
        result = copy_model(model)
        for tensor in result.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
                bits = numpy_helper.to_array(tensor).view(np.uint32) & np.uint32(0xFFFF0000)
                tensor.CopyFrom(numpy_helper.from_array(bits.view(np.float32), tensor.name))
        return result

    planter.wrap(casts.to_precision, lambda to: lambda model, *args, **kwargs: to(cut(model), *args, **kwargs))


def ranges_times(factor: float) -> Patch:
    """Estimate every range too large or too small."""
    return lambda planter: planter.wrap(histograms.estimate, lambda right: lambda *given: right(*given) * factor)


def other_percentile(planter: Planter) -> None:
    """Cut off one value of ten instead of one of ten thousand."""

    def make(right: Callable[..., float]) -> Callable[..., float]:
        def faulty(histogram: histograms.Histogram, recipe: Recipe) -> float:
            return right(histogram, replace(recipe, percentile=90.0))

        return faulty

    planter.wrap(histograms.estimate, make)


def rolled_ranges(planter: Planter) -> None:
    """Give every tensor the range of the one before it."""

    def make(measure: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            found = measure(*args, **kwargs)
            values = list(found.tensors.values())
            return replace(found, tensors=dict(zip(found.tensors, [values[-1], *values[:-1]], strict=True)))

        return faulty

    planter.wrap(ranges.measure_ranges, make)


def dark_images(planter: Planter) -> None:
    """Measure ranges on images of an eighth of the brightness."""

    def make(fitted: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        return lambda stream: ((rgb, replace(entry, image=entry.image // 8)) for rgb, entry in fitted(stream))

    planter.set(CalibrationStream, "_fitted", make)


def weight_scales(change: Callable[[np.ndarray], np.ndarray]) -> Patch:
    """Choose other scales for weights; they are quantised and stored with these."""
    return lambda planter: planter.wrap(quantize.weight_scales, lambda right: lambda *given: change(right(*given)))


def largest(scales: np.ndarray) -> np.ndarray:
    """Take the largest scale for all channels."""
    return np.full_like(scales, scales.max())


def stored_weights(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Patch:
    """Store int8 weights as `change` gives them, from the weights in steps ``(channels, …)`` and the scales."""

    def make(right: Callable[..., str]) -> Callable[..., str]:
        def faulty(inserter: Any, name: str, axis: int) -> str:
            result = right(inserter, name, axis)
            values = numpy_helper.to_array(inserter.weights[name])
            scale = numpy_helper.to_array(inserter.weights[f"{name}/scale"])
            integers, scale = change(values / scale.reshape(-1, 1, 1, 1), scale)
            for suffix, part in (("int8", integers.astype(np.int8)), ("scale", scale)):
                inserter._add(numpy_helper.from_array(np.ascontiguousarray(part), f"{name}/{suffix}"))
            return result

        return faulty

    return lambda planter: planter.set(quantize._Inserter, "_weights", make)


def cut_off(steps: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut off instead of rounding."""
    return np.trunc(steps), scale


def fp8_cut_off(planter: Planter) -> None:
    """Cut fp8 weights off instead of rounding them."""

    def make(right: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def faulty(numbers: NumberFormat, steps: np.ndarray) -> np.ndarray:
            nearest = right(numbers, steps).astype(numbers.dtype)
            too_large = np.abs(nearest.astype(steps.dtype)) > np.abs(steps)
            return (nearest.view(np.uint8) - too_large).view(numbers.dtype).astype(steps.dtype)

        return faulty

    planter.set(NumberFormat, "nearest", make)


def rolled(steps: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Store every channel's scale with its neighbour."""
    return np.rint(steps), np.roll(scale, 1)


def wrapped(steps: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let 128 overflow to -128, with scales that make the largest weight 128."""
    integers = np.rint(steps * 128 / INT8.largest)
    return np.where(integers == 128, -128, integers), scale * np.float32(INT8.largest / 128)


def one_skip_scale(planter: Planter) -> None:
    """Quantise every skip with the scale of the first one."""

    def make(right: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
        def faulty(plan: quantize.QuantizationPlan, found: Mapping[str, float]) -> dict[str, float]:
            scales = right(plan, found)
            skips = [
                name for name, readers in plan.tensors.items() if any(node.endswith("/Add") for node, _ in readers)
            ]
            return scales | dict.fromkeys(skips, scales[skips[0]])

        return faulty

    planter.wrap(quantize._scales, make)


# --- runners and preprocessing ----------------------------------------------------------------------------------------


def fed(change: Callable[[np.ndarray], np.ndarray]) -> Patch:
    """Feed images ``(h, w, 3)`` as `change` gives them."""

    def make(right: Callable[..., Any]) -> Callable[..., Any]:
        return lambda image, graph: right(np.ascontiguousarray(change(image)), graph)

    return lambda planter: planter.wrap(graph_io.image_feed, make)


def bgr(image: np.ndarray) -> np.ndarray:
    """Exchange red and blue."""
    return image[..., ::-1]


def planar(image: np.ndarray) -> np.ndarray:
    """Read planes where the pixels are interleaved."""
    return image.transpose(2, 0, 1).reshape(image.shape)


def drawn(change: Callable[[np.ndarray], np.ndarray]) -> Patch:
    """Read masks ``(h, w)`` off the outputs as `change` gives them."""

    def make(right: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        return lambda outputs, index, graph: np.ascontiguousarray(change(right(outputs, index, graph)))

    return lambda planter: planter.wrap(graph_io.mask_at, make)


def turned(mask: np.ndarray) -> np.ndarray:
    """Read columns where the rows are."""
    return mask.T.reshape(mask.shape)


def one_row_late(mask: np.ndarray) -> np.ndarray:
    """Read masks one row too late."""
    return np.roll(mask, -1, axis=0)


def stale_outputs(planter: Planter) -> None:
    """Give the outputs of the run before."""
    last: WeakKeyDictionary[OrtRunner, Any] = WeakKeyDictionary()

    def make(right: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(runner: OrtRunner, feed: Any) -> Any:
            new = right(runner, feed)
            old, last[runner] = last.get(runner, new), dict(new)
            return dict(old)

        return faulty

    planter.set(OrtRunner, "_run", make)


def big_endian(planter: Planter) -> None:
    """Unpack four pixels with the first in the highest byte."""

    def make(right: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(runner: BaseRunner, feed: Any) -> Any:
            outputs = right(runner, feed)
            if runner.mask_encoding == "u8x4" and "mask" in outputs:
                mask = outputs["mask"]
                outputs["mask"] = mask.reshape(*mask.shape[:-1], -1, 4)[..., ::-1].reshape(mask.shape)
            return outputs

        return faulty

    planter.set(BaseRunner, "infer", make)


def feeds_normalised(change: Callable[[np.ndarray], np.ndarray]) -> Patch:
    """Feed float images ``(B, 3, H, W)`` as `change` gives them; PyTorch reads the right ones."""
    return lambda planter: planter.set(
        graph_io, "normalise", lambda right: lambda *given: np.ascontiguousarray(change(right(*given)))
    )


def normalised(change: Callable[[np.ndarray], np.ndarray]) -> Patch:
    """Normalise images ``(B, 3, H, W)`` as `change` gives them, PyTorch's too."""
    return lambda planter: planter.wrap(
        preprocessing.normalise, lambda right: lambda *given: np.ascontiguousarray(change(right(*given)))
    )


def fitted_nearest(planter: Planter) -> None:
    """Bring images to the engine's size by the nearest pixel."""

    def make(right: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(rgb: np.ndarray, *args: Any, **kwargs: Any) -> Any:
            fitted = right(rgb, *args, **kwargs)
            height, width = fitted.engine_hw
            rows, columns = np.arange(height) * len(rgb) // height, np.arange(width) * rgb.shape[1] // width
            return replace(fitted, image=np.ascontiguousarray(rgb[rows][:, columns]))

        return faulty

    planter.wrap(preprocessing.fit_image, make)


def restored_late(planter: Planter) -> None:
    """Bring masks back one column too far to the right."""
    planter.set(Fitting, "restore", lambda right: lambda fitting, mask: np.roll(right(fitting, mask), 1, axis=1))
