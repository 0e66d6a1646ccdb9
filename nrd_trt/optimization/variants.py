"""The variants of one network at one size: its file in every precision, their masks compared, and their bundles.

Every figure goes to a state file as soon as it is known, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

import nrd_trt
from nrd_trt.building.construct import build_bundle, choose_builder
from nrd_trt.building.request import BuildRequest
from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.data.folders import default_labels, list_images
from nrd_trt.data.samples import MEASURED_COUNT, Sample, SampleSource
from nrd_trt.engine.bundle import Bundle, is_bundle, read_bundle
from nrd_trt.errors import BundleError
from nrd_trt.exporting.export import export_full
from nrd_trt.exporting.precision import apply_precision, nodes_to_keep
from nrd_trt.files import sha256_bytes, sha256_file
from nrd_trt.gates import Gates
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.quantize import QuantizationPlan, insert_qdq, plan_quantization
from nrd_trt.optimization.rungs import Rung, Step, open_state
from nrd_trt.progress import bar
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.validation.compare import Comparator, Comparison, Reference
from nrd_trt.validation.references import torch_reference

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

SENSITIVITY_IMAGES = 8
"""A layer's rank is known after a few images; the rungs are judged on all."""

TimeFile = Callable[[onnx.ModelProto], float | None]
"""Returns the milliseconds of a call of a typed file; None where it cannot be timed."""


