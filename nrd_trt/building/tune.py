"""The ladder: the lowest precision whose masks hold the gates, found layer by layer. Starts from a checkpoint.

int8 everywhere, then int8 without the most sensitive layers, then fp16, then fp32; the first rung that holds the gates
wins. Sensitivity is measured with one layer at a time in int8. Every figure goes to a state file as soon as it is
known, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from tqdm import tqdm

from nrd_trt.benchmarking.timing import time_in_turn
from nrd_trt.building.build import build_bundle, plan_runner_here
from nrd_trt.building.request import BuildRequest, samples_for
from nrd_trt.building.tune_record import Tuned, describe, record_paths
from nrd_trt.building.tune_state import TuneState
from nrd_trt.engine.bundle import check_target
from nrd_trt.errors import ConfigError
from nrd_trt.exporting.precision import Calibration, Quantization, Ranges, apply_precision, nodes_to_keep
from nrd_trt.figures import Gates
from nrd_trt.files import check_absent, sha256_bytes
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.quantize import choose_layers, insert_qdq, plan_quantization
from nrd_trt.model import load_trained
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import Precision
from nrd_trt.validation.compare import Comparator, Comparison, Reference, Sample
from nrd_trt.validation.references import torch_reference
from nrd_trt.validation.samples import MEASURED_COUNT, SampleSource

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

MAX_MIOU_DROP, MIN_AGREEMENT = 0.005, 0.99
SENSITIVITY_IMAGES = 8
"""A layer's rank is known after a few images; the rungs are judged on all."""
_WARMUP, _RUNS = 20, 100

Latency = Callable[[onnx.ModelProto], float | None]


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What `nrd-trt tune` is asked for.

    Attributes:
        build: Checkpoint, output, images, form and gates of the bundle to write; its precision is chosen here.
        resume: Go on from the state that an earlier run left.
        calibrated_on_data: Whether the images to calibrate on are those to judge on, for the record.
        on_rung: Receives a line on every rung that was tried.
        latency: Median milliseconds of a typed file; None measures its plan where this machine runs it. Where there
            is a latency, a rung must be faster than the next one up.
    """

    build: BuildRequest
    resume: bool = False
    calibrated_on_data: bool = False
    latency: Latency | None = None
    on_rung: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One step of the ladder.

    Attributes:
        name: ``int8``, ``int8 without N layers``, ``fp16`` or ``fp32``.
        precision: Of the file.
        layers: Layers in int8.
    """

    name: str
    precision: Precision
    layers: tuple[str, ...] = ()


def tune(request: TuneRequest) -> Tuned:
    """Find the lowest precision that holds the gates, and build its bundle.

    Raises:
        ConfigError: Options exclude each other, a file would be replaced, or the state is that of another run.
        CalibrationError: The calibration cannot be done.
        NrdTrtError: The input is bad; nothing is written but the state.
    """
    build = _with_gates(request.build)
    _check_output(build, resume=request.resume)
    if build.quantization is None or build.precision is not None:
        raise ConfigError("tune: expected images to calibrate on and no --precision; the ladder chooses it.")
    model = load_trained(build.source, build.checkpoint_options)
    samples = samples_for(build, build.form.shape(model.info.size_hw), model.info)
    build.on_stage("exporting to ONNX, fp32")
    full = _export(build, model, samples)
    state = TuneState.open(build.output, _key(build, full), resume=request.resume)
    judge = _Judge(samples, model, progress=build.progress)
    images = [sample.image for sample in samples.first(MEASURED_COUNT)]
    latency = request.latency or (lambda typed: measure_latency(build, typed, samples))
    ladder = _Ladder(replace(request, latency=latency), build.quantization, full, images, judge, state)
    build.on_stage(f"measuring the sensitivity of {len(ladder.layers)} layers")
    sensitivity = ladder.sensitivity()
    build.on_stage("climbing the ladder")
    winner, records = ladder.climb(sensitivity)
    gates = Gates.of("int8", build.min_agreement, build.max_miou_drop)
    tuned = Tuned(
        rungs=records,
        sensitivity=sensitivity,
        winner=winner.name if winner else None,
        gates=gates,
        calibrated_on_data=request.calibrated_on_data,
    )
    if winner is None:
        return tuned
    build.on_stage(f"building the winner, {winner.name}")
    bundle = build_bundle(
        replace(
            build,
            precision=winner.precision,
            quantization=ladder.quantization_of(winner),
            calibration=_calibration_of(build, winner),
        )
    )
    state.remove()
    return replace(tuned, bundle=bundle)


