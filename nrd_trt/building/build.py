"""From any source to a validated bundle: choose the builder, build, validate, record."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from nrd_trt.engine.compat import ConfigOptions, installed_flavours, load_tensorrt
from nrd_trt.engine.options import OptionValue, option_texts
from nrd_trt.engine.record import BuilderRecord, BundleRecord, PrecisionRecord
from nrd_trt.engine.signature import SIGNATURE_FILE
from nrd_trt.errors import ConfigError, RunnerError
from nrd_trt.gates import GATES
from nrd_trt.graph.metadata import TypeChoices, read_choices, read_facts
from nrd_trt.graph.quantize import layers_in_int8
from nrd_trt.machine.cuda import find_device
from nrd_trt.machine.device import choose_device
from nrd_trt.machine.gpu import Gpu
from nrd_trt.progress import OnMessage, OnStage, silent
from nrd_trt.runtime.base import Runner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.select import (
    ON_CPU,
    RunOptions,
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
from nrd_trt.specs import (
    BuilderName,
    DecodeName,
    Estimator,
    Fit,
    Flavour,
    InputForm,
    MaskEncoding,
    OutputName,
    Precision,
    Provider,
    Quantizer,
    Resample,
    RunnerName,
    Size,
    Target,
    as_path,
    optional_path,
)
from nrd_trt.validation.references import ReferenceCollector
from nrd_trt.validation.validate import Proofs, Validation, compare_with_progress, judge

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model import CheckpointFields


def build(
    source: Path | str,
    output: Path | str,
    *,
    precision: Precision | None = None,
    size: Size | None = None,
    dynamic: tuple[Size, Size, Size] | None = None,
    batch: int | tuple[int, int, int] | None = None,
    input_form: InputForm | None = None,
    outputs: tuple[OutputName, ...] | None = None,
    mask_encoding: MaskEncoding | None = None,
    calibration: Path | str | None = None,
    recipe: Estimator | None = None,
    images: int | None = None,
    seed: int | None = None,
    memory_mb: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    quantizer: Quantizer | None = None,
    target: Target | None = None,
    data: Path | str | None = None,
    labels: Path | str | None = None,
    ignore_index: int | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    checkpoint: Path | str | None = None,
    builder: BuilderName = "auto",
    decode: DecodeName = "auto",
    runner: RunnerName = "auto",
    plugin: Path | str | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    verify_key: Path | str | None = None,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: Path | str | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    tf32: bool = False,
    compute_capabilities: Sequence[str] = (),
    builder_options: Mapping[str, OptionValue] | None = None,
    min_agreement: float | None = None,
    max_miou_drop: float | None = None,
    min_class_iou: float | None = None,
    max_class_drop: float | None = None,
    min_border_agreement: float | None = None,
    min_boundary_f: float | None = None,
    force: bool = False,
    progress: bool = True,
    on_stage: OnStage = silent,
    on_message: OnMessage = silent,
    describe: Callable[[str], str] | None = None,
    **options: Unpack[CheckpointFields],
) -> Bundle:
    """Build an engine bundle and prove its masks.

    An ONNX file and a bundle keep the form that they have: `size` to `mask_encoding` are for checkpoints. A bundle is
    rebuilt from its own ONNX file, reference masks and layers, for another builder or machine.

    Args:
        source: A checkpoint, an ONNX file of `nrd_trt.export`, or a bundle.
        output: Where to write the bundle, ``NAME.nrd``.
        precision: Types of the graph. None is ``"fp16"`` for a checkpoint or an fp32 file, and what the file has for
            other files and bundles. ``"int8"`` needs `calibration`.
        size: ``(h, w)``, multiples of 32; None takes the checkpoint's.
        dynamic: The smallest, the usual and the largest size, in place of `size`.
        batch: Images per call, or their smallest, usual and largest number; None is 1.
        input_form: ``"uint8"``, the default, ``"float"`` or ``"rgb_float"``; see `nrd_trt.export`.
        outputs: Which of ``"mask"``, ``"logits"`` and ``"confidence"`` the graph gives; None is the mask.
        mask_encoding: ``"u8x4"`` packs four pixels in one int32, for the runners of this toolkit only; None is
            ``"uint8"``.
        calibration: Folder of images, a video, ``"synthetic"``, or for int8 a file of ranges of `nrd_trt.calibrate`.
        recipe: How ranges are estimated, for int8; None is ``"percentile"``.
        images: Calibrate on at most this many; None is 100.
        seed: Chooses among more calibration images; None is 0.
        memory_mb: What calibration may fetch at a time, beyond a plain session; None is 2048.
        include: Regular expressions; where there are any, only layers whose name matches one are in int8.
        exclude: Regular expressions; no layer whose name matches one is in int8.
        quantizer: Who places Q/DQ pairs: ``"own"``, the default, or ``"modelopt"``.
        target: What an int8 file is made for. ``"gpu"``, the default: int8 with fp16 beside it, as TensorRT takes it.
            ``"cpu"``: uint8 activations with fp32 beside them, which ONNX Runtime and OpenVINO run several times as
            fast; no TensorRT can build a plan of it, so that the builder is ONNX Runtime.
        data: Folder of images to prove the masks on, or one with ``images/`` and ``labels/``; None takes drawn scenes,
            and of a bundle the inputs that it stores.
        labels: Folder of index PNGs, paired with the images by name; None takes ``data/labels`` where that exists.
        ignore_index: Label value that is not counted, besides 255; None takes the model's.
        fit: How images are brought to the engine's size, recorded in the bundle; None is ``"resize"``, or the bundle's.
        resample: What scales them, see `nrd_trt.open_bundle`, recorded too; None is ``"pillow"``, or the bundle's.
        checkpoint: Reference of a build from an ONNX file or a bundle.
        builder: ``"auto"`` takes the TensorRT that is installed, else ONNX Runtime, which builds no plan.
        decode: ``"auto"`` takes the plugin where it fits, else the function of the ONNX file.
        runner: What draws the masks that are proved. ``"auto"`` is the plan where this machine can run it, else ONNX
            Runtime on the same file; the builder's name asks for the plan, ``"onnxruntime"`` for the file, and so does
            ``"openvino"``, which is refused where it executes a layer in another type than the file's.
        plugin: The plugin library; None looks for it where the decode may use it.
        threads: CPU threads of ONNX Runtime; None leaves the choice to it.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: See `nrd_trt.open_bundle`.
        device: See `nrd_trt.open_bundle`.
        verify_key: File with the public key that must have signed the bundle that is the source; see
            `nrd_trt.open_bundle`.
        workspace_mib: Scratch memory that a layer may use; None leaves it to TensorRT.
        optimization_level: Builder effort, 0-5; None leaves it to TensorRT.
        timing_cache: File that is read before the build and written after it.
        version_compatible: The plan loads in later TensorRT versions, too.
        hardware_compatible: The plan loads on other Ampere or later GPUs.
        tf32: Products of fp32 may be computed with factors of 10 bits, which costs masks some agreement. Where ONNX
            Runtime runs the file it imitates that.
        compute_capabilities: GPUs to build for, such as ``"8.9"``; TensorRT-RTX only.
        builder_options: Rarely needed settings of the builder by name, such as ``{"max_aux_streams": 2}``;
            `nrd_trt.doctor` tells what the installed TensorRT takes.
        min_agreement: Gate: share of equal pixels, 0-1; None takes the precision's.
        max_miou_drop: Gate: loss of mIoU against labels, 0-1; None takes the precision's.
        min_class_iou: Gate: IoU with the reference of every class that is not rare, 0-1; None takes the precision's.
        max_class_drop: Gate: loss of IoU against labels of any class that is not rare, 0-1; None takes the precision's.
        min_border_agreement: Gate: share of equal pixels near borders, 0-1; None takes the precision's.
        min_boundary_f: Gate: boundary F-score with the reference, 0-1; None takes the precision's.
        force: Replace an existing bundle.
        progress: Show bars on stderr where something takes over two seconds.
        on_stage: Receives a line when a stage begins.
        on_message: Receives TensorRT's messages as ``(severity, text)``.
        describe: Words the recorded call, which builds the bundle again, in another way than Python's.
        **options: What a checkpoint does not tell, as for `nrd_trt.load_model`.

    Returns:
        The written bundle; ``bundle.passed`` tells whether every gate holds.

    Raises:
        ConfigError: An argument is not known, would be ignored, or excludes another; or the bundle exists.
        NrdTrtError: The input is bad, or a stage cannot be done. Nothing is written in any of these cases.

    Warns:
        UserWarning: Something speaks against the images to calibrate on, see `nrd_trt.calibrate`; or those of `data`
            are exposed otherwise; or int8 is calibrated on `data`, which flatters its figures. Or a signature is gone,
            that of the source or of the bundle that was replaced.
    """
    plugin = optional_path("plugin", plugin)
    request = BuildRequest(
        source=as_path("source", source),
        output=as_path("output", output),
        precision=precision,
        size=size,
        dynamic=dynamic,
        batch=batch,
        input_form=input_form,
        outputs=outputs,
        mask_encoding=mask_encoding,
        data=optional_path("data", data),
        labels=optional_path("labels", labels),
        ignore_index=ignore_index,
        fit=fit,
        resample=resample,
        checkpoint=optional_path("checkpoint", checkpoint),
        builder=builder,
        decode=decode,
        run=RunOptions(runner=runner, plugin=plugin, threads=threads, cuda=cuda, cuda_graph=cuda_graph, device=device),
        config=ConfigOptions(
            workspace_mib=workspace_mib,
            optimization_level=optimization_level,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            tf32=tf32,
            compute_capabilities=tuple(compute_capabilities),
            builder_options=option_texts(builder_options or {}),
        ),
        timing_cache=optional_path("timing_cache", timing_cache),
        verify_key=optional_path("verify_key", verify_key),
        min_agreement=min_agreement,
        max_miou_drop=max_miou_drop,
        min_class_iou=min_class_iou,
        max_class_drop=max_class_drop,
        min_border_agreement=min_border_agreement,
        min_boundary_f=min_boundary_f,
        force=force,
        progress=progress,
        on_stage=on_stage,
        on_message=on_message,
        describe=describe,
        options=options,
    )
    request = request.calibrated(
        calibration,
        recipe=recipe,
        images=images,
        seed=seed,
        memory_mb=memory_mb,
        include=include,
        exclude=exclude,
        quantizer=quantizer,
        target=target,
    )
    if request.calibrator is not None and precision == "int8":
        request.calibrator.warn_of_same_images()
    return build_bundle(request)


def build_bundle(request: BuildRequest) -> Bundle:
    """Build what a request asks for, see `build`."""
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
    if build.flavour == "onnxruntime" or build.device is None:
        return None
    build.make(model)
    runner = build.runner()
    return runner if isinstance(runner, TrtRunner) else None


def check_build(request: BuildRequest) -> None:
    """Raise what a build of this request would raise before its work: a builder, a GPU or a library that is absent."""
    _Build(request)


class _Build:
    """One build: what is asked for, the builder, the device and the plugin; what is absent is found before the work."""

    def __init__(self, request: BuildRequest) -> None:
        choose_device(request.run.device)
        self.request, self.flavour = request, choose_builder(request)
        self.device = _find_device(self.flavour)
        self._library = look_for_plugin(request, self.flavour, self.device)

    def make(self, model: onnx.ModelProto) -> None:
        """Build the plan of a typed file; ONNX Runtime has none, and a file for a CPU neither."""
        request, device = self.request, self.device
        self.model, self.graph = model, read_facts(model)
        if (choices := read_choices(model)) is not None and choices.target == "cpu":
            self.flavour = _for_cpu(request, f"{request.source.name} was made with target='cpu'")
        self.form = choose_form(request, self._library, model)
        self.engine: BuiltEngine | None = None
        if self.flavour != "onnxruntime":
            how = f"with {self.flavour}; decode as {self.form.name}: {self.form.why}"
            request.on_stage(f"building the {self.graph.precision} engine {how}")
            options = BuildOptions(
                flavour=self.flavour,
                config=request.config,
                plugin=self.form.library,
                timing_cache=request.timing_cache,
                gpu=device.name if device else None,
                driver=device.driver if device else None,
                progress=request.progress,
                on_message=request.on_message,
            )
            self.engine = build_engine(model, options)
        self.built = self._built()

    def runner(self) -> Runner:
        """Run the plan where this machine can, or where it is asked for, else the same file on the CPU."""
        request, form, run = self.request, self.form, self.request.run
        if self.engine is not None and run.runner not in ON_CPU:
            rebuild = rebuild_call(request.output, self.engine.flavour, form.name)
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
            collector = ReferenceCollector(reference, given.drawn_by)
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
        engine, device, config = self.engine, self.device, self.request.config
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
        typed = read_choices(given.model) or TypeChoices(int8_layers=layers_in_int8(given.model))
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
