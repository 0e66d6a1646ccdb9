"""From any source to a validated bundle: choose the builder, build, validate, record."""

from __future__ import annotations

import platform
import shlex
from typing import Any, Literal

import onnx

import nrd_trt
from nrd_trt.building.decode_form import DecodeForm, choose_form, look_for_plugin
from nrd_trt.building.request import BuildRequest, FormRequest
from nrd_trt.building.sources import Prepared, prepare
from nrd_trt.engine.builder import BuildOptions, BuiltEngine, build_engine
from nrd_trt.engine.bundle import (
    ONNX_FILE,
    PLAN_FILE,
    REFERENCE_FILE,
    Bundle,
    ReferenceSet,
    check_target,
    write_bundle,
)
from nrd_trt.engine.compat import installed_flavours, load_tensorrt
from nrd_trt.engine.record import BuilderRecord, BundleRecord, PrecisionRecord
from nrd_trt.errors import ConfigError
from nrd_trt.figures import Gates
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.machine.cuda import probe_device
from nrd_trt.machine.gpu import Gpu
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.select import can_run_plan, plan_runner, rebuild_call
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import BuilderName, Flavour, check_choice, format_size
from nrd_trt.validation.references import ReferenceCollector
from nrd_trt.validation.validate import Validation, compare_with_progress, judge

__all__ = ["BuildRequest", "FormRequest", "build_bundle", "plan_runner_here"]


def build_bundle(request: BuildRequest) -> Bundle:
    """Build a bundle and validate it.

    Returns:
        The written bundle; its `passed` tells whether every gate holds.

    Raises:
        NrdTrtError: The input is bad, or a stage cannot be done; nothing is written.
    """
    check_target(request.output, force=request.force)
    Gates.of("fp32", request.min_agreement, request.max_miou_drop)  # refuses fractions above 1 before any work
    flavour = _choose_builder(request)
    device = probe_device()
    library = look_for_plugin(request, flavour, device)
    prepared = prepare(request)
    form = choose_form(request, library, prepared.model)
    engine = _build(request, prepared.model, flavour, form, device)
    built = _builder_record(request, engine, device)
    request.on_stage("validating the masks")
    validation, references = _validate(request, prepared, _runner(request, prepared.model, engine, built, form))
    files = {
        ONNX_FILE: prepared.model.SerializeToString(deterministic=True),
        REFERENCE_FILE: references.to_bytes(),
    }
    if engine is not None:
        files[PLAN_FILE] = engine.plan
    return write_bundle(
        request.output, files, _record(request, prepared, engine, built, form, validation), force=request.force
    )


def plan_runner_here(request: BuildRequest, model: onnx.ModelProto) -> TrtRunner | None:
    """Build the plan of a typed file and return what runs it, or None where the builder or this machine cannot."""
    flavour, device = _choose_builder(request), probe_device()
    if flavour == "onnxruntime" or device is None:
        return None
    form = choose_form(request, look_for_plugin(request, flavour, device), model)
    engine = _build(request, model, flavour, form, device)
    runner = _runner(request, model, engine, _builder_record(request, engine, device), form)
    return runner if isinstance(runner, TrtRunner) else None


def _build(
    request: BuildRequest,
    model: onnx.ModelProto,
    flavour: Flavour | Literal["onnxruntime"],
    form: DecodeForm,
    device: Gpu | None,
) -> BuiltEngine | None:
    """Build the plan, or nothing for ONNX Runtime."""
    if flavour == "onnxruntime":
        return None
    precision = read_facts(model).precision
    request.on_stage(f"building the {precision} engine with {flavour}; decode as {form.name}: {form.why}")
    options = BuildOptions(
        flavour=flavour,
        config=request.config,
        plugin=form.library,
        timing_cache=request.timing_cache,
        gpu=device.name if device else None,
        driver=device.driver if device else None,
        progress=request.progress,
        on_message=request.on_message,
    )
    return build_engine(model, options)


def _choose_builder(request: BuildRequest) -> Flavour | Literal["onnxruntime"]:
    """Resolve ``auto`` and check that what was asked for can be had."""
    check_choice("builder", request.builder, BuilderName)
    builder: Flavour | Literal["onnxruntime"]
    if request.builder == "auto":
        builder = next(iter(installed_flavours()), "onnxruntime")
    else:
        builder = request.builder
    if builder != "tensorrt-rtx" and request.config.compute_capabilities:
        raise ConfigError(f"compute_capabilities=: only builder='tensorrt-rtx' builds for other GPUs, not {builder}.")
    if builder != "onnxruntime":
        load_tensorrt(builder)  # an absent builder is found before the export, not after it
    return builder


def _runner(
    request: BuildRequest, model: onnx.ModelProto, engine: BuiltEngine | None, built: BuilderRecord, form: DecodeForm
) -> BaseRunner:
    """Run the plan where this machine can, else the same file in ONNX Runtime."""
    if engine is not None and can_run_plan(built):
        rebuild = rebuild_call(request.output, engine.flavour, form.name)
        encoding = read_facts(model).mask_encoding
        return plan_runner(engine.plan, built, rebuild, plugin=form.library, mask_encoding=encoding)
    return OrtRunner(model, threads=request.threads)


