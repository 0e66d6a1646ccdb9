"""From a model and a stream of feeds to ranges: passes over the stream in ONNX Runtime, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from nrd_trt.calibration.cache import Keys, Ranges, model_sha256
from nrd_trt.calibration.coverage import ClassCounter, coverage_of, listed, look_at_classes
from nrd_trt.calibration.histograms import Histogram, describe, estimate
from nrd_trt.calibration.probes import Probe, make_probes, plan_groups, read_masks, with_probes
from nrd_trt.calibration.recipes import Recipe
from nrd_trt.calibration.stream import (
    CalibrationStream,
    batch_of,
    check_distinct,
    contents_of,
    image_digests,
    names_of,
)
from nrd_trt.calibration.survey import warn_of
from nrd_trt.errors import CalibrationError
from nrd_trt.files import canonical_json, sha256_bytes
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.graph.quantize import DEFAULT_EXCLUDE, choose_layers, plan_quantization
from nrd_trt.progress import bar
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import DEFAULT_MEMORY_MB, Target

Stream = Iterable[Mapping[str, np.ndarray]]
_EMPTY = (
    "calibration stream: expected at least one feed, got none; an iterator may be used up, a folder empty, or "
    "a filter may leave nothing."
)


def tensors_to_calibrate(model: onnx.ModelProto, recipe: Recipe, target: Target = "gpu") -> tuple[str, ...]:
    """Return the activations that need a range, in the order of the graph: those that get Q/DQ pairs.

    Args:
        model: The fp32 graph.
        recipe: Its `include` and `exclude` choose layers by name; what stays out by default stays out.
        target: What int8 files are made for; the tensors for a CPU are those for a GPU and more.

    Raises:
        ConfigError: An expression matches no layer, or no layer is left.
    """
    layers = choose_layers(model, include=recipe.include, exclude=(*DEFAULT_EXCLUDE, *recipe.exclude))
    return tuple(plan_quantization(model, layers, target).tensors)


def measure_ranges(
    model: onnx.ModelProto,
    stream: Stream,
    tensors: Sequence[str],
    recipe: Recipe,
    *,
    memory_mb: float = DEFAULT_MEMORY_MB,
    threads: int | None = None,
    progress: bool = True,
) -> Ranges:
    """Measure ranges of activations.

    Args:
        model: An fp32 file of this toolkit.
        stream: A `CalibrationStream`, or any iterable of feeds that can be iterated again.
        tensors: Float activations that need a range.
        recipe: How ranges are estimated.
        memory_mb: What may be fetched at a time, besides the memory of a plain session; where that is less than all
            tensors need, the stream is passed over several times.
        threads: CPU threads of ONNX Runtime; None leaves the choice to it.
        progress: Show a bar on stderr where a pass takes over two seconds.

    Raises:
        CalibrationError: The stream is empty, cannot be repeated or holds one image only; an activation is not
            finite; a tensor does not fit in the memory; the file is not fp32.

    Warns:
        UserWarning: A tensor is zero everywhere, or a class was never predicted or labelled.
    """
    facts = read_facts(model)
    if facts.precision != "fp32":
        raise CalibrationError(f"calibration: expected an fp32 file, got {facts.precision}; export one in fp32.")
    if iter(stream) is stream:
        raise CalibrationError("calibration stream: expected feeds that can be iterated again, got an iterator.")
    samples = 0 if recipe.estimator == "minmax" else recipe.samples
    probes = make_probes(model, tensors, _largest_feed(stream, facts), samples)
    groups = plan_groups(probes, int(memory_mb * 2**20))
    collection = _Collection(probes, recipe, facts)
    for index, group in enumerate(groups):
        feeds = bar(stream, desc=f"calibrating, pass {index + 1} of {len(groups)}", unit="feed", show=progress)
        with OrtRunner(with_probes(model, group, masks=index == 0), threads=threads) as runner:
            for number, feed in enumerate(feeds):
                names, outputs = names_of(feed, number), runner.infer(feed)
                collection.add(group, outputs, names)
                if index == 0:
                    collection.add_images(feed, outputs, len(names))
        collection.end_pass()
    surveyed = stream if isinstance(stream, CalibrationStream) else None
    data = surveyed.sha256 if surveyed else collection.data_sha256()
    ranges = collection.ranges(Keys(model=model_sha256(model), data=data, recipe=recipe.sha256), surveyed)
    found = (*_look_at_zero(ranges.zero), *look_at_classes(ranges.coverage))
    warn_of(found)
    return replace(ranges, warnings=(*(surveyed.warnings if surveyed else ()), *found))


class _Collection:
    """What has been seen so far, over feeds and passes."""

    def __init__(self, probes: Sequence[Probe], recipe: Recipe, facts: GraphFacts) -> None:
        self._histograms = {probe.tensor: Histogram(recipe.bins) for probe in probes}
        self._recipe = recipe
        self._class_names = facts.info.class_names
        self._classes = ClassCounter(self._class_names)
        self._encoding = facts.mask_encoding
        self._digests: list[str] = []
        self._seen = 0  # images in this pass

    def add(self, group: Sequence[Probe], outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
        """Take the probes of one run."""
        for probe in group:
            reading = probe.read(outputs)
            _check_finite(probe.tensor, reading.check, names)
            self._histograms[probe.tensor].add(reading.values, reading.largest)
        self._seen += len(names)

    def add_images(self, feed: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], count: int) -> None:
        """Take what the first pass alone needs: what the images are and what the model sees in them."""
        self._digests += image_digests(feed, count)
        masks = read_masks(outputs, self._encoding)
        if masks is not None:
            sizes = contents_of(feed, masks.shape[1:], count)
            for mask, (height, width) in zip(masks, sizes, strict=False):  # a batch may be filled up
                self._classes.add(mask[:height, :width])

    def end_pass(self) -> None:
        """Check that the pass saw what the first one saw, and that this can be calibrated on."""
        if self._seen != len(self._digests):
            raise CalibrationError(
                f"calibration stream: expected {len(self._digests)} images in every pass, got {self._seen}; give one "
                "that can be repeated."
            )
        check_distinct(self._digests)
        self._seen = 0

    def data_sha256(self) -> str:
        """Return a key for feeds without one of their own."""
        return sha256_bytes(canonical_json(self._digests))

    def ranges(self, keys: Keys, surveyed: CalibrationStream | None) -> Ranges:
        """Estimate a range for every tensor."""
        labelled = surveyed.labelled if surveyed else ClassCounter(self._class_names)
        used = {name: histogram for name, histogram in self._histograms.items() if histogram.largest}
        tensors = {name: estimate(histogram, self._recipe) for name, histogram in used.items()}
        return Ranges(
            tensors={name: tensors.get(name, 1.0) for name in self._histograms},
            figures={name: describe(histogram, tensors[name]) for name, histogram in used.items()},
            zero=tuple(name for name in self._histograms if name not in used),
            images=len(self._digests),
            coverage=coverage_of(self._classes, labelled),
            recipe=self._recipe,
            keys=keys,
            exposure=surveyed.exposure if surveyed else None,
        )


def _largest_feed(stream: Stream, facts: GraphFacts) -> dict[str, tuple[int, ...]]:
    """Return the largest shape of the network's input; the batch is that of the first feed."""
    first = next(iter(stream), None)
    if first is None:
        raise CalibrationError(_EMPTY)
    batch, height, width = batch_of(first), facts.shape.height.max, facts.shape.width.max
    return {"image": (batch, height, width, 3) if facts.input_form == "uint8" else (batch, 3, height, width)}


def _check_finite(tensor: str, check: np.ndarray, names: Sequence[str]) -> None:
    if np.isfinite(check).all():
        return
    per_image = np.isfinite(check).reshape(check.shape[0] if check.ndim else 1, -1).all(1)
    index = int(np.argmin(per_image))
    where = names[index] if index < len(names) and len(per_image) > 1 else ", ".join(names)
    raise CalibrationError(
        f"tensor {tensor!r}, {where}: expected finite activations, got NaN or infinity; look for such values in the "
        "checkpoint (training may have diverged) and check that mean and std are those of the training."
    )


def _look_at_zero(zero: tuple[str, ...]) -> tuple[str, ...]:
    """Say which tensors were zero everywhere."""
    return (f"zero everywhere, range set to 1: {listed(zero)}; is the checkpoint trained?",) if zero else ()
