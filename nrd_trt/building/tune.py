"""The ladder: the lowest precision whose masks hold the gates, found layer by layer. Starts from a checkpoint.

int8 everywhere, then int8 without the most sensitive layers, then fp16, then fp32; the first rung that holds the gates
wins. Where the lowest rung does not hold, sensitivity is measured with one layer at a time in int8. Every figure goes
to a state file as soon as it is known, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nrd_trt.benchmarking.calls import call_on_host
from nrd_trt.benchmarking.timing import time_in_turn
from nrd_trt.building.construct import build_bundle, check_build, plan_runner_here
from nrd_trt.building.request import BuildRequest
from nrd_trt.building.tune_record import (
    Rung,
    Step,
    Tuned,
    open_state,
    record_paths,
    state_path,
    write_tuned,
)
from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.data.samples import MEASURED_COUNT, SampleSource
from nrd_trt.engine.bundle import check_target
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.engine.options import OptionValue, option_texts
from nrd_trt.exporting.export import export_checked
from nrd_trt.exporting.precision import apply_precision, nodes_to_keep
from nrd_trt.files import PNG, check_file, sha256_bytes
from nrd_trt.gates import Gates
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.quantize import QuantizationPlan, insert_qdq, plan_quantization
from nrd_trt.model import load_model
from nrd_trt.progress import OnMessage, OnStage, bar, silent
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.select import RunOptions
from nrd_trt.specs import (
    BuilderName,
    Estimator,
    Fit,
    InputForm,
    Precision,
    Provider,
    Resample,
    RunnerName,
    Size,
    Target,
    as_path,
    optional_path,
)
from nrd_trt.validation.compare import Comparator, Comparison, Reference
from nrd_trt.validation.references import torch_reference

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model import CheckpointFields
    from nrd_trt.model.network import Segmentor

_MAX_MIOU_DROP, _MIN_AGREEMENT = 0.005, 0.99
"""Gates of every rung where none are asked for and its precision has none that are stricter."""
SENSITIVITY_IMAGES = 8
"""A layer's rank is known after a few images; the rungs are judged on all."""
_WARMUP, _RUNS = 20, 100
_ABOVE_INT8: Mapping[Target, tuple[Precision, ...]] = {"gpu": ("fp16", "fp32"), "cpu": ("fp32",)}
"""Rungs without int8. int8 everywhere must be faster than the first; the rungs between them are known once the layers
were measured."""

TimeFile = Callable[[onnx.ModelProto], float | None]
"""Returns the median milliseconds of a call of a typed file; None where it cannot be timed."""