class _Judge:
    """Holds masks against those of the trained model, which are drawn once, and against labels."""

    def __init__(self, samples: SampleSource, model: Segmentor, *, progress: bool) -> None:
        self._samples, self._progress = samples, progress
        self._names = model.info.class_names
        self._references: list[Reference] = []
        with torch_reference(model) as draw:
            self._references = [draw(sample) for sample in self._bar("PyTorch's masks", None)]

    def compare(
        self, model: onnx.ModelProto, threads: int | None, *, what: str, count: int | None = None
    ) -> Comparison:
        """Run a file over the first `count` samples, or all of them."""
        comparator = Comparator(self._names)
        with Engine(OrtRunner(model, threads=threads), read_facts(model)) as engine:
            for reference, sample in zip(self._references, self._bar(what, count), strict=False):
                comparator.add(reference, engine.mask(sample.image), sample)
        return comparator.result()

    def _bar(self, what: str, count: int | None) -> Iterator[Sample]:
        total = len(self._samples) if count is None else min(count, len(self._samples))
        bar = tqdm(
            zip(range(total), self._samples, strict=False),
            total=total,
            desc=what,
            unit="image",
            delay=2,
            file=sys.stderr,
            disable=not self._progress,
            leave=False,
        )
        for _, sample in bar:
            yield sample


class _Ladder:
    """The rungs, from the bottom up."""

    def __init__(
        self,
        request: TuneRequest,
        quantization: Quantization,
        full: onnx.ModelProto,
        images: list[np.ndarray],
        judge: _Judge,
        state: TuneState,
    ) -> None:
        self._request, self._build = request, request.build
        self._latency: Latency = request.latency or (lambda model: None)
        self._full, self._judge, self._state = full, judge, state
        self.layers = choose_layers(full, include=quantization.include, exclude=quantization.exclude)
        tensors = tuple(plan_quantization(full, self.layers).tensors)
        ranges: Ranges = quantization.measure(full, tensors)
        self.quantization = replace(quantization, measure=lambda model, names: ranges)
        self._ranges = ranges
        self._images = images  # that ranges of 16-bit tensors are measured on

    def quantization_of(self, rung: Rung) -> Quantization | None:
        """Return how the rung's file is made; the layers that it leaves out become options of the command line."""
        if not rung.layers:
            return None
        left_out = [layer for layer in self.layers if layer not in rung.layers]
        words = [word for layer in left_out for word in ("--exclude", f"^{re.escape(layer)}$")]
        return replace(self.quantization, layers=rung.layers, words=(*self.quantization.words, *words))

    def sensitivity(self) -> dict[str, float]:
        """Return the share of the pixels that each layer changes when it alone computes in int8."""
        for layer in self.layers:
            if layer not in self._state.sensitivity:
                alone = insert_qdq(self._full, plan_quantization(self._full, [layer]), self._ranges)
                found = self._judge.compare(
                    select_outputs(alone, "mask"), self._build.threads, what=layer, count=SENSITIVITY_IMAGES
                )
                self._state.add_sensitivity(layer, 1.0 - (found.pixel_agreement or 0.0))
        return {layer: self._state.sensitivity[layer] for layer in self.layers}

    def climb(self, sensitivity: Mapping[str, float]) -> tuple[Rung | None, list[dict[str, Any]]]:
        """Try the rungs from the bottom; return the first that holds, and the record of each that was tried."""
        rungs = list_rungs(self.layers, sensitivity)
        records = []
        for index, rung in enumerate(rungs):
            above = rungs[index + 1] if index + 1 < len(rungs) else None
            record = self._record(rung)
            record["rejected"] = self._reasons(record, above)
            records.append(record)
            self._request.on_rung(describe(record))
            if not record["rejected"]:
                return rung, records
        return None, records

    def _record(self, rung: Rung) -> dict[str, Any]:
        if rung.name not in self._state.rungs:
            model = self._typed(rung)
            found = self._judge.compare(select_outputs(model, "mask"), self._build.threads, what=rung.name)
            figures = {"pixel_agreement": found.pixel_agreement, "miou_engine": found.miou_engine}
            figures |= {"miou_drop": found.miou_drop, "latency_ms": self._latency(model)}
            self._state.add_rung(rung.name, {**asdict(rung), "int8_layers": len(rung.layers), **figures})
        return dict(self._state.rungs[rung.name])

    def _reasons(self, record: Mapping[str, Any], above: Rung | None) -> list[str]:
        gates = Gates.of(record["precision"], self._build.min_agreement, self._build.max_miou_drop)
        reasons = gates.failures(agreement=record["pixel_agreement"], miou_drop=record["miou_drop"])
        if reasons or above is None or record["latency_ms"] is None:
            return reasons
        higher = self._record(above)["latency_ms"]
        if not record["latency_ms"] < higher:
            reasons.append(f"not faster than {above.name}: {record['latency_ms']:.3f} ms and {higher:.3f} ms")
        return reasons

    def _typed(self, rung: Rung) -> onnx.ModelProto:
        if rung.precision == "fp32":
            return self._full
        return apply_precision(self._full, rung.precision, self._kept, self.quantization_of(rung)).model

    @cached_property
    def _kept(self) -> Mapping[str, str]:
        """Nodes that stay in fp32 on every rung with 16 bits: what is not int8 is fp16."""
        return nodes_to_keep(self._full, "fp16", self._images, self._build.calibration, threads=self._build.threads)


