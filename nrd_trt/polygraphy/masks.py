"""The comparison of masks, by the metrics and gates of `nrd_trt.validation`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from polygraphy.comparator import BaseCompareFunc
from polygraphy.logger import G_LOGGER

from nrd_trt.data.samples import Sample
from nrd_trt.errors import ConfigError
from nrd_trt.gates import Gates
from nrd_trt.polygraphy.results import NrdMaskResult, NrdMaskThreshold
from nrd_trt.polygraphy.runner import PREFIX as TORCH
from nrd_trt.polygraphy.settings import Settings, read_model, reported
from nrd_trt.runtime.graph_io import margin_of_logits
from nrd_trt.validation.compare import TIE_MARGIN, Comparator, Comparison, Reference

COMPARED = ("mask", "logits")


class MaskCompare(BaseCompareFunc):
    """Compares the outputs ``mask`` and ``logits`` of two runners, as far as both have them.

    The reference is PyTorch where one of the two is `--nrd-torch`, else the second runner. Logits are compared by their
    best class, at their own size. A pixel is near a tie as `nrd_trt.validation.compare.TIE_MARGIN` says, where the
    reference gives logits.
    """

    _RESULT_CLASS = NrdMaskResult

    @reported()
    def __call__(self, iter_result0: Any, iter_result1: Any) -> OrderedDict[str, NrdMaskResult]:
        """Return the result of each output by its name."""
        first_is_reference = _is_torch(iter_result0) and not _is_torch(iter_result1)
        reference, engine = (iter_result0, iter_result1) if first_is_reference else (iter_result1, iter_result0)
        names = [name for name in COMPARED if name in reference and name in engine]
        if not names:
            raise ConfigError(
                f"{engine.runner_name} and {reference.runner_name}: expected the output mask or logits in both, "
                f"got {sorted(engine)} and {sorted(reference)}; compare other tensors with Polygraphy's own way."
            )
        return OrderedDict((name, self._compare(name, engine, reference)) for name in names)

    @reported()
    def thresholds_for(self, output_name: str) -> NrdMaskThreshold:
        """Return the gates, which are the same for every output."""
        settings = Settings.read()
        precision = settings.precision
        if precision is None:
            precision = "fp32" if settings.model is None else read_model(settings.model).graph.precision
        gates = Gates.of(precision, settings.min_agreement)
        return NrdMaskThreshold(gates.min_agreement, settings.min_miou, settings.max_clear_flips)

    def _compare(self, name: str, engine: Any, reference: Any) -> NrdMaskResult:
        """Compare one output and say what was found."""
        G_LOGGER.start(f"Comparing masks | {name} of {engine.runner_name} against {reference.runner_name}")
        thresholds = self.thresholds_for(name)
        with G_LOGGER.indent():
            result = _result(name, engine, reference, thresholds)
            result.output0_name = result.output1_name = name
            line, passed = result.describe()
            (G_LOGGER.finish if passed else G_LOGGER.error)(f"{name} | {line}")
        return result


def _result(name: str, engine: Any, reference: Any, thresholds: NrdMaskThreshold) -> NrdMaskResult:
    """Return the figures of one output, NaN where the outputs cannot be compared."""
    fault = next((line for side in (engine, reference) if (line := _not_finite(side, name))), None)
    expected, got = (_classes(name, np.asarray(side[name])) for side in (reference, engine))
    if expected.shape != got.shape:
        fault = f"{engine.runner_name}: expected {expected.shape} pixels as in the reference, got {got.shape}"
    if fault is not None:
        G_LOGGER.error(f"{name} | {fault}")
        return NrdMaskResult(np.nan, np.nan, np.nan, thresholds)
    figures = _figures(expected, got, _near_tie(reference, expected))
    agreement, miou = (np.nan if value is None else value for value in (figures.pixel_agreement, figures.miou_between))
    tied = figures.tie_share or 0.0
    if agreement < 1:
        where = (
            "whether near a tie is not known, the reference gives no logits"
            if figures.tie_share is None
            else f"{tied:.1%} of them near a tie"
        )
        G_LOGGER.info(f"{name} | pixels that differ: {1 - agreement:.4%}; {where}")
    return NrdMaskResult(float(agreement), float(miou), float((1 - agreement) * (1 - tied)), thresholds)


def _not_finite(side: Any, name: str) -> str | None:
    values = np.asarray(side[name])
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return None
    return f"{side.runner_name}: expected finite values, got NaN or infinity"


def _classes(name: str, values: np.ndarray) -> np.ndarray:
    """Return ``(B, H, W)`` class indices; an int32 mask packs four pixels (``--mask-encoding u8x4``)."""
    if name == "logits":
        return np.asarray(values.argmax(axis=1), np.uint8)
    packed = values.dtype == np.int32
    return np.asarray(values.astype("<i4", copy=False).view(np.uint8) if packed else values)


def _near_tie(reference: Mapping[str, Any], classes: np.ndarray) -> np.ndarray | None:
    """Return where the reference's two best classes are close, ``(B, H, W) bool``; None without its logits."""
    if "logits" not in reference:
        return None
    logits = np.asarray(reference["logits"], np.float32)
    scale = classes.shape[1] // logits.shape[2]
    if classes.shape[1:] != tuple(scale * side for side in logits.shape[2:]):
        return None  # of another form than this toolkit's files: where the ties are is not known
    return np.stack([margin_of_logits(planes, scale) <= TIE_MARGIN * planes.std() for planes in logits])


def _figures(expected: np.ndarray, got: np.ndarray, near_tie: np.ndarray | None) -> Comparison:
    comparator = Comparator([str(index) for index in range(max(int(expected.max()), int(got.max())) + 1)])
    for index, mask in enumerate(expected):
        reference = Reference(mask=mask, near_tie=None if near_tie is None else near_tie[index])
        comparator.add(reference, got[index], Sample(image=mask, restore=np.asarray))
    return comparator.result()


def _is_torch(result: Any) -> bool:
    return bool(str(result.runner_name).startswith(TORCH))
