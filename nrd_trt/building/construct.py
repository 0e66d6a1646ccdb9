"""From a request to a validated bundle: choose the builder, build, validate, record."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx

import nrd_trt
from nrd_trt.building.decode_form import choose_form, look_for_plugin
from nrd_trt.building.inputs import BuildInput, read_input
from nrd_trt.building.request import FORM, BuildRequest
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
from nrd_trt.engine.compat import (
    RTX_DEFAULT_TARGETS,
    ConfigOptions,
    installed_flavours,
    lacks,
    load_tensorrt,
    rtx_makes_plans_for,
)
from nrd_trt.engine.record import BuilderRecord, BundleRecord, PrecisionRecord
from nrd_trt.engine.signature import SIGNATURE_FILE
from nrd_trt.errors import ConfigError, RunnerError
from nrd_trt.gates import GATES
from nrd_trt.graph.metadata import TypeChoices, read_choices, read_facts
from nrd_trt.graph.quantize import quantized_layers
from nrd_trt.machine.cuda import find_device
from nrd_trt.machine.device import choose_device
from nrd_trt.machine.gpu import Gpu
from nrd_trt.runtime.base import Runner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.select import (
    ON_CPU,
    check_host,
    cpu_runner,
    plan_obstacle,
    plan_runner,
    rebuild_call,
    this_host,
    unproven,
    warn_of_stand_in,
)
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import Flavour, Precision
from nrd_trt.validation.references import ReferenceCollector
from nrd_trt.validation.validate import Proofs, Validation, compare_with_progress, judge

_AMPERE = "8.0"
"""Compute capability that plans run on which are built for several models of GPU."""


def build_bundle(request: BuildRequest) -> Bundle:
    """Build what a request asks for, see `nrd_trt.build`."""
    check_target(request.output, force=request.force)
    signed = any((path / SIGNATURE_FILE).is_file() for path in (request.source, request.output))
    build = _Build(request)
    given = read_input(request)
    build.make(given.model)
    request.on_stage("validating the masks")
    validation, references = build.validate(given)
    files = {
        ONNX_FILE: given.model.SerializeToString(deterministic=True),
        REFERENCE_FILE: references.to_bytes(),
    }
    if build.engine is not None:
        files[PLAN_FILE] = build.engine.plan
    bundle = write_bundle(request.output, files, build.record(given, validation), force=request.force)
    if signed:
        warnings.warn(
            f"{bundle.path}: unsigned; the signature that there was is of another bundle. Sign this one: "
            f"nrd_trt.sign({str(bundle.path)!r}, key='key.pem')",
            stacklevel=2,
        )
    return bundle


def plan_runner_here(request: BuildRequest, model: onnx.ModelProto) -> TrtRunner | None:
    """Build the plan of a typed file and return what runs it, or None where the builder or this machine cannot."""
    build = _Build(request)
    if not build.runs_plans:
        return None
    build.make(model)
    runner = build.runner()
    return runner if isinstance(runner, TrtRunner) else None


def check_build(request: BuildRequest) -> bool:
    """Raise what a build of this request would raise before its work: a builder, a GPU or a library that is absent.

    Returns:
        Whether it would build a plan that this machine runs.
    """
    return _Build(request).runs_plans


class _Build:
    """One build: what is asked for, the builder, the device and the plugin; what is absent is found before the work."""

    def __init__(self, request: BuildRequest) -> None:
        choose_device(request.run.device)
        self.request, self.flavour = request, choose_builder(request)
        self.device = _find_device(self.flavour)
        self._settings(request.precision or "fp16")  # refuses before the export what the file would be refused for
        self._library = look_for_plugin(request, self.flavour, self.device)

    @property
    def runs_plans(self) -> bool:
        """Whether there is a builder, and a GPU here to run what it builds."""
        return self.flavour != "onnxruntime" and self.device is not None

    def make(self, model: onnx.ModelProto) -> None:
        """Build the plan of a typed file; ONNX Runtime has none, and a file for a CPU neither."""
        request, device = self.request, self.device
        self.model, self.graph = model, read_facts(model)
        if (choices := read_choices(model)) is not None and choices.target == "cpu":
            self.flavour = _for_cpu(request, f"{request.source.name} was made with target='cpu'")
        self.form = choose_form(request, self._library, model)
        self.engine: BuiltEngine | None = None
        self.config = self._settings(self.graph.precision)
        if self.flavour != "onnxruntime":
            how = f"with {self.flavour}; decode as {self.form.name}: {self.form.why}"
            request.on_stage(f"building the {self.graph.precision} engine {how}")
            options = BuildOptions(
                flavour=self.flavour,
                config=self.config,
                plugin=self.form.library,
                timing_cache=request.timing_cache,
                gpu=device.name if device else None,
                driver=device.driver if device else None,
                progress=request.progress,
                on_message=request.on_message,
            )
            self.engine = build_engine(model, options)
        self.built = self._built()

    def _settings(self, precision: Precision) -> ConfigOptions:
        """Return the builder's settings for a precision, or raise `ConfigError` where a GPU to build for lacks it."""
        config = self.request.config
        if self.flavour == "onnxruntime":
            return config
        here = self.device.compute_capability if self.device else None
        what, targets = "its plan is for", config.compute_capabilities
        if config.hardware_compatible:
            what, targets = "hardware_compatible=True asks for", (_AMPERE,)
        elif not targets and here is not None:
            what, targets = "this GPU has", (here,)
        for target in targets:
            if why := lacks(precision, target, what):
                raise ConfigError(f"precision={precision!r}: {why}; take 'fp16' or 'int8'.")
        if precision != "fp8" or self.flavour == "tensorrt" or config.compute_capabilities:
            return config
        able = [name for name in (*RTX_DEFAULT_TARGETS, *targets) if rtx_makes_plans_for(name)]
        chosen = dict.fromkeys(name for name in able if not lacks(precision, name))
        return replace(config, compute_capabilities=tuple(chosen))

    def runner(self) -> Runner:
        """Run the plan where this machine can, or where it is asked for, else the same file on the CPU."""
        request, form, run = self.request, self.form, self.request.run
        if self.engine is not None and run.runner not in ON_CPU:
            rebuild = rebuild_call(request.output, self.engine.flavour, form.name, self.graph.precision)
            if run.runner != "auto":
                here = this_host(self.engine.flavour)
                check_host(self.built, here, plan=str(request.output / PLAN_FILE), rebuild=rebuild)
            why = plan_obstacle(self.built)
            if why is None:
                return plan_runner(self.engine.plan, self.built, rebuild, run, plugin=form.library, graph=self.graph)
            warn_of_stand_in(why)
        return cpu_runner(self.model, self.graph, replace(run, faithful=True), tf32=request.config.tf32)

    def validate(self, given: BuildInput) -> tuple[Validation, ReferenceSet]:
        """Compare the model's masks with the reference's; return the verdict and the masks to store."""
        request, runner = self.request, self.runner()
        engine = Engine(runner, self.graph)
        with given.reference() as reference:
            collector = ReferenceCollector(reference, given.drawn_by, len(given.samples))
            comparison = compare_with_progress(given.samples, collector, engine, progress=request.progress)
        validation = judge(
            comparison,
            engine,
            self.model,
            gates=request.gates(self.graph.precision),
            reference=given.reference_name,
            samples=given.samples.name,
            precision_asked=self.graph.precision,
            checkpoint=request.checkpoint,
            has_plan=self.engine is not None,
            doubt=None if isinstance(runner, TrtRunner) else self._doubt(),
            warnings=request.calibrator.warnings if request.calibrator else (),
            proofs=Proofs(structure=given.structure),
        )
        return validation, collector.collected()

    def _doubt(self) -> str | None:
        """Say why the plan should have run here and did not; one that was asked for for other GPUs should not."""
        targets, here = self.request.config.compute_capabilities, self.device and self.device.compute_capability
        if self.engine is None or (targets and here not in targets):
            return None
        return unproven(self.built, self.request.run.runner)

    def _built(self) -> BuilderRecord:
        """Say what built the plan and what the plan depends on; TensorRT-RTX builds for GPUs that are not here."""
        engine, device, config = self.engine, self.device, self.config
        record = BuilderRecord(
            name="onnxruntime",
            version=None,
            compute_capabilities=(),
            os=platform.system().lower(),
            machine=platform.machine(),
            gpu=None,
            driver=None,
            tf32=config.tf32,
        )
        if engine is None:
            return record
        capabilities = engine.compute_capabilities
        if engine.flavour == "tensorrt" and device is not None and device.compute_capability is not None:
            capabilities = (device.compute_capability,)
        settings = {**vars(config), "compute_capabilities": capabilities}
        if device is not None:
            settings |= {
                "gpu": device.name,
                "driver": device.driver,
                "cuda": device.cuda,
                "multiprocessors": device.multiprocessors,
            }
        return replace(record, name=engine.flavour, version=engine.version, **settings)

    def record(self, given: BuildInput, validation: Validation) -> BundleRecord:
        """Collect what ``bundle.json`` records; nothing depends on time or place, so equal builds are equal."""
        graph, engine, parity = self.graph, self.engine, given.parity
        # Earlier versions wrote files that do not tell how they were typed.
        typed = read_choices(given.model) or TypeChoices(int8_layers=quantized_layers(given.model))
        return BundleRecord(
            nrd_trt=nrd_trt.__version__,
            checkpoint=given.checkpoint,
            calibration_sha256=given.calibration_sha256,
            plugin=self.form.library.record(graph.mask_encoding) if self.form.library else None,
            decode=self.form.name,
            builder=self.built,
            precision=PrecisionRecord(
                asked=graph.precision,
                found=engine.types_found if engine else None,
                kept_fp32=tuple(sorted(typed.kept_fp32)),
                kept_because=dict(sorted(typed.kept_fp32.items())),
                int8_layers=typed.int8_layers,
                layers=engine.layers if engine else (),
                ranges=None if typed.ranges is None else dict(sorted(typed.ranges.items())),
                quantizer=typed.quantizer,
                target=typed.target,
                fp8_layers=typed.fp8_layers,
            ),
            model=graph,
            fit=given.fit,
            resample=given.resample,
            # Its last digits depend on the number of threads: equal inputs would give other bytes.
            parity=None if parity is None else replace(parity, max_abs=None),
            validation=validation.record(),
            passed=validation.passed and (parity is None or parity.passed),
            command=(self.request.describe or str)(self._call()),
            exporter=given.exporter,
            options=given.options,
            exposure=given.exposure,
        )

    def _call(self) -> str:
        """Return the call that builds this bundle again; places are named without folders, the bundle NAME.nrd."""
        request, precision, form = self.request, self.graph.precision, self.form.name
        asked, config = vars(request), vars(request.config)
        arguments: dict[str, Any] = {
            "precision": precision,
            "builder": self.built.name,
            "decode": None if form == "none" else form,
            **{name: asked[name] for name in (*FORM, "fit", "resample")},
            **{name: config[name] for name in ("workspace_mib", "optimization_level", "compute_capabilities")},
            **{name: asked[name] for name in ("checkpoint", "data", "labels", "ignore_index", *GATES)},
            **request.options,
            **(vars(request.calibrator.arguments(precision)) if request.calibrator else {}),
            **{
                name: config[name] or None
                for name in ("version_compatible", "hardware_compatible", "tf32", "builder_options")
            },
            "force": True,
        }
        given = [
            f"{name}={_literal(value)!r}" for name, value in arguments.items() if value is not None and value != ()
        ]
        return f"nrd_trt.build({request.source.name!r}, 'NAME.nrd', {', '.join(given)})"