def tune(
    checkpoint: Path | str,
    output: Path | str,
    data: Path | str,
    *,
    labels: Path | str | None = None,
    ignore_index: int | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    calibration: Path | str | None = None,
    recipe: Estimator | None = None,
    images: int | None = None,
    seed: int | None = None,
    memory_mb: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    target: Target | None = None,
    min_agreement: float | None = None,
    max_miou_drop: float | None = None,
    min_class_iou: float | None = None,
    max_class_drop: float | None = None,
    min_border_agreement: float | None = None,
    min_boundary_f: float | None = None,
    builder: BuilderName = "auto",
    runner: RunnerName = "auto",
    plugin: Path | str | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    builder_options: Mapping[str, OptionValue] | None = None,
    size: Size | None = None,
    input_form: InputForm | None = None,
    sensitivity: bool = False,
    time_file: TimeFile | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    on_stage: OnStage = silent,
    on_rung: Callable[[Rung], None] = lambda rung: None,
    on_message: OnMessage = silent,
    describe: Callable[[str], str] | None = None,
    **options: Unpack[CheckpointFields],
) -> Tuned:
    """Find the lowest precision whose masks hold the gates, and build its bundle: int8, mixed, fp16 or fp32.

    Args:
        checkpoint: ``.pth`` or ``.safetensors``.
        output: Where to write the winner's bundle, ``NAME.nrd``; ``NAME.tune.json`` beside it is the record.
        data: Folder of images that the rungs are judged on, or one with ``images/`` and ``labels/``.
        labels: See `nrd_trt.build`.
        ignore_index: See `nrd_trt.build`.
        fit: See `nrd_trt.build`.
        resample: See `nrd_trt.build`.
        calibration: See `nrd_trt.build`; None takes `data`, which flatters int8.
        recipe: See `nrd_trt.build`.
        images: See `nrd_trt.build`.
        seed: See `nrd_trt.build`.
        memory_mb: See `nrd_trt.build`.
        include: See `nrd_trt.build`.
        exclude: See `nrd_trt.build`.
        target: See `nrd_trt.build`; for ``"cpu"`` there is no rung of fp16, which a CPU computes as fp32.
        min_agreement: Gate: share of equal pixels, 0-1, on every rung; None is that of the rung's precision, and at
            least 0.99.
        max_miou_drop: Gate: loss of mIoU against labels, 0-1, on every rung; None is that of the rung's precision, and
            at most 0.005.
        min_class_iou: See `nrd_trt.build`.
        max_class_drop: See `nrd_trt.build`.
        min_border_agreement: See `nrd_trt.build`.
        min_boundary_f: See `nrd_trt.build`.
        builder: See `nrd_trt.build`.
        runner: See `nrd_trt.build`; the rungs themselves are judged in ONNX Runtime.
        plugin: See `nrd_trt.build`.
        threads: CPU threads of ONNX Runtime; None leaves the choice to it.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: See `nrd_trt.open_bundle`.
        device: See `nrd_trt.open_bundle`.
        builder_options: See `nrd_trt.build`.
        size: ``(h, w)``, multiples of 32; None takes the checkpoint's.
        input_form: See `nrd_trt.export`; None is ``"uint8"``.
        sensitivity: Measure the sensitivity of every layer even where int8 everywhere holds.
        time_file: Returns the milliseconds of a file; None times its plan where this machine runs it. Where both are
            known, int8 everywhere must be faster than fp16, and every other rung faster than the next one up.
        resume: Go on from the state that an earlier run left.
        force: Replace existing files.
        progress: Show bars on stderr where something takes over two seconds.
        on_stage: Receives a line when a stage begins.
        on_rung: Receives every rung that was tried; ``str(rung)`` is one line.
        on_message: Receives TensorRT's messages as ``(severity, text)``.
        describe: See `nrd_trt.build`.
        **options: What the checkpoint does not tell, as for `nrd_trt.load_model`.

    Returns:
        The rungs, the winner and its bundle; a ladder without a winner is a result, too.

    Raises:
        ConfigError: An argument is not known, would be ignored, or excludes another; a file would be replaced; or the
            state is that of another run.
        CalibrationError: The calibration cannot be done.
        NrdTrtError: The input is bad. Nothing is written but the state.

    Warns:
        UserWarning: The rungs are judged on the images that they are calibrated on, or something speaks against
            calibrating on the images; see `nrd_trt.calibrate`. Also if those of `data` are exposed otherwise.
    """
    data, labels = as_path("data", data), optional_path("labels", labels)
    plugin = optional_path("plugin", plugin)
    calibrator = Calibrator(
        data if calibration is None else calibration,
        recipe=recipe,
        images=images,
        seed=seed,
        memory_mb=memory_mb,
        include=include,
        exclude=exclude,
        target=target,
        fit=fit,
        resample=resample,
        validation=data,
        labels=labels if calibration is None else None,
        ignore_index=ignore_index,
        threads=threads,
        progress=progress,
    )
    request = BuildRequest(
        source=as_path("checkpoint", checkpoint),
        output=as_path("output", output),
        size=size,
        input_form=input_form,
        calibrator=calibrator,
        data=data,
        labels=labels,
        ignore_index=ignore_index,
        fit=fit,
        resample=resample,
        builder=builder,
        config=ConfigOptions(builder_options=option_texts(builder_options or {})),
        min_agreement=min_agreement,
        max_miou_drop=max_miou_drop,
        min_class_iou=min_class_iou,
        max_class_drop=max_class_drop,
        min_border_agreement=min_border_agreement,
        min_boundary_f=min_boundary_f,
        run=RunOptions(runner=runner, plugin=plugin, threads=threads, cuda=cuda, cuda_graph=cuda_graph, device=device),
        force=force,
        progress=progress,
        on_stage=on_stage,
        on_message=on_message,
        describe=describe,
        options=options,
    )
    _check_output(request, resume=resume)
    check_build(request)
    if calibrator.target == "cpu":  # a winner in fp32 has no calibrator that tells it
        request = replace(request, builder="onnxruntime")
    calibrated_on_data = calibrator.warn_of_same_images()
    ladder = _Ladder(request, calibrator, resume=resume, time_file=time_file, on_rung=on_rung)
    tuned = replace(ladder.run(sensitivity=sensitivity), calibrated_on_data=calibrated_on_data)
    write_tuned(tuned)
    return tuned


def _check_output(request: BuildRequest, *, resume: bool) -> None:
    """Raise `NrdTrtError` where `force` is needed; the record of the run that is resumed may be replaced."""
    check_target(request.output, force=request.force)
    resumed = resume and state_path(request.output).exists()
    for path in record_paths(request.output):
        marks = [PNG] if path.suffix == ".png" else [b'"rungs"', b'"sensitivity"']
        check_file(path, force=request.force or resumed, marks=marks)