def _validate(request: BuildRequest, prepared: Prepared, runner: BaseRunner) -> tuple[Validation, ReferenceSet]:
    """Compare the model's masks with the reference's; return the verdict and the masks to store."""
    graph = prepared.graph
    engine = Engine(runner, graph)
    with prepared.reference() as reference:
        collector = ReferenceCollector(reference, prepared.drawn_by)
        comparison = compare_with_progress(prepared.samples, collector, engine, progress=request.progress)
    validation = judge(
        comparison,
        engine,
        prepared.model,
        gates=Gates.of(graph.precision, request.min_agreement, request.max_miou_drop),
        reference=prepared.reference_name,
        samples=prepared.samples.name,
        precision_asked=graph.precision,
        checkpoint=request.checkpoint,
    )
    return validation, collector.collected()


def _builder_record(request: BuildRequest, engine: BuiltEngine | None, device: Gpu | None) -> BuilderRecord:
    """Say what built the plan and what the plan depends on; TensorRT-RTX builds for GPUs that are not here."""
    system, machine = platform.system().lower(), platform.machine()
    if engine is None:
        return BuilderRecord(
            name="onnxruntime",
            version=None,
            compute_capabilities=(),
            os=system,
            machine=machine,
            gpu=None,
            driver=None,
        )
    capabilities, config = engine.compute_capabilities, request.config
    if engine.flavour == "tensorrt" and device is not None and device.compute_capability is not None:
        capabilities = (device.compute_capability,)
    return BuilderRecord(
        name=engine.flavour,
        version=engine.version,
        compute_capabilities=capabilities,
        os=system,
        machine=machine,
        gpu=device.name if device else None,
        driver=device.driver if device else None,
        cuda=device.cuda if device else None,
        version_compatible=config.version_compatible,
        hardware_compatible=config.hardware_compatible,
        workspace_mib=config.workspace_mib,
        optimization_level=config.optimization_level,
    )


def _record(
    request: BuildRequest,
    prepared: Prepared,
    engine: BuiltEngine | None,
    built: BuilderRecord,
    form: DecodeForm,
    validation: Validation,
) -> BundleRecord:
    """Collect what ``bundle.json`` records; nothing depends on time or place, so equal builds are equal."""
    graph, parity = prepared.graph, prepared.parity
    return BundleRecord(
        nrd_trt=nrd_trt.__version__,
        checkpoint=prepared.checkpoint,
        calibration_sha256=prepared.calibration_sha256,
        plugin=form.library.record(graph.mask_encoding) if form.library else None,
        decode=form.name,
        builder=built,
        precision=PrecisionRecord(
            asked=graph.precision,
            found=engine.types_found if engine else None,
            kept_fp32=tuple(sorted(prepared.kept_fp32)),
            kept_because=dict(sorted(prepared.kept_fp32.items())),
            int8_layers=tuple(prepared.int8_layers),
            layers=engine.layers if engine else (),
        ),
        model=graph,
        fit=prepared.fit,
        parity=parity,
        validation=validation.record(),
        passed=validation.passed and (parity is None or parity.passed),
        command=_command(request, graph, built.name, form),
        exporter=prepared.exporter,
    )


def _command(request: BuildRequest, graph: GraphFacts, builder: str, decode: DecodeForm) -> str:
    """Return the command that builds this bundle again; NAME.nrd and FILE stand for places that are not recorded."""
    words = ["nrd-trt", "build", request.source.name, "-o", "NAME.nrd", "--precision", graph.precision]
    words += ["--builder", builder]
    words += ["--decode", decode.name] if decode.name != "none" else []
    form, config = request.form, request.config
    pairs: dict[str, Any] = {
        "--input": form.input_form,
        "--output": form.output,
        "--mask-encoding": form.mask_encoding,
        "--size": format_size(form.size) if form.size else None,
        "--dynamic": ":".join(map(format_size, form.dynamic)) if form.dynamic else None,
        "--batch": ":".join(map(str, form.batch)) if isinstance(form.batch, tuple) else form.batch,
        "--fit": request.fit,
        "--workspace-mib": config.workspace_mib,
        "--optimization-level": config.optimization_level,
        "--compute-capability": config.compute_capabilities or None,
        "--checkpoint": request.checkpoint.name if request.checkpoint else None,
        "--data": request.data.name if request.data else None,
        "--labels": request.labels.name if request.labels else None,
        "--ignore-index": request.ignore_index,
        "--min-agreement": request.min_agreement,
        "--max-miou-drop": request.max_miou_drop,
    }
    if options := request.checkpoint_options:
        pairs |= {
            "--num-classes": options.num_classes,
            "--hidden": options.hidden,
            "--patch": options.patch,
            "--dilations": options.dilations,
            "--output-stride": options.output_stride,
            "--classes": "FILE" if options.class_names else None,
            "--mean": options.mean,
            "--std": options.std,
        }
        words += ["--bgr"] * bool(options.bgr)
    for flag, value in pairs.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [] if value is None else [flag, text]
    words += request.calibration.words if request.calibration else ()
    words += request.quantization.words if request.quantization else ()
    words += ["--version-compatible"] * config.version_compatible
    words += ["--hardware-compatible"] * config.hardware_compatible
    return shlex.join([*words, "--force"])