def choose_builder(request: BuildRequest) -> Flavour | Literal["onnxruntime"]:
    """Resolve ``auto`` and check that what was asked for can be had."""
    builder: Flavour | Literal["onnxruntime"]
    if request.calibrator is not None and request.calibrator.target == "cpu":
        builder = _for_cpu(request, "target='cpu'")
    else:
        builder = next(iter(installed_flavours()), "onnxruntime") if request.builder == "auto" else request.builder
    if builder == "tensorrt-rtx" and request.config.hardware_compatible:
        raise ConfigError(
            "hardware_compatible=True: TensorRT-RTX ignores it; name the GPUs to build for with compute_capabilities=."
        )
    if builder != "tensorrt-rtx" and request.config.compute_capabilities:
        raise ConfigError(f"compute_capabilities=: only builder='tensorrt-rtx' builds for other GPUs, not {builder}.")
    if request.run.runner not in ("auto", *ON_CPU, builder):
        raise ConfigError(
            f"runner={request.run.runner!r}: expected 'auto', 'onnxruntime', 'openvino' or what builds, {builder!r}; "
            "leave it out."
        )
    if builder != "onnxruntime":  # an absent builder, or option of it, is found before the export, not after it
        load_tensorrt(builder).check_options(request.config.builder_options)
    elif request.config.builder_options:
        raise ConfigError("builder_options=: builder='onnxruntime' builds no plan; leave them out.")
    return builder


def _for_cpu(request: BuildRequest, why: str) -> Literal["onnxruntime"]:
    """Return what builds files for a CPU, or raise `ConfigError` where a plan is asked for."""
    if request.builder not in ("auto", "onnxruntime"):
        raise ConfigError(
            f"builder={request.builder!r}: {why}, and no TensorRT takes its uint8 activations; leave the builder out, "
            "or make the file with target='gpu'."
        )
    return "onnxruntime"


def _find_device(flavour: str) -> Gpu | None:
    """Return the GPU to build for and to run on; only TensorRT-RTX and ONNX Runtime can do without."""
    try:
        return find_device()
    except RunnerError as exc:
        if flavour != "tensorrt":
            return None
        raise RunnerError(
            f"builder='tensorrt': expected a GPU, on which TensorRT builds and the plan is proved, got none: {exc} "
            "builder='tensorrt-rtx' builds without one, and builder='onnxruntime' makes a bundle without a plan."
        ) from exc


def _literal(value: Any) -> Any:
    """Return a value as a literal of Python: paths without folders, NumPy's numbers as plain ones."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple | list):
        return tuple(map(_literal, value))
    if isinstance(value, Mapping):
        return dict(value)
    return value.item() if hasattr(value, "item") else value
