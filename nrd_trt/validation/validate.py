"""Engine against reference: the comparison, its gates and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from nrd_trt.data.exposure import exposure_warnings
from nrd_trt.data.samples import Sample, SampleSource
from nrd_trt.engine.bundle import Bundle, read_bundle
from nrd_trt.errors import ConfigError, NrdTrtError, RunnerError
from nrd_trt.figures import ImageFigures, Localisation, Rebuilds, SoundComparison, StructureRecord, ValidationRecord
from nrd_trt.files import check_file, sha256_file
from nrd_trt.gates import Gates
from nrd_trt.graph.metadata import load_onnx
from nrd_trt.graph.network import named_as
from nrd_trt.graph.tensors import weight_types
from nrd_trt.model import load_trained
from nrd_trt.progress import OnMessage, OnStage, bar, silent
from nrd_trt.runtime.engine import Engine, open_engine
from nrd_trt.runtime.select import RunOptions, unproven
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import Fit, Provider, Resample, RunnerName, optional_path
from nrd_trt.validation.compare import WORST_KEPT, Comparator, Comparison, Picture, ReferenceFn
from nrd_trt.validation.localise import LOCALISED_COUNT, compare_stages
from nrd_trt.validation.pixels import preprocessing_faults
from nrd_trt.validation.rebuild import rebuild_plans
from nrd_trt.validation.rederive import other_kind, rederive_full
from nrd_trt.validation.references import StoredSamples, check_classes, torch_reference
from nrd_trt.validation.report import write_report
from nrd_trt.validation.stages import TITLES
from nrd_trt.validation.structure import prove_structure
from nrd_trt.validation.twin import compare_with_sound

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor


@dataclass(frozen=True, kw_only=True)
class Proofs:
    """What was compared besides the masks; None where it was not.

    Attributes:
        localisation: The stages.
        rebuilds: Builds of the same file.
        structure: The file compared with the checkpoint.
        soundness: The file beside sound ones.
    """

    localisation: Localisation | None = None
    rebuilds: Rebuilds | None = None
    structure: StructureRecord | None = None
    soundness: SoundComparison | None = None

    def failures(self, gates: Gates) -> Iterator[str]:
        """Yield one line per proof that does not hold."""
        if self.structure is not None:
            yield from self.structure.failures()
        if self.soundness is not None:
            yield from self.soundness.failures
        if self.localisation is not None and (first := self.localisation.first_beyond):
            because = f": {'; '.join(self.localisation.hints)}" if self.localisation.hints else ""
            yield f"stage {TITLES.get(first, first)} is the first beyond its tolerance{because}"
        if self.rebuilds is not None and (line := self.rebuilds.failure(gates.min_agreement)):
            yield line


NO_PROOFS = Proofs()


@dataclass(frozen=True, kw_only=True)
class Validation(ValidationRecord):
    """Figures and verdict of one comparison: what a bundle keeps of them, and what only a report shows.

    Attributes:
        has_plan: Whether there is a plan, which ran if `plan_ran` says so.
        per_image: Figures of every image, in order.
        pictures: The worst images whole, the worst first: those that a report shows, or whose stages are compared.
    """

    has_plan: bool
    per_image: tuple[ImageFigures, ...]
    pictures: tuple[Picture, ...]

    def record(self) -> ValidationRecord:
        """Return what a bundle keeps."""
        return ValidationRecord(**{entry.name: getattr(self, entry.name) for entry in fields(ValidationRecord)})

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        return self.record().to_dict()


def validate(
    bundle: Path | str | Bundle,
    *,
    checkpoint: Path | str | None = None,
    data: Path | str | None = None,
    labels: Path | str | None = None,
    ignore_index: int | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    min_agreement: float | None = None,
    max_miou_drop: float | None = None,
    min_class_iou: float | None = None,
    max_class_drop: float | None = None,
    min_border_agreement: float | None = None,
    min_boundary_f: float | None = None,
    structure: bool | None = None,
    localise: bool = False,
    rebuild: int | None = None,
    report: Path | str | None = None,
    force: bool = False,
    runner: RunnerName = "auto",
    plugin: Path | str | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    verify_key: Path | str | None = None,
    progress: bool = True,
    on_stage: OnStage = silent,
    on_message: OnMessage = silent,
) -> Validation:
    """Compare the masks of a bundle's engine with those of its checkpoint, or with the masks that the bundle stores.

    Args:
        bundle: A ``NAME.nrd`` folder, or one that was opened.
        checkpoint: The reference, run by PyTorch in fp32; None takes the masks stored in the bundle.
        data: Folder of images, or one with ``images/`` and ``labels/``; None takes procedural scenes. It needs a
            checkpoint.
        labels: Folder of index PNGs, paired with the images by name; None takes ``data/labels`` where that exists.
        ignore_index: Label value that is not counted, besides 255; None takes the model's.
        fit: How images are brought to the engine's size; None takes the bundle's way.
        resample: See `nrd_trt.open_bundle`.
        min_agreement: Smallest share of equal pixels, 0-1; None takes the default of the bundle's precision.
        max_miou_drop: Largest loss of mIoU against labels, 0-1; None likewise.
        min_class_iou: Smallest IoU with the reference of any class that is not rare, 0-1; None likewise.
        max_class_drop: Largest loss of IoU against labels of any class that is not rare, 0-1; None likewise.
        min_border_agreement: Smallest share of equal pixels near borders, 0-1; None likewise.
        min_boundary_f: Smallest boundary F-score with the reference, 0-1; None likewise.
        structure: Compare the file with the checkpoint, node by node, before any image; None does where there is one.
        localise: Name the first stage of the network that is not the checkpoint's.
        rebuild: Number of times, at least 2, that the file is built anew to compare the builds; None builds nothing.
        report: HTML page to write, with every figure.
        force: Replace an existing report.
        runner: See `nrd_trt.open_bundle`.
        plugin: See `nrd_trt.open_bundle`.
        threads: CPU threads; None leaves the choice to the backend.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: See `nrd_trt.open_bundle`.
        device: See `nrd_trt.open_bundle`.
        verify_key: See `nrd_trt.open_bundle`.
        progress: Show a bar on stderr where the work takes over two seconds.
        on_stage: Receives a line when a stage begins.
        on_message: Receives TensorRT's messages as ``(severity, text)``.

    Returns:
        Figures and verdict; a gate that does not hold is a result and no error.

    Raises:
        BundleError: The bundle is damaged.
        PluginError: The plan's library is not that of the build, or cannot be used here.
        ConfigError: The checkpoint is of another kind, or an argument does not fit the others or this bundle.
        CheckpointError: The checkpoint cannot be read.
        RunnerError: The runner asked for cannot run the bundle here.
        MissingDependencyError: `rebuild` is given and the plan's builder is not installed.
    """
    checkpoint, data = optional_path("checkpoint", checkpoint), optional_path("data", data)
    labels, report = optional_path("labels", labels), optional_path("report", report)
    plugin = optional_path("plugin", plugin)
    _check_arguments(checkpoint, data, labels, structure, localise, rebuild, report, force=force)
    bundle = read_bundle(bundle, verify_key=optional_path("verify_key", verify_key))
    gates = Gates.of(
        bundle.graph.precision,
        min_agreement,
        max_miou_drop,
        min_class_iou=min_class_iou,
        max_class_drop=max_class_drop,
        min_border_agreement=min_border_agreement,
        min_boundary_f=min_boundary_f,
    )
    run = RunOptions(
        runner=runner, plugin=plugin, threads=threads, cuda=cuda, cuda_graph=cuda_graph, device=device, faithful=True
    )
    engine = open_engine(bundle, run, fit=fit, resample=resample)
    model, samples, reference = _reference(engine, bundle, checkpoint, data, labels, ignore_index)
    file = load_onnx(bundle.onnx_path)
    full = proof = None
    if model is not None and other_kind(model, bundle.graph) is None:
        on_stage("exporting the checkpoint anew")
        file = named_as(file, full := rederive_full(model, bundle.graph))
    if model is not None and structure is not False:
        on_stage("comparing the file with the checkpoint")
        proof = prove_structure(bundle, file, model, full)
    on_stage("comparing the masks")
    with reference as predict, _telling(proof):
        comparison = compare_with_progress(samples, predict, engine, progress=progress, pictures=WORST_KEPT)
        stored = None if model is None else StoredSamples(bundle.references()).failure(predict)
    soundness = localisation = rebuilds = None
    if model is not None and full is not None:
        on_stage("comparing the file with sound ones")
        soundness = _soundness(model, full, file, bundle, comparison, threads)
    if model is not None and localise:
        on_stage("comparing the stages")
        localisation = _localise(model, file, comparison, engine, gates, soundness, threads)
    if rebuild is not None:
        rebuilds = rebuild_plans(
            bundle, rebuild, samples, run, progress=progress, on_stage=on_stage, on_message=on_message
        )
    validation = judge(
        comparison,
        engine,
        file,
        gates=gates,
        reference="stored" if model is None else "torch",
        samples=samples.name,
        precision_asked=bundle.record.precision.asked,
        checkpoint=checkpoint,
        has_plan=bundle.plan_path is not None,
        doubt=_doubt(engine, bundle, run),
        stored=stored,
        warnings=exposure_warnings(bundle.record.exposure, data),
        proofs=Proofs(localisation=localisation, rebuilds=rebuilds, soundness=soundness, structure=proof),
    )
    if report is not None:
        write_report(report, bundle, validation)
    return validation


def compare_with_progress(
    samples: SampleSource | StoredSamples, reference: ReferenceFn, engine: Engine, *, progress: bool, pictures: int = 0
) -> Comparison:
    """Compare over samples with a bar on stderr where it takes longer than two seconds; keep the worst `pictures`."""
    comparator = Comparator(engine.info.class_names, pictures=pictures)
    with engine:
        for sample in bar(samples, desc="validating", unit="image", show=progress, total=len(samples)):
            drawn = engine.draw(sample.image)
            comparator.add(reference(sample), drawn.mask, sample, drawn.confidence)
    return comparator.result()


def judge(
    comparison: Comparison,
    engine: Engine,
    file: onnx.ModelProto,
    *,
    gates: Gates,
    reference: str,
    samples: str,
    precision_asked: str,
    checkpoint: Path | None,
    has_plan: bool,
    doubt: str | None = None,
    stored: str | None = None,
    warnings: tuple[str, ...] = (),
    proofs: Proofs = NO_PROOFS,
) -> Validation:
    """Compare figures with gates and a file with what it claims.

    Args:
        comparison: The figures.
        engine: What drew the masks.
        file: What the engine runs or was built from.
        gates: What the figures must reach.
        reference: ``"torch"``, ``"onnx"`` or ``"stored"``.
        samples: What was compared on, in words.
        precision_asked: Precision that the file must have.
        checkpoint: The checkpoint compared with, which must be the file's; None without one.
        has_plan: Whether there is a plan.
        doubt: Why the plan did not run where it should have, in words.
        stored: What is wrong with the masks that the bundle stores, in words.
        warnings: What speaks against the figures and fails nothing, beside what `comparison` says, in words.
        proofs: What was compared besides the masks.
    """
    matches = None if checkpoint is None else sha256_file(checkpoint) == engine.graph.checkpoint_sha256
    types = weight_types(file)
    failures = gates.failures(comparison.judged)
    failures += [line for line in (doubt, stored) if line is not None]
    if matches is False:
        due = engine.graph.checkpoint_sha256
        failures.insert(
            0,
            "the checkpoint is not the one that the bundle was built from; give "
            + (f"that of SHA-256 {due}" if due else "that one"),
        )
    if precision_asked not in types:
        found = ", ".join(f"{count} in {kind}" for kind, count in types.items())
        failures.append(f"precision {precision_asked} is claimed and not delivered: convolutions are {found}")
    if comparison.unknown_pixels:
        last = len(engine.info.class_names) - 1
        failures.append(f"{comparison.unknown_pixels} pixels have an index beyond {last}, the last class")
    failures.extend(preprocessing_faults(engine.info, engine.graph.shape, engine.fit, engine.resample))
    failures.extend(proofs.failures(gates))
    return Validation(
        **{**vars(comparison), "warnings": (*comparison.warnings, *warnings)},
        runner=engine.runner_name,
        arithmetic=engine.arithmetic,
        reference=reference,
        samples=samples,
        plan_ran=isinstance(engine.runner, TrtRunner),
        has_plan=has_plan,
        checkpoint_matches=matches,
        precision_asked=precision_asked,
        precision_found=types,
        gates=gates,
        failures=tuple(failures),
        passed=not failures,
        **vars(proofs),
    )


@contextmanager
def _telling(proof: StructureRecord | None) -> Iterator[None]:
    """Let an error of a file that cannot be run say how the file differs from the checkpoint."""
    try:
        yield
    except NrdTrtError as exc:
        if proof is None or not proof.differences:
            raise
        raise RunnerError(f"{'; '.join(proof.failures())}; and the file cannot be run: {exc}") from exc


def _doubt(engine: Engine, bundle: Bundle, run: RunOptions) -> str | None:
    """Say why the plan should have run here and did not; a runner that is named speaks for itself."""
    if engine.plan_ran is not False or run.runner != "auto":
        return None
    line = unproven(bundle.record.builder, run.runner)
    return line and f"{line}; runner='onnxruntime' judges the ONNX file alone"


def _check_arguments(
    checkpoint: Path | None,
    data: Path | None,
    labels: Path | None,
    structure: bool | None,
    localise: bool,
    rebuild: int | None,
    report: Path | None,
    *,
    force: bool,
) -> None:
    """Raise `ConfigError` where an argument needs another one, or the report cannot be written where it is wanted."""
    if checkpoint is None and data is not None:
        raise ConfigError("data= needs checkpoint=: a bundle alone knows the masks of its stored inputs only.")
    if labels is not None and data is None:
        raise ConfigError("labels= needs data=: labels are paired with images by name.")
    if structure is not None and checkpoint is None:
        raise ConfigError("structure= needs checkpoint=, which the file is compared with; leave it out, or give that.")
    if localise and checkpoint is None:
        raise ConfigError("localise= needs checkpoint=: stages are compared with those of the PyTorch model.")
    if rebuild is not None and rebuild < 2:
        raise ConfigError(f"rebuild={rebuild}: expected at least 2, as builds are compared with each other.")
    if report is not None:
        if report.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"report={report}: expected a name that ends in .html.")
        check_file(report, force=force, marks=[b"<title>Validation of "])


def _reference(
    engine: Engine,
    bundle: Bundle,
    checkpoint: Path | None,
    data: Path | None,
    labels: Path | None,
    ignore_index: int | None,
) -> tuple[Segmentor | None, SampleSource | StoredSamples, AbstractContextManager[ReferenceFn]]:
    """Return the checkpoint's network, the samples and the reference: PyTorch's masks or the stored ones."""
    if checkpoint is None:
        stored = StoredSamples(bundle.references())
        return None, stored, stored.reference()
    model = load_trained(checkpoint, bundle.record.options)
    check_classes(checkpoint, model, engine.graph)
    samples = SampleSource(
        data=data,
        labels=labels,
        shape=engine.graph.shape,
        info=engine.info,
        fit=engine.fit,
        resample=engine.resample,
        ignore_index=ignore_index,
    )
    return model, samples, torch_reference(model, confidence="confidence" in engine.graph.outputs)


def _soundness(
    model: Segmentor,
    full: onnx.ModelProto,
    file: onnx.ModelProto,
    bundle: Bundle,
    comparison: Comparison,
    threads: int | None,
) -> SoundComparison:
    """Compare the file with sound ones on the images that agree least."""
    return compare_with_sound(
        model,
        full,
        file,
        bundle.record.precision,
        {picture.figures.name: picture.sample.image for picture in comparison.pictures},
        exporter=bundle.record.exporter,
        threads=threads,
    )


def _localise(
    model: Segmentor,
    file: onnx.ModelProto,
    comparison: Comparison,
    engine: Engine,
    gates: Gates,
    soundness: SoundComparison | None,
    threads: int | None,
) -> Localisation:
    """Compare the stages on the images that agree least."""
    agreement = comparison.pixel_agreement if engine.plan_ran else None
    allowed = soundness.mask_allowed if soundness is not None else None
    return compare_stages(
        model,
        file,
        _worst(comparison),
        mask_tolerance=max(1 - gates.min_agreement, allowed or 0.0),  # few images are off by more than many
        plan_disagreement=None if agreement is None else 1 - agreement,
        has_plan=engine.plan_ran is not None,
        threads=threads,
    )


def _worst(comparison: Comparison) -> list[Sample]:
    """Return the images that agree least, or the first ones where all agree; they were kept as they were compared."""
    return [picture.sample for picture in comparison.pictures[:LOCALISED_COUNT]]
