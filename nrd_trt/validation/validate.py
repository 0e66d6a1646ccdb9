"""Engine against reference: the comparison, its gates and the record of both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from nrd_trt.engine.bundle import Bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.figures import Gates, ValidationRecord
from nrd_trt.files import check_absent, sha256_file
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.graph.taps import weight_types
from nrd_trt.model import load_trained
from nrd_trt.progress import bar
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.select import make_runner
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import Fit, RunnerName
from nrd_trt.validation.compare import WORST_KEPT, Comparison, Sample, compare
from nrd_trt.validation.localise import LOCALISED_COUNT, Localisation, localise
from nrd_trt.validation.rebuild import Rebuilds, rebuild_plans
from nrd_trt.validation.references import Draw, StoredSamples, check_classes, torch_reference
from nrd_trt.validation.report import write_report
from nrd_trt.validation.samples import SampleSource

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Figures, gates and verdict of one comparison.

    Attributes:
        comparison: The figures.
        gates: What they are held against.
        runner: Backend that drew the engine's masks.
        arithmetic: ``"native"`` or ``"simulated"``.
        reference: ``"torch"``, ``"onnx"`` or ``"stored"``.
        samples: What was compared on.
        plan_run: Whether the plan itself ran; False where it was built but cannot run here.
        checkpoint_matches: Whether the checkpoint compared with is the bundle's; None without a checkpoint.
        precision_asked: What the file says that it is typed in; None where that was not looked at.
        precision_found: Number of convolutions by the type of their weights in the file; None likewise.
        localisation: The stages, where they were asked for.
        rebuilds: Builds of the same file, where they were asked for.
    """

    comparison: Comparison
    gates: Gates
    runner: str
    arithmetic: str
    reference: str
    samples: str
    plan_run: bool = False
    checkpoint_matches: bool | None = None
    precision_asked: str | None = None
    precision_found: dict[str, int] | None = None
    localisation: Localisation | None = None
    rebuilds: Rebuilds | None = None

    @property
    def failures(self) -> list[str]:
        """One line per gate that does not hold."""
        lines = self.gates.failures(agreement=self.comparison.pixel_agreement, miou_drop=self.comparison.miou_drop)
        if self.checkpoint_matches is False:
            lines.append("the checkpoint is not the one that the bundle was built from")
        if self.precision_found is not None and self.precision_asked not in self.precision_found:
            found = ", ".join(f"{count} in {kind}" for kind, count in self.precision_found.items())
            lines.append(f"precision {self.precision_asked} is claimed and not delivered: convolutions are {found}")
        if self.localisation is not None and (line := self.localisation.failure):
            lines.append(line)
        if self.rebuilds is not None and (line := self.rebuilds.failure(self.gates.min_agreement)):
            lines.append(line)
        return lines

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return not self.failures

    def record(self) -> ValidationRecord:
        """Return what a bundle keeps of it."""
        return ValidationRecord(
            **vars(self.comparison.figures()),
            runner=self.runner,
            arithmetic=self.arithmetic,
            reference=self.reference,
            samples=self.samples,
            plan_run=self.plan_run,
            checkpoint_matches=self.checkpoint_matches,
            precision_asked=self.precision_asked,
            precision_found=self.precision_found,
            gates=self.gates,
            failures=tuple(self.failures),
            passed=self.passed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **self.record().to_dict(),
            "localisation": self.localisation.to_dict() if self.localisation else None,
            "rebuilds": self.rebuilds.to_dict() if self.rebuilds else None,
        }


def compare_with_progress(
    samples: SampleSource | StoredSamples,
    draw: Draw,
    runner: BaseRunner,
    graph: GraphFacts,
    *,
    progress: bool,
    pictures: int = 0,
) -> Comparison:
    """Compare over samples with a bar on stderr where it takes longer than two seconds; keep the worst `pictures`."""
    with Engine(runner, graph) as engine:
        shown = bar(samples, desc="validating", unit="image", show=progress, total=len(samples))
        return compare(shown, draw, engine.mask, graph.info.class_names, pictures=pictures)


@dataclass(frozen=True, kw_only=True)
class ValidateRequest:
    """What `nrd-trt validate` is asked for; see `CLI` options of the same names."""

    bundle: Path
    checkpoint: Path | None = None
    data: Path | None = None
    labels: Path | None = None
    ignore_index: int | None = None
    fit: Fit | None = None
    min_agreement: float | None = None
    max_miou_drop: float | None = None
    localise: bool = False
    rebuild: int | None = None
    report: Path | None = None
    force: bool = False
    runner: RunnerName = "auto"
    plugin: Path | None = None
    threads: int | None = None
    progress: bool = True
    on_stage: Callable[[str], None] = lambda text: None
    on_message: Callable[[str, str], None] = lambda severity, text: None

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.data is not None:
            raise ConfigError("--data needs --checkpoint: a bundle alone knows the masks of its stored inputs only.")
        if self.labels is not None and self.data is None:
            raise ConfigError("--labels needs --data: labels are paired with images by name.")
        if self.localise and self.checkpoint is None:
            raise ConfigError("--localise needs --checkpoint: stages are compared with those of the PyTorch model.")
        if self.rebuild is not None and self.rebuild < 2:
            raise ConfigError(f"--rebuild {self.rebuild}: expected at least 2, as builds are compared with each other.")
        if self.report is not None:
            if self.report.suffix.lower() not in (".html", ".htm"):
                raise ConfigError(f"--report {self.report}: expected a name that ends in .html.")
            check_absent(self.report, force=self.force)  # before any work