class Variants:
    """One network at one size. The export and PyTorch's masks are made when they are first needed.

    Args:
        model: The trained network.
        request: What a bundle of it is asked for; the precision is that of each variant.
        calibrator: Makes int8.
        state_path: Where figures are kept.
        resume: Go on from the figures that lie there.
        time_file: Times every variant that is tried.
        count: Compare masks on this many images, evenly spaced; None takes all.

    Raises:
        ConfigError: The figures to go on from are damaged, or belong to another network, other images or options.
    """

    def __init__(
        self,
        model: Segmentor,
        request: BuildRequest,
        calibrator: Calibrator,
        *,
        state_path: Path,
        resume: bool,
        time_file: TimeFile,
        count: int | None = None,
    ) -> None:
        self.model, self.request, self.calibrator = model, request, calibrator
        self._time_file, self._count = time_file, count
        self._state_path = state_path
        self._state = open_state(state_path, _key(request, calibrator, count), resume=resume)

    @cached_property
    def full(self) -> onnx.ModelProto:
        """The network in fp32, whose output is the mask."""
        return select_outputs(self._exported, "mask")

    @cached_property
    def _exported(self) -> onnx.ModelProto:
        request = self.request
        request.on_stage("exporting to ONNX, fp32")
        return export_full(self.model, request.source, self._samples.shape, request.input_form)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The layers that may compute in int8."""
        return self.calibrator.layers(self.full)

    @property
    def image_count(self) -> int:
        """Number of images that masks are compared on."""
        return len(self._samples) if self._count is None else min(self._count, len(self._samples))

    def known(self, name: str) -> Rung | None:
        """Return what was measured of the step of this name, or None."""
        return self._state.rungs.get(name)

    def tried(self, step: Step) -> Rung:
        """Make and measure a variant, or take what was measured before."""
        if step.name not in self._state.rungs:
            file = self._typed(step)
            found = self._compare(file, what=step.name)
            self._state.rungs[step.name] = Rung(
                **vars(step),
                int8_layers=len(step.layers),
                pixel_agreement=found.pixel_agreement,
                miou_engine=found.miou_engine,
                miou_drop=found.miou_drop,
                latency_ms=self._time_file(file),
                class_iou=found.class_iou,
                class_drop=found.class_drop,
                border_agreement=found.border_agreement,
                boundary_f=found.boundary_between,
                warnings=found.warnings,
            )
            self._state.save(self._state_path)
        return self._state.rungs[step.name]

    def sensitivity(self) -> dict[str, float]:
        """Return the share of the pixels that each layer changes when it alone computes in int8."""
        known = self._state.sensitivity
        missing = [layer for layer in self.layers if layer not in known]
        if missing:
            self.request.on_stage(f"measuring the sensitivity of {len(missing)} layers")
            ranges = self.ranges()
        for layer in missing:
            alone = insert_qdq(self.full, self._plan([layer]), ranges)
            found = self._compare(alone, what=layer, count=SENSITIVITY_IMAGES)
            known[layer] = 1.0 - (found.pixel_agreement or 0.0)
            self._state.save(self._state_path)
        return {layer: known[layer] for layer in self.layers}

    def ranges(self) -> dict[str, float]:
        """Return the ranges of every layer, which the calibrator and those made from it then have."""
        return self.calibrator.ranges(self.full, self._plan(self.layers).tensors)

    def build(self, step: Step, output: Path, gates: Gates | None = None) -> Bundle:
        """Build the bundle of a variant.

        Args:
            step: The variant.
            output: Where to write it.
            gates: Its own gates of agreement and mIoU; None takes those that the request asks for.
        """
        request = replace(
            self.request,
            output=output,
            precision=step.precision,
            calibrator=self._calibrator_of(step),
            full=self._exported,
        )
        if gates is not None:
            request = replace(request, min_agreement=gates.min_agreement, max_miou_drop=gates.max_miou_drop)
        return build_bundle(request)

    def built(self, step: Step, path: Path) -> Bundle | None:
        """Return the bundle of a variant that an earlier run built by the same gates and builder, where it is whole."""
        try:
            bundle = read_bundle(path) if is_bundle(path) else None
        except BundleError:
            return None
        if bundle is None or {*bundle.record.precision.int8_layers} != {*step.layers}:
            return None
        record, due = bundle.record, self.request.gates(step.precision)
        return bundle if (record.validation.gates, record.builder.name) == (due, choose_builder(self.request)) else None

    def forget(self) -> None:
        """Remove the state."""
        self._state_path.unlink(missing_ok=True)

    def _plan(self, layers: Iterable[str]) -> QuantizationPlan:
        return plan_quantization(self.full, layers, self.calibrator.target)

    def _typed(self, step: Step) -> onnx.ModelProto:
        if step.precision == "fp32":
            return self.full
        return apply_precision(self.full, step.precision, self._kept, self._calibrator_of(step))

    def _calibrator_of(self, step: Step) -> Calibrator | None:
        """Return what a step's file is made with: 8 bits on all that is given, fp16 on images, fp32 on nothing."""
        if step.precision == "int8":
            return self.calibrator.without(layer for layer in self.layers if layer not in step.layers)
        if step.precision == "fp8":
            self.ranges()  # of int8's layers, which those of fp8 are among
            return self.calibrator.to("fp8")
        return self.calibrator if step.precision != "fp32" and self.calibrator.has_images else None

    @cached_property
    def _kept(self) -> Mapping[str, str]:
        """Nodes that stay in fp32 in every variant with 16 bits: what is not int8 is fp16."""
        images = [sample.image for sample in self._samples.first(MEASURED_COUNT)]
        request = self.request
        return nodes_to_keep(
            self.full, "fp16", images, self.calibrator, threads=request.run.threads, progress=request.progress
        )

    @cached_property
    def _samples(self) -> SampleSource:
        return self.request.samples(self.request.shape(self.model.info.size_hw), self.model.info)

    @cached_property
    def _compared(self) -> SampleSource | list[Sample]:
        return self._samples if self._count is None else self._samples.spread(self._count)

    @cached_property
    def _references(self) -> list[Reference]:
        """Masks of the trained network, which are drawn once."""
        with torch_reference(self.model) as draw:
            return [draw(sample) for sample in self._shown(self._compared, "PyTorch's masks", len(self._compared))]

    def _compare(self, file: onnx.ModelProto, *, what: str, count: int | None = None) -> Comparison:
        """Run a file over the first `count` samples, or all of them; compare its masks with PyTorch's and labels."""
        comparator, references = Comparator(self.model.info.class_names), self._references
        total = min(count or len(references), len(references))
        with Engine(OrtRunner(file, threads=self.request.run.threads), read_facts(file)) as engine:
            shown = self._shown(islice(self._compared, total), what, total)
            for reference, sample in zip(references, shown, strict=False):
                comparator.add(reference, engine.mask(sample.image), sample)
        return comparator.result()

    def _shown(self, samples: Iterable[Sample], what: str, total: int) -> Iterable[Sample]:
        return bar(samples, desc=what, unit="image", show=self.request.progress, total=total)


def _key(request: BuildRequest, calibrator: Calibrator, count: int | None) -> str:
    """Return what a state belongs to: the network, the images, how int8 is made and how plans are built."""
    network = (nrd_trt.__version__, sha256_file(request.source), request.options, request.size, request.input_form)
    given = (str(request.data), str(request.labels), request.fit, request.resample, request.ignore_index, count)
    how = (calibrator.source, calibrator.arguments("int8"), *filter(None, [request.config.builder_options]))
    folders = (request.data, request.labels or (request.data and default_labels(request.data)), Path(calibrator.source))
    images = [stamp for folder in folders if folder is not None and folder.is_dir() for stamp in _stamps(folder)]
    return sha256_bytes(repr((*network, *given, *how, *images)).encode())


def _stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield what changes with the images of a folder."""
    for path in list_images(folder):
        yield path.name, path.stat().st_size, path.stat().st_mtime_ns