def measure_latency(build: BuildRequest, model: onnx.ModelProto, samples: SampleSource) -> float | None:
    """Return the median milliseconds of a call of the file's plan, or None where this machine cannot run it.

    ONNX Runtime is not timed: its kernels for a CPU say nothing about the device.
    """
    typed = select_outputs(model, "mask")
    runner = plan_runner_here(build, typed)
    if runner is None:
        return None
    with runner:
        feed = image_feed(samples.first(1)[0].image, read_facts(typed))
        timed = time_in_turn({"plan": lambda: runner.infer(feed)}, warmup=_WARMUP, runs=_RUNS)
    return timed["plan"].p50


def list_rungs(layers: tuple[str, ...], sensitivity: Mapping[str, float]) -> list[Rung]:
    """Return the ladder: each mixed rung leaves twice as many of the most sensitive layers out as the one before."""
    worst_first = sorted(layers, key=lambda layer: (-sensitivity[layer], layer))
    rungs = [Rung(name="int8", precision="int8", layers=layers)]
    dropped = 1
    while dropped < len(layers):
        left = set(worst_first[dropped:])
        name = f"int8 without {dropped} layer{'s' * (dropped > 1)}"
        rungs.append(Rung(name=name, precision="int8", layers=tuple(layer for layer in layers if layer in left)))
        dropped *= 2
    return [*rungs, Rung(name="fp16", precision="fp16"), Rung(name="fp32", precision="fp32")]


def _with_gates(build: BuildRequest) -> BuildRequest:
    return replace(
        build,
        min_agreement=MIN_AGREEMENT if build.min_agreement is None else build.min_agreement,
        max_miou_drop=MAX_MIOU_DROP if build.max_miou_drop is None else build.max_miou_drop,
    )


def _check_output(build: BuildRequest, *, resume: bool) -> None:
    """Raise `NrdTrtError` where ``--force`` is needed; the record of the run that is resumed may be replaced."""
    check_target(build.output, force=build.force)
    resumed = resume and TuneState.path_of(build.output).exists()
    for path in record_paths(build.output):
        check_absent(path, force=build.force or resumed)


def _export(build: BuildRequest, model: Segmentor, samples: SampleSource) -> onnx.ModelProto:
    from nrd_trt.building.sources import export_checkpoint

    return export_checkpoint(replace(build, quantization=None), model, samples, "fp32").typed.model


def _calibration_of(build: BuildRequest, rung: Rung) -> Calibration | None:
    """Return what the rung's file is measured on: int8 on all that is given, 16 bits on images, fp32 on nothing."""
    given = build.calibration
    return given if rung.precision == "int8" or (rung.precision == "fp16" and given and given.feeds) else None


def _key(build: BuildRequest, full: onnx.ModelProto) -> str:
    """Return what a state belongs to: the network, the images and how int8 is made."""
    quantization, calibration = build.quantization, build.calibration
    how = (quantization.include, quantization.exclude, quantization.words) if quantization else ()
    images = (str(build.data), str(build.labels), calibration.words if calibration else ())
    what = repr((*images, build.fit, build.ignore_index, how))
    return sha256_bytes(full.SerializeToString(deterministic=True) + what.encode())