class _Ladder:
    """The rungs, from the bottom up."""

    def __init__(
        self,
        request: BuildRequest,
        calibrator: Calibrator,
        *,
        resume: bool,
        time_file: TimeFile | None,
        on_rung: Callable[[Rung], None],
    ) -> None:
        self._request, self._calibrator, self._on_rung = request, calibrator, on_rung
        model = load_model(request.source, **request.options)
        samples = request.samples(request.shape(model.info.size_hw), model.info)
        request.on_stage("exporting to ONNX, fp32")
        exported = export_checked(
            model,
            request.source,
            samples,
            precision="fp32",
            input_form=request.input_form,
            threads=request.run.threads,
            progress=request.progress,
        )
        self._full = exported.model
        self._state_path = state_path(request.output)
        self._state = open_state(self._state_path, _key(request, calibrator, self._full), resume=resume)
        self._judge = _Judge(samples, model, progress=request.progress)
        self._images = [sample.image for sample in samples.first(MEASURED_COUNT)]
        self._time_file = time_file or (lambda typed: _plan_latency(request, typed, self._images[0]))
        self._layers = calibrator.layers(self._full)

    def run(self, *, sensitivity: bool) -> Tuned:
        """Climb and build the winner's bundle; layers are measured where they are asked for or decide a rung."""
        request = self._request
        request.on_stage("taking the ranges of int8")
        self._ranges()
        measured = self._sensitivity() if sensitivity else {}
        request.on_stage("climbing the ladder")
        target = self._calibrator.target
        rungs = self._climb([_lowest(self._layers)], above=_higher(target)[0])
        if rungs[-1].rejected:
            measured = measured or self._sensitivity()
            rungs += self._climb(list_steps(self._layers, measured, target)[1:])
        winner = None if rungs[-1].rejected else rungs[-1]
        bundle = None
        if winner is not None:
            request.on_stage(f"building the winner, {winner.name}")
            gates = rung_gates(request, winner.precision)
            bundle = build_bundle(
                replace(
                    request,
                    precision=winner.precision,
                    calibrator=self._calibrator_of(winner),
                    min_agreement=gates.min_agreement,
                    max_miou_drop=gates.max_miou_drop,
                )
            )
            self._state_path.unlink(missing_ok=True)
        return Tuned(
            rungs=tuple(rungs),
            sensitivity=measured,
            winner=winner.name if winner else None,
            gates=rung_gates(request, "int8"),
            calibrated_on_data=False,
            files=record_paths(request.output),
            bundle=bundle,
        )

    def _ranges(self) -> dict[str, float]:
        """Return the ranges of every layer, which this calibrator and those made from it then have."""
        return self._calibrator.ranges(self._full, self._plan(self._layers).tensors)

    def _plan(self, layers: Sequence[str]) -> QuantizationPlan:
        return plan_quantization(self._full, layers, self._calibrator.target)

    def _sensitivity(self) -> dict[str, float]:
        """Return the share of the pixels that each layer changes when it alone computes in int8."""
        self._request.on_stage(f"measuring the sensitivity of {len(self._layers)} layers")
        ranges = self._ranges()
        for layer in self._layers:
            if layer not in self._state.sensitivity:
                alone = insert_qdq(self._full, self._plan([layer]), ranges)
                found = self._compare(alone, what=layer, count=SENSITIVITY_IMAGES)
                self._state.sensitivity[layer] = 1.0 - (found.pixel_agreement or 0.0)
                self._state.save(self._state_path)
        return {layer: self._state.sensitivity[layer] for layer in self._layers}

    def _climb(self, steps: Sequence[Step], above: Step | None = None) -> list[Rung]:
        """Try the steps from the bottom, up to the first that holds; `above` comes after the last."""
        rungs: list[Rung] = []
        for step, higher in zip(steps, [*steps[1:], above], strict=True):
            rung = self._tried(step)
            rungs.append(replace(rung, rejected=tuple(self._reasons(rung, higher))))
            self._on_rung(rungs[-1])
            if not rungs[-1].rejected:
                break
        return rungs

    def _tried(self, step: Step) -> Rung:
        """Measure a step, or take what was measured before."""
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

    def _reasons(self, rung: Rung, above: Step | None) -> list[str]:
        reasons = rung_gates(self._request, rung.precision).failures(rung.judged)
        if reasons or above is None or rung.latency_ms is None:
            return reasons
        higher = self._tried(above).latency_ms
        if higher is not None and not rung.latency_ms < higher:
            reasons.append(f"not faster than {above.name}: {rung.latency_ms:.3f} ms and {higher:.3f} ms")
        return reasons

    def _compare(self, file: onnx.ModelProto, *, what: str, count: int | None = None) -> Comparison:
        return self._judge.compare(select_outputs(file, "mask"), self._request.run.threads, what=what, count=count)

    def _typed(self, step: Step) -> onnx.ModelProto:
        if step.precision == "fp32":
            return self._full
        return apply_precision(self._full, step.precision, self._kept, self._calibrator_of(step))

    def _calibrator_of(self, step: Step) -> Calibrator | None:
        """Return what a step's file is made with: int8 on all that is given, fp16 on images, fp32 on nothing."""
        if step.precision == "int8":
            return self._calibrator.without(layer for layer in self._layers if layer not in step.layers)
        return self._calibrator if step.precision == "fp16" and self._calibrator.has_images else None

    @cached_property
    def _kept(self) -> Mapping[str, str]:
        """Nodes that stay in fp32 on every rung with 16 bits: what is not int8 is fp16."""
        return nodes_to_keep(
            self._full,
            "fp16",
            self._images,
            self._calibrator,
            threads=self._request.run.threads,
            progress=self._request.progress,
        )


