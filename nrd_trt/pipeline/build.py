"""Checkpoint, ONNX file or bundle to a validated bundle."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

import nrd_trt
from nrd_trt.engine.builder import BuildOptions, Engine, build_engine
from nrd_trt.engine.bundle import (
    ONNX_FILE,
    PLAN_FILE,
    REFERENCE_FILE,
    Bundle,
    ReferenceSet,
    host_facts,
    is_bundle,
    read_bundle,
    write_bundle,
)
from nrd_trt.engine.compat import ConfigOptions, installed_flavours
from nrd_trt.errors import BuildError, ConfigError, PluginError
from nrd_trt.files import check_absent, sha256_file
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.pipeline.precision import derive_precision
from nrd_trt.pipeline.references import Draw, Recorder, onnx_reference, stored_samples, torch_reference
from nrd_trt.pipeline.samples import MEASURED_COUNT, SampleSource
from nrd_trt.pipeline.validate import Validation, compare_with_progress
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import Fit, InputForm, InputShape, ModelInfo, Precision
from nrd_trt.validate.gates import Gates

if TYPE_CHECKING:
    from nrd_trt.model.checkpoint import CheckpointOptions
    from nrd_trt.model.network import NrdSegmentor
    from nrd_trt.pipeline.export import Exported, Parity

BUILDERS = ("auto", "tensorrt", "tensorrt-rtx", "onnxruntime")
DECODES = ("auto", "plugin", "onnx")
DEFAULT_PRECISION: Precision = "fp16"


@dataclass(frozen=True, kw_only=True)
class FormRequest:
    """Form of the exported file as asked for on the command line; None means the default."""

    input_form: InputForm | None = None
    output: str | None = None
    size: str | None = None
    dynamic: str | None = None
    batch: str | None = None

    def shape(self, default_hw: tuple[int, int]) -> InputShape:
        """Return the input shape; `default_hw` where no size is asked for."""
        return InputShape.parse(size=self.size, dynamic=self.dynamic, batch=self.batch or "1", default=default_hw)

    def given(self) -> list[str]:
        """Return the options that were given."""
        names = {"input_form": "--input", "output": "--output", "size": "--size", "dynamic": "--dynamic"}
        return [flag for name, flag in {**names, "batch": "--batch"}.items() if getattr(self, name) is not None]


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What `nrd-trt build` is asked for; see its options of the same names."""

    source: Path
    output: Path
    form: FormRequest = field(default_factory=FormRequest)
    precision: Precision | None = None
    builder: str = "auto"
    decode: str = "auto"
    checkpoint: Path | None = None
    checkpoint_options: CheckpointOptions | None = None
    data: Path | None = None
    labels: Path | None = None
    ignore_index: int | None = None
    fit: Fit | None = None
    config: ConfigOptions = field(default_factory=ConfigOptions)
    timing_cache: Path | None = None
    min_agreement: float | None = None
    max_miou_drop: float | None = None
    force: bool = False
    threads: int | None = None
    progress: bool = True
    on_message: Callable[[str, str], None] = lambda severity, text: None
    on_stage: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A typed ONNX model with all that its validation needs; the three kinds of source end here."""

    model: onnx.ModelProto
    samples: SampleSource | None
    reference: Callable[[], Any]
    reference_name: str
    fit: Fit
    checkpoint: dict[str, str | None] | None
    kept_fp32: frozenset[str] = frozenset()
    parity: Parity | None = None
    stored: ReferenceSet | None = None

    @property
    def graph(self) -> GraphFacts:
        return read_facts(self.model)


def build_bundle(request: BuildRequest) -> Bundle:
    """Build a bundle and validate it.

    Returns:
        The written bundle; ``facts["passed"]`` tells whether every gate holds.

    Raises:
        NrdTrtError: The input is bad, or a stage cannot be done; nothing is written.
    """
    check_absent(request.output, force=request.force)
    flavour = _choose_builder(request)
    prepared = _prepare(request)
    engine = None
    if flavour != "onnxruntime":
        request.on_stage(f"building the {prepared.graph.precision} engine with {flavour}")
        options = BuildOptions(
            flavour=flavour, config=request.config, timing_cache=request.timing_cache, progress=request.progress,
            on_message=request.on_message,
        )  # fmt: skip
        engine = build_engine(prepared.model, options)
    request.on_stage("validating the masks")
    validation, references = _validate(request, prepared)
    files = {
        ONNX_FILE: prepared.model.SerializeToString(deterministic=True),
        REFERENCE_FILE: references.to_bytes(),
    }
    if engine is not None:
        files[PLAN_FILE] = engine.plan
    return write_bundle(
        request.output, files, _facts(request, prepared, engine, validation), force=request.force
    )


# --- choosing --------------------------------------------------------------------------------------------------------


def _choose_builder(request: BuildRequest) -> str:
    """Resolve ``auto`` and check that what was asked for can be had."""
    if request.builder not in BUILDERS:
        raise ConfigError(f"--builder {request.builder!r}: expected one of {', '.join(BUILDERS)}.")
    if request.decode not in DECODES:
        raise ConfigError(f"--decode {request.decode!r}: expected one of {', '.join(DECODES)}.")
    builder = request.builder
    if builder == "auto":
        builder = next(iter(installed_flavours()), "onnxruntime")
    if request.decode == "plugin":
        if builder == "tensorrt-rtx":
            raise PluginError("--decode plugin: TensorRT-RTX loads no plugins; use --decode onnx with it.")
        raise PluginError(
            "--decode plugin: no plugin library was found, and this version does not ship its source yet; "
            "use --decode onnx, which computes the same masks."
        )
    if builder != "tensorrt-rtx" and request.config.compute_capabilities:
        raise ConfigError(f"--compute-capability: only --builder tensorrt-rtx builds for other GPUs, not {builder}.")
    return builder


def _prepare(request: BuildRequest) -> _Prepared:
    if is_bundle(request.source) or request.source.suffix == ".nrd":
        return _from_bundle(request)
    if not request.source.is_file():
        raise ConfigError(f"{request.source}: expected a checkpoint, an ONNX file or a bundle; found none.")
    return _from_onnx(request) if request.source.suffix == ".onnx" else _from_checkpoint(request)


def _from_checkpoint(request: BuildRequest) -> _Prepared:
    if request.checkpoint is not None:
        raise ConfigError("--checkpoint belongs to builds from an ONNX file; here the checkpoint is the source.")
    model = load_checkpoint(request.source, request.checkpoint_options)
    samples = samples_for(request, request.form.shape(model.info.size_hw), model.info)
    precision = request.precision or DEFAULT_PRECISION
    request.on_stage(f"exporting {model.config.encoder} to ONNX, {precision}")
    exported = export_checkpoint(request, model, samples, precision)
    return _Prepared(
        model=exported.model, samples=samples, reference=lambda: torch_reference(model), reference_name="torch",
        fit=samples.fit, checkpoint={"name": request.source.name, "sha256": sha256_file(request.source)},
        kept_fp32=exported.kept_fp32, parity=exported.parity,
    )  # fmt: skip


def load_checkpoint(path: Path, options: CheckpointOptions | None) -> NrdSegmentor:
    """Load a model; PyTorch is imported here and not before."""
    from nrd_trt.model.checkpoint import load_model

    return load_model(path, options)


def export_checkpoint(
    request: BuildRequest, model: NrdSegmentor, samples: SampleSource, precision: Precision
) -> Exported:
    """Export a loaded checkpoint in the form asked for."""
    from nrd_trt.export.onnx_export import ExportOptions
    from nrd_trt.pipeline.export import export_checked

    options = ExportOptions(shape=samples.shape, input_form=request.form.input_form or "uint8")
    return export_checked(
        model, options, precision=precision, output=request.form.output or "mask",
        images=[sample.image for sample in samples.first(MEASURED_COUNT)],
        checkpoint_sha256=sha256_file(request.source), threads=request.threads,
    )  # fmt: skip


def _from_onnx(request: BuildRequest) -> _Prepared:
    model = _load_onnx(request.source)
    _refuse_form(request, "an ONNX file")
    graph = read_facts(model)
    samples = samples_for(request, graph.shape, graph.info)
    precision = request.precision or (DEFAULT_PRECISION if graph.precision == "fp32" else graph.precision)
    typed, kept = model, frozenset[str]()
    if precision != graph.precision:
        if graph.precision != "fp32":
            raise ConfigError(
                f"{request.source}: typed in {graph.precision}, --precision {precision} was asked for; "
                "precisions are derived from an fp32 file, so export one first."
            )
        typed, kept = derive_precision(
            model, precision, [sample.image for sample in samples.first(MEASURED_COUNT)], threads=request.threads
        )
    if request.checkpoint is not None:
        reference, name = _checkpoint_reference(request, request.checkpoint), "torch"
    elif graph.precision == "fp32":
        reference, name = (lambda: onnx_reference(model, request.threads)), "onnx"
    else:
        raise ConfigError(
            f"{request.source}: a {graph.precision} file cannot prove its own masks; give --checkpoint, or build from "
            "an fp32 file."
        )
    return _Prepared(
        model=typed, samples=samples, reference=reference, reference_name=name, fit=samples.fit,
        checkpoint={"name": None, "sha256": graph.checkpoint_sha256}, kept_fp32=kept,
    )  # fmt: skip


def _checkpoint_reference(request: BuildRequest, checkpoint: Path) -> Callable[[], Any]:
    model = load_checkpoint(checkpoint, request.checkpoint_options)
    return lambda: torch_reference(model)


def _from_bundle(request: BuildRequest) -> _Prepared:
    bundle = read_bundle(request.source)
    _refuse_form(request, "a bundle")
    if request.precision not in (None, bundle.graph.precision):
        raise ConfigError(
            f"{request.source}: holds {bundle.graph.precision}, --precision {request.precision} was asked for; "
            "build another precision from the checkpoint."
        )
    if request.data is not None and request.checkpoint is None:
        raise ConfigError("--data needs --checkpoint when rebuilding a bundle: it knows the masks of its own inputs only.")
    model = onnx.load(bundle.onnx_path)
    fit: Fit = bundle.facts["fit"]
    kept = frozenset(bundle.facts["precision"]["kept_fp32"])
    if request.checkpoint is None:
        return _Prepared(
            model=model, samples=None, reference=lambda: None, reference_name="stored", fit=fit,
            checkpoint=bundle.facts["checkpoint"], kept_fp32=kept, stored=bundle.references(),
        )  # fmt: skip
    samples = samples_for(request, bundle.graph.shape, bundle.graph.info, fit)
    return _Prepared(
        model=model, samples=samples, reference=_checkpoint_reference(request, request.checkpoint), reference_name="torch",
        fit=fit,
        checkpoint=bundle.facts["checkpoint"], kept_fp32=kept,
    )  # fmt: skip


def _load_onnx(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as exc:  # protobuf's and onnx's errors have no common base
        raise BuildError(f"{path}: not a valid ONNX file ({exc}); export it again with `nrd-trt export`.") from exc
    return model


def _refuse_form(request: BuildRequest, what: str) -> None:
    if given := request.form.given():
        raise ConfigError(f"{', '.join(given)}: fixed in {what}; export from the checkpoint to change it.")


def samples_for(request: BuildRequest, shape: InputShape, info: ModelInfo, fit: Fit = "resize") -> SampleSource:
    """Return the images that a request is measured on."""
    return SampleSource(
        data=request.data, labels=request.labels, shape=shape, info=info, fit=request.fit or fit,
        ignore_index=request.ignore_index,
    )  # fmt: skip


# --- validating ------------------------------------------------------------------------------------------------------


def _validate(request: BuildRequest, prepared: _Prepared) -> tuple[Validation, ReferenceSet]:
    graph = prepared.graph
    runner = OrtRunner(prepared.model, threads=request.threads)
    with _reference(prepared) as draw:
        if prepared.stored is not None:
            samples, stored_draw = stored_samples(prepared.stored)
            comparison = compare_with_progress(
                samples, len(samples), stored_draw, runner, graph, progress=request.progress
            )
            references, name = prepared.stored, "stored inputs"
        else:
            assert prepared.samples is not None
            recorder = Recorder(draw, prepared.reference_name)
            comparison = compare_with_progress(
                prepared.samples, len(prepared.samples), recorder, runner, graph, progress=request.progress
            )
            references, name = recorder.recorded(), prepared.samples.name
    matches = None
    if request.checkpoint is not None:
        matches = sha256_file(request.checkpoint) == graph.checkpoint_sha256
    validation = Validation(
        comparison=comparison,
        gates=Gates.of(graph.precision, request.min_agreement, request.max_miou_drop),
        runner=runner.name, arithmetic=runner.arithmetic, reference=prepared.reference_name, samples=name,
        checkpoint_matches=matches,
    )  # fmt: skip
    return validation, references


@contextmanager
def _reference(prepared: _Prepared) -> Iterator[Draw | Any]:
    context = prepared.reference()
    if context is None:
        yield None
    else:
        with context as draw:
            yield draw


# --- recording -------------------------------------------------------------------------------------------------------


def _facts(
    request: BuildRequest, prepared: _Prepared, engine: Engine | None, validation: Validation
) -> dict[str, Any]:
    """Collect what ``bundle.json`` records; nothing depends on time or place, so equal builds are equal."""
    graph = prepared.graph
    parity = prepared.parity
    builder: dict[str, Any] = {"name": "onnxruntime", "version": None, "compute_capabilities": []}
    if engine is not None:
        builder = {
            "name": engine.flavour,
            "version": engine.version,
            "compute_capabilities": list(engine.compute_capabilities),
        }
    return {
        "nrd_trt": nrd_trt.__version__,
        "checkpoint": prepared.checkpoint,
        "calibration_sha256": None,
        "plugin": None,
        "decode": "onnx",
        "builder": {**builder, "gpu": None, "driver": None, **host_facts()},
        "precision": {
            "asked": graph.precision,
            "found": engine.types_found if engine else None,
            "kept_fp32": sorted(prepared.kept_fp32),
            "layers": engine.layers if engine else [],
        },
        "model": graph.to_dict(),
        "fit": prepared.fit,
        "parity": parity.to_dict() if parity else None,
        "validation": validation.to_dict(),
        "passed": validation.passed and (parity is None or parity.passed),
        "command": _command(request, graph),
    }


def _command(request: BuildRequest, graph: GraphFacts) -> str:
    """Return the command that builds this bundle again; NAME.nrd stands for its place."""
    words = ["nrd-trt", "build", request.source.name, "-o", "NAME.nrd", "--precision", graph.precision]
    words += ["--builder", request.builder]
    form = request.form
    pairs = {
        "--input": form.input_form, "--output": form.output, "--size": form.size, "--dynamic": form.dynamic,
        "--batch": form.batch, "--fit": request.fit, "--workspace-mib": request.config.workspace_mib,
        "--optimization-level": request.config.optimization_level,
        "--compute-capability": ",".join(request.config.compute_capabilities) or None,
        "--data": request.data.name if request.data else None,
    }  # fmt: skip
    for flag, value in pairs.items():
        words += [] if value is None else [flag, str(value)]
    words += ["--version-compatible"] * request.config.version_compatible
    words += ["--hardware-compatible"] * request.config.hardware_compatible
    return shlex.join([*words, "--force"])
