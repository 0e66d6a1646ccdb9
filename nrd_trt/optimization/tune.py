"""The ladder: the lowest precision whose masks hold the gates, found layer by layer. Starts from a checkpoint.

The first rung of `nrd_trt.optimization.ladder` that holds the gates wins. A run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from nrd_trt.benchmarking.calls import call_on_host
from nrd_trt.benchmarking.timing import time_in_turn
from nrd_trt.building.construct import check_build, plan_runner_here
from nrd_trt.building.request import BuildRequest
from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import check_target
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.engine.options import OptionValue, option_texts
from nrd_trt.files import PNG, check_file
from nrd_trt.gates import Gates
from nrd_trt.graph.metadata import read_facts
from nrd_trt.model import load_model
from nrd_trt.optimization.ladder import climb, higher, list_steps, lowest
from nrd_trt.optimization.rungs import Rung
from nrd_trt.optimization.tune_record import Tuned, record_paths, state_path, write_tuned
from nrd_trt.optimization.variants import TimeFile, Variants
from nrd_trt.progress import OnMessage, OnStage, silent
from nrd_trt.runtime.graph_io import image_feed
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

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model import CheckpointFields

_MAX_MIOU_DROP, _MIN_AGREEMENT = 0.005, 0.99
"""Gates of every rung where none are asked for and its precision has none that are stricter."""
_WARMUP, _RUNS = 20, 100


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
    variants = Variants(
        load_model(request.source, **request.options),
        request,
        calibrator,
        state_path=state_path(request.output),
        resume=resume,
        time_file=time_file or partial(_plan_latency, request),
    )
    tuned = replace(_search(variants, sensitivity, on_rung), calibrated_on_data=calibrated_on_data)
    write_tuned(tuned)
    return tuned


def _check_output(request: BuildRequest, *, resume: bool) -> None:
    """Raise `NrdTrtError` where `force` is needed; the record of the run that is resumed may be replaced."""
    check_target(request.output, force=request.force)
    resumed = resume and state_path(request.output).exists()
    for path in record_paths(request.output):
        marks = [PNG] if path.suffix == ".png" else [b'"rungs"', b'"sensitivity"']
        check_file(path, force=request.force or resumed, marks=marks)


def _search(variants: Variants, sensitivity: bool, on_rung: Callable[[Rung], None]) -> Tuned:
    """Climb and build the winner's bundle; layers are measured where they are asked for or decide a rung."""
    request, layers, target = variants.request, variants.layers, variants.calibrator.target
    gates = partial(rung_gates, request)
    request.on_stage("taking the ranges of int8")
    variants.ranges()
    measured = variants.sensitivity() if sensitivity else {}
    request.on_stage("climbing the ladder")
    rungs = climb(variants, [lowest(layers)], gates, faster_than=higher(target)[:1], on_rung=on_rung)
    if rungs[-1].rejected:
        measured = measured or variants.sensitivity()
        steps = list_steps(layers, measured, target)[1:]
        rungs += climb(variants, steps, gates, faster_than=[*steps[1:], None], on_rung=on_rung)
    winner = None if rungs[-1].rejected else rungs[-1]
    bundle = None
    if winner is not None:
        request.on_stage(f"building the winner, {winner.name}")
        bundle = variants.build(winner, request.output, gates(winner.precision))
        variants.forget()
    return Tuned(
        rungs=tuple(rungs),
        sensitivity=measured,
        winner=winner.name if winner else None,
        gates=gates("int8"),
        calibrated_on_data=False,
        files=record_paths(request.output),
        bundle=bundle,
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


def _plan_latency(request: BuildRequest, file: onnx.ModelProto) -> float | None:
    """Return the median milliseconds of a call of the file's plan, or None where this machine cannot run it.

    ONNX Runtime is not timed: its kernels for a CPU say nothing about the device.
    """
    runner = plan_runner_here(request, file)
    if runner is None:
        return None
    facts = read_facts(file)
    feed = image_feed(street_scene(0, facts.shape.opt_hw).image, facts)
    with runner:
        timed = time_in_turn({"plan": partial(call_on_host, runner, feed)}, warmup=_WARMUP, runs=_RUNS)
    return timed["plan"].latency.p50