def rung_gates(request: BuildRequest, precision: Precision) -> Gates:
    """Return what a rung must hold: the gates of its precision, and the ladder's own where those are stricter.

    They are no wish for less agreement, which would loosen the finer gates.
    """
    gates = request.gates(precision)
    if request.min_agreement is None:
        gates = replace(gates, min_agreement=max(gates.min_agreement, _MIN_AGREEMENT))
    if request.max_miou_drop is None:
        gates = replace(gates, max_miou_drop=min(gates.max_miou_drop, _MAX_MIOU_DROP))
    return gates


class _Judge:
    """Compares masks with those of the trained model, which are drawn once, and with labels."""

    def __init__(self, samples: SampleSource, model: Segmentor, *, progress: bool) -> None:
        self._samples, self._progress = samples, progress
        self._names = model.info.class_names
        with torch_reference(model) as draw:
            shown = bar(samples, desc="PyTorch's masks", unit="image", show=progress, total=len(samples))
            self._references: list[Reference] = [draw(sample) for sample in shown]

    def compare(
        self, model: onnx.ModelProto, threads: int | None, *, what: str, count: int | None = None
    ) -> Comparison:
        """Run a file over the first `count` samples, or all of them."""
        comparator = Comparator(self._names)
        total = min(count or len(self._samples), len(self._samples))
        shown = bar(islice(self._samples, total), desc=what, unit="image", show=self._progress, total=total)
        with Engine(OrtRunner(model, threads=threads), read_facts(model)) as engine:
            for reference, sample in zip(self._references, shown, strict=False):
                comparator.add(reference, engine.mask(sample.image), sample)
        return comparator.result()


def _plan_latency(request: BuildRequest, file: onnx.ModelProto, image: np.ndarray) -> float | None:
    """Return the median milliseconds of a call of the file's plan, or None where this machine cannot run it.

    ONNX Runtime is not timed: its kernels for a CPU say nothing about the device.
    """
    typed = select_outputs(file, "mask")
    runner = plan_runner_here(request, typed)
    if runner is None:
        return None
    feed = image_feed(image, read_facts(typed))
    with runner:
        timed = time_in_turn({"plan": partial(call_on_host, runner, feed)}, warmup=_WARMUP, runs=_RUNS)
    return timed["plan"].latency.p50


def list_steps(layers: Sequence[str], sensitivity: Mapping[str, float], target: Target = "gpu") -> list[Step]:
    """Return the ladder: each mixed step leaves twice as many of the most sensitive layers out as the one before."""
    worst_first = sorted(layers, key=lambda layer: (-sensitivity[layer], layer))
    steps = [_lowest(layers)]
    dropped = 1
    while dropped < len(layers):
        left = set(worst_first[dropped:])
        name = f"int8 without {dropped} layer{'s' * (dropped > 1)}"
        steps.append(Step(name=name, precision="int8", layers=tuple(layer for layer in layers if layer in left)))
        dropped *= 2
    return [*steps, *_higher(target)]


def _higher(target: Target) -> list[Step]:
    """Return the steps without int8."""
    return [Step(name=name, precision=name) for name in _ABOVE_INT8[target]]


def _lowest(layers: Sequence[str]) -> Step:
    return Step(name="int8", precision="int8", layers=tuple(layers))


def _key(request: BuildRequest, calibrator: Calibrator, full: onnx.ModelProto) -> str:
    """Return what a state belongs to: the network, the images, how int8 is made and how plans are built."""
    given = (str(request.data), str(request.labels), request.fit, request.resample, request.ignore_index)
    how = (calibrator.source, calibrator.arguments("int8"), *filter(None, [request.config.builder_options]))
    return sha256_bytes(full.SerializeToString(deterministic=True) + repr((*given, how)).encode())