def validate_bundle(request: ValidateRequest) -> Validation:
    """Compare a bundle's engine with its checkpoint, or with the masks that it stores; write the report asked for.

    Raises:
        BundleError: The bundle is damaged.
        PluginError: The plan's library is not that of the build, or cannot be used here.
        ConfigError: The checkpoint is of another kind, or an option cannot be had with this bundle.
        CheckpointError: The checkpoint is unreadable.
        MissingDependencyError: ``--rebuild`` and the plan's builder is not installed.
    """
    bundle = read_bundle(request.bundle)
    gates = Gates.of(bundle.graph.precision, request.min_agreement, request.max_miou_drop)
    runner = make_runner(bundle, request.runner, threads=request.threads, plugin=request.plugin)
    request.on_stage("comparing the masks")
    model = None
    samples: SampleSource | StoredSamples
    with ExitStack() as stack:
        if request.checkpoint is not None:
            model = load_trained(request.checkpoint)
            check_classes(request.checkpoint, model, bundle.graph)
            samples, draw = _source(bundle, request), stack.enter_context(torch_reference(model))
        else:
            samples = StoredSamples(bundle.references())
            draw = stack.enter_context(samples.reference())
        comparison = compare_with_progress(
            samples,
            draw,
            runner,
            bundle.graph,
            progress=request.progress,
            pictures=WORST_KEPT if request.report else 0,
        )
    file = onnx.load(bundle.onnx_path)
    plan_run = isinstance(runner, TrtRunner)
    validation = Validation(
        comparison=comparison,
        gates=gates,
        runner=runner.name,
        arithmetic=runner.arithmetic,
        reference="stored" if model is None else "torch",
        samples=samples.name,
        plan_run=plan_run,
        checkpoint_matches=_matches(bundle, request.checkpoint),
        precision_asked=bundle.record.precision.asked,
        precision_found=weight_types(file),
        localisation=_localise(request, bundle, file, model, samples, comparison, gates, plan_run),
        rebuilds=_rebuild(request, bundle, samples),
    )
    if request.report is not None:
        write_report(request.report, bundle, validation)
    return validation


def _source(bundle: Bundle, request: ValidateRequest) -> SampleSource:
    return SampleSource(
        data=request.data,
        labels=request.labels,
        shape=bundle.graph.shape,
        info=bundle.graph.info,
        fit=request.fit or bundle.record.fit,
        ignore_index=request.ignore_index,
    )


def _matches(bundle: Bundle, checkpoint: Path | None) -> bool | None:
    """Whether a checkpoint is the one that the bundle was built from; None without one."""
    return None if checkpoint is None else sha256_file(checkpoint) == bundle.graph.checkpoint_sha256


def _localise(
    request: ValidateRequest,
    bundle: Bundle,
    file: onnx.ModelProto,
    model: Segmentor | None,
    samples: SampleSource | StoredSamples,
    comparison: Comparison,
    gates: Gates,
    plan_run: bool,
) -> Localisation | None:
    """Compare the stages on the images that agree least."""
    if not request.localise or model is None:
        return None
    request.on_stage("comparing the stages")
    agreement = comparison.pixel_agreement
    return localise(
        model,
        file,
        _worst(samples, comparison),
        mask_tolerance=1 - gates.min_agreement,
        plan_disagreement=1 - agreement if plan_run and agreement is not None else None,
        has_plan=bundle.plan_path is not None,
        threads=request.threads,
    )


def _worst(samples: SampleSource | StoredSamples, comparison: Comparison) -> list[Sample]:
    """Return the images of the lowest agreement, or the first ones where all agree."""
    chosen = {figures.index for figures in comparison.worst_images[:LOCALISED_COUNT]} or set(range(LOCALISED_COUNT))
    return [sample for index, sample in enumerate(samples) if index in chosen]


def _rebuild(request: ValidateRequest, bundle: Bundle, samples: SampleSource | StoredSamples) -> Rebuilds | None:
    if request.rebuild is None:
        return None
    return rebuild_plans(
        bundle,
        request.rebuild,
        samples,
        plugin=request.plugin,
        threads=request.threads,
        progress=request.progress,
        on_stage=request.on_stage,
        on_message=request.on_message,
    )
