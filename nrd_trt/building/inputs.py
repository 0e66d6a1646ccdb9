"""The three things to build from, a checkpoint, an ONNX file, a bundle, each brought to one typed ONNX model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nrd_trt.building.request import BuildRequest
from nrd_trt.data.exposure import Exposure
from nrd_trt.data.samples import SCALES_COUNT, SampleSource
from nrd_trt.engine.bundle import check_no_key, is_bundle, read_bundle
from nrd_trt.engine.record import CheckpointRecord, PrecisionRecord
from nrd_trt.errors import ConfigError
from nrd_trt.exporting.export import export_checked
from nrd_trt.exporting.precision import derive_precision
from nrd_trt.figures import Parity, StructureRecord
from nrd_trt.files import sha256_file
from nrd_trt.graph.inline import is_inlined
from nrd_trt.graph.metadata import (
    ExporterRecord,
    GraphFacts,
    TypeChoices,
    load_checked,
    read_choices,
    read_facts,
    write_choices,
)
from nrd_trt.model import checkpoint_options, load_model, load_trained
from nrd_trt.specs import QUANTIZED, CheckpointOptions, Fit, Precision, Resample
from nrd_trt.validation.compare import ReferenceFn
from nrd_trt.validation.references import StoredSamples, check_classes, onnx_reference, torch_reference
from nrd_trt.validation.structure import layer_structure

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

DEFAULT_PRECISION: Precision = "fp16"


@dataclass(frozen=True, kw_only=True)
class BuildInput:
    """A typed ONNX model with all that its validation needs; the three kinds of source end here.

    Attributes:
        model: In the precision and form asked for.
        samples: To validate on.
        reference: Opens what draws the right masks of the samples.
        reference_name: ``"torch"``, ``"onnx"`` or ``"stored"``.
        drawn_by: What drew or draws the reference masks, ``"torch"`` or ``"onnx"``.
        fit: How images are brought to the engine's size.
        resample: What scales them.
        checkpoint: Name and SHA-256, as far as they are known.
        calibration_sha256: Hash of the images that ranges were measured on, where there were any.
        exposure: How bright these are, where that is known.
        parity: The exported file against PyTorch, where something was exported.
        exporter: What wrote the ONNX file, where that is known.
        options: What was said of the checkpoint beyond its file, where anything was.
        structure: The file against what PyTorch executes, where there is a checkpoint.
    """

    model: onnx.ModelProto
    samples: SampleSource | StoredSamples
    reference: Callable[[], AbstractContextManager[ReferenceFn]]
    reference_name: str
    drawn_by: str
    fit: Fit
    resample: Resample
    checkpoint: CheckpointRecord | None
    calibration_sha256: str | None = None
    exposure: Exposure | None = None
    parity: Parity | None = None
    exporter: ExporterRecord | None = None
    options: CheckpointOptions | None = None
    structure: StructureRecord | None = None


def read_input(request: BuildRequest) -> BuildInput:
    """Bring the source of a request to a typed ONNX model; only that of a checkpoint can be given another form."""
    if is_bundle(request.source) or request.source.suffix == ".nrd":
        return _from_bundle(request)
    check_no_key(request.source, request.verify_key)
    if not request.source.is_file():
        raise ConfigError(f"{request.source}: expected a checkpoint, an ONNX file or a bundle; found none.")
    return _from_onnx(request) if request.source.suffix == ".onnx" else _from_checkpoint(request)


def _from_checkpoint(request: BuildRequest) -> BuildInput:
    if request.checkpoint is not None:
        raise ConfigError("checkpoint= belongs to builds from an ONNX file; here the checkpoint is the source.")
    precision = request.precision or DEFAULT_PRECISION
    _check_calibration(request, precision, "fp32")
    model = load_model(request.source, **request.options)
    from nrd_trt.exporting.onnx_export import exporter_record  # after `load_model`, which tells of a missing PyTorch

    samples = request.samples(request.shape(model.info.size_hw), model.info)
    request.on_stage(f"exporting {model.config.encoder} to ONNX, {precision}")
    exported = export_checked(
        model,
        request.source,
        samples,
        precision=precision,
        input_form=request.input_form,
        outputs=request.outputs,
        mask_encoding=request.mask_encoding,
        calibrator=request.calibrator,
        full=request.full,
        threads=request.run.threads,
        progress=request.progress,
    )
    return BuildInput(
        model=exported.model,
        samples=samples,
        reference=_by_torch(model, read_facts(exported.model)),
        reference_name="torch",
        drawn_by="torch",
        fit=samples.fit,
        resample=samples.resample,
        checkpoint=CheckpointRecord(name=request.source.name, sha256=sha256_file(request.source)),
        exporter=exporter_record(),
        options=model.options,
        structure=layer_structure(exported.model, model, _measured(samples)),
        calibration_sha256=request.calibrator.sha256 if request.calibrator else None,
        exposure=request.calibrator.exposure if request.calibrator else None,
        parity=exported.parity,
    )


def _from_onnx(request: BuildRequest) -> BuildInput:
    model = load_checked(request.source)
    _refuse_form(request, "an ONNX file")
    if is_inlined(model):
        raise ConfigError(
            f"{request.source}: expected a file whose decode a plugin can take and other precisions leave in fp32, got "
            "one that nrd_trt.export inlined for other runtimes; export the checkpoint again, not inlined."
        )
    graph = read_facts(model)
    samples = request.samples(graph.shape, graph.info)
    precision = request.precision or (DEFAULT_PRECISION if graph.precision == "fp32" else graph.precision)
    if graph.precision not in ("fp32", precision):
        raise ConfigError(
            f"{request.source}: typed in {graph.precision}, precision={precision!r} was asked for; "
            "precisions are derived from an fp32 file, so export one first."
        )
    _check_calibration(request, precision, graph.precision)
    typed = model
    if precision != graph.precision:
        typed = derive_precision(
            model,
            precision,
            _measured(samples),
            calibrator=request.calibrator,
            threads=request.run.threads,
            progress=request.progress,
        )
    options, structure = checkpoint_options(request.options) or graph.options, None
    if request.checkpoint is not None:
        trained = _checkpoint_of(request.checkpoint, graph, options)
        reference, name = _by_torch(trained, graph), "torch"
        structure = layer_structure(typed, trained, _measured(samples))
    elif graph.precision == "fp32":
        reference, name = (lambda: onnx_reference(model, request.run.threads)), "onnx"
    else:
        raise ConfigError(
            f"{request.source}: a {graph.precision} file cannot prove its own masks; give checkpoint=, or build from "
            "an fp32 file."
        )
    return BuildInput(
        model=typed,
        samples=samples,
        reference=reference,
        reference_name=name,
        drawn_by=name,
        fit=samples.fit,
        resample=samples.resample,
        checkpoint=CheckpointRecord(name=None, sha256=graph.checkpoint_sha256),
        exporter=graph.exporter,
        options=options,
        structure=structure,
        calibration_sha256=request.calibrator.sha256 if request.calibrator else None,
        exposure=request.calibrator.exposure if request.calibrator else None,
    )


def _measured(samples: SampleSource) -> list[np.ndarray]:
    """Return the images that scales of activations are judged on."""
    return [sample.image for sample in samples.spread(SCALES_COUNT)]


def _checkpoint_of(checkpoint: Path, graph: GraphFacts, options: CheckpointOptions | None) -> Segmentor:
    """Load the checkpoint of a file or bundle."""
    model = load_trained(checkpoint, options)
    check_classes(checkpoint, model, graph)
    return model


def _from_bundle(request: BuildRequest) -> BuildInput:
    bundle = read_bundle(request.source, verify_key=request.verify_key)
    _refuse_form(request, "a bundle")
    if request.precision not in (None, bundle.graph.precision):
        raise ConfigError(
            f"{request.source}: holds {bundle.graph.precision}, precision={request.precision!r} was asked for; "
            "build another precision from the checkpoint."
        )
    _check_calibration(request, bundle.graph.precision, bundle.graph.precision)
    if request.data is not None and request.checkpoint is None:
        raise ConfigError(
            "data= needs checkpoint= when rebuilding a bundle: it knows the masks of its own inputs only."
        )
    if request.labels is not None and request.data is None:
        raise ConfigError("labels= needs data=: labels are paired with images by name.")
    for name, asked in (("fit", request.fit), ("resample", request.resample)):
        if asked is not None and request.checkpoint is None:
            raise ConfigError(
                f"{name}= needs checkpoint= when rebuilding a bundle: its own inputs have the engine's size."
            )
    fit: Fit = request.fit or bundle.record.fit
    resample: Resample = request.resample or bundle.record.resample
    model = load_checked(bundle.onnx_path)
    if bundle.graph.precision != "fp32" and read_choices(model) is None:
        write_choices(model, _recorded_choices(bundle.record.precision))
    options, structure = checkpoint_options(request.options) or bundle.record.options, None
    samples: SampleSource | StoredSamples
    reference: Callable[[], AbstractContextManager[ReferenceFn]]
    if request.checkpoint is None:
        samples = StoredSamples(bundle.references())
        reference, name, drawn_by = samples.reference, "stored", samples.source
    else:
        samples = request.samples(bundle.graph.shape, bundle.graph.info, fit, resample)
        trained = _checkpoint_of(request.checkpoint, bundle.graph, options)
        reference, name, drawn_by = _by_torch(trained, bundle.graph), "torch", "torch"
        structure = layer_structure(model, trained, _measured(samples))
    return BuildInput(
        model=model,
        samples=samples,
        reference=reference,
        reference_name=name,
        drawn_by=drawn_by,
        fit=fit,
        resample=resample,
        checkpoint=bundle.record.checkpoint,
        calibration_sha256=bundle.record.calibration_sha256,
        exposure=bundle.record.exposure,
        exporter=bundle.record.exporter,
        options=options,
        structure=structure,
    )


def _by_torch(model: Segmentor, graph: GraphFacts) -> Callable[[], AbstractContextManager[ReferenceFn]]:
    """Return what opens the trained model as the reference of a file."""
    return lambda: torch_reference(model, confidence="confidence" in graph.outputs)


def _recorded_choices(held: PrecisionRecord) -> TypeChoices:
    """Return the choices of a file that does not tell them itself, as earlier versions recorded them."""
    return TypeChoices(
        kept_fp32=held.kept_because,
        int8_layers=held.int8_layers,
        fp8_layers=held.fp8_layers,
        ranges=held.ranges,
        quantizer=held.quantizer,
        target=held.target,
    )


def _check_calibration(request: BuildRequest, precision: Precision, held: Precision) -> None:
    """Refuse int8 and fp8 without a calibration, and a calibration that would serve nothing, before any work."""
    given = request.calibrator
    if given is None:
        if precision in QUANTIZED and precision != held:
            raise ConfigError(
                f"precision={precision!r}: give calibration= images like those of deployment for its ranges."
            )
    elif precision == held:
        raise ConfigError(
            f"calibration=: expected fp16, bf16, int8 or fp8 to derive from an fp32 source, got {precision}, which "
            f"{request.source.name} gives as it is; leave it out, or give another precision= or source."
        )
    elif precision not in QUANTIZED and not given.has_images:
        raise ConfigError(
            "calibration=: a file of ranges serves precision='int8' or 'fp8' only; give images for other types."
        )


def _refuse_form(request: BuildRequest, what: str) -> None:
    if given := request.form_given():
        raise ConfigError(f"{', '.join(given)}: fixed in {what}; export from the checkpoint to change it.")
