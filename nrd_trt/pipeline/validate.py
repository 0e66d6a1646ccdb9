"""Engine against reference: the comparison, its gates and the record of both."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nrd_trt.engine.bundle import Bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.model import load_trained
from nrd_trt.pipeline.references import Draw, StoredSamples, check_classes, torch_reference
from nrd_trt.pipeline.samples import SampleSource
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.mask_runner import MaskRunner
from nrd_trt.runtime.select import make_runner
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import Fit
from nrd_trt.validate.compare import Comparison, compare
from nrd_trt.validate.gates import Gates


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
    """

    comparison: Comparison
    gates: Gates
    runner: str
    arithmetic: str
    reference: str
    samples: str
    plan_run: bool = False
    checkpoint_matches: bool | None = None

    @property
    def failures(self) -> list[str]:
        """One line per gate that does not hold."""
        lines = self.gates.failures(agreement=self.comparison.pixel_agreement, miou_drop=self.comparison.miou_drop)
        if self.checkpoint_matches is False:
            lines.append("the checkpoint is not the one that the bundle was built from")
        return lines

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; the comparison's figures are at the top level."""
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("comparison", "gates")}
        return {
            **asdict(self.comparison),
            **rest,
            "gates": asdict(self.gates),
            "failures": self.failures,
            "passed": self.passed,
        }


def compare_with_progress(
    samples: SampleSource | StoredSamples, draw: Draw, runner: BaseRunner, graph: GraphFacts, *, progress: bool
) -> Comparison:
    """Compare over samples with a bar on stderr where it takes longer than two seconds."""
    with runner:
        bar = tqdm(
            samples,
            total=len(samples),
            desc="validating",
            unit="image",
            delay=2,
            file=sys.stderr,
            disable=not progress,
            leave=False,
        )
        return compare(bar, draw, MaskRunner(runner, graph), graph.info.class_names)


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
    runner: str = "auto"
    plugin: Path | None = None
    threads: int | None = None
    progress: bool = True


def validate_bundle(request: ValidateRequest) -> Validation:
    """Compare a bundle's engine with its checkpoint, or with the masks that it stores.

    Raises:
        BundleError: The bundle is damaged.
        PluginError: The plan's library is not that of the build, or cannot be used here.
        ConfigError: Options exclude each other.
        CheckpointError: The checkpoint is unreadable or of another kind.
    """
    bundle = read_bundle(request.bundle)
    gates = Gates.of(bundle.graph.precision, request.min_agreement, request.max_miou_drop)
    runner = make_runner(bundle, request.runner, threads=request.threads, plugin=request.plugin)
    with ExitStack() as stack:
        samples: SampleSource | StoredSamples
        matches: bool | None = None
        if request.checkpoint is not None:
            samples, reference = _source(bundle, request), "torch"
            draw, matches = _checkpoint_reference(stack, bundle, request.checkpoint)
        elif request.data is not None:
            raise ConfigError("--data needs --checkpoint: a bundle alone knows the masks of its stored inputs only.")
        elif request.labels is not None:
            raise ConfigError("--labels needs --data: labels are paired with images by name.")
        else:
            samples, reference = StoredSamples(bundle.references()), "stored"
            draw = stack.enter_context(samples.reference())
        comparison = compare_with_progress(samples, draw, runner, bundle.graph, progress=request.progress)
    return Validation(
        comparison=comparison,
        gates=gates,
        runner=runner.name,
        arithmetic=runner.arithmetic,
        reference=reference,
        samples=samples.name,
        plan_run=isinstance(runner, TrtRunner),
        checkpoint_matches=matches,
    )


def _source(bundle: Bundle, request: ValidateRequest) -> SampleSource:
    return SampleSource(
        data=request.data,
        labels=request.labels,
        shape=bundle.graph.shape,
        info=bundle.graph.info,
        fit=request.fit or bundle.facts["fit"],
        ignore_index=request.ignore_index,
    )


def _checkpoint_reference(stack: ExitStack, bundle: Bundle, checkpoint: Path) -> tuple[Draw, bool]:
    """Return the checkpoint as a reference, and whether it is the one that the bundle was built from."""
    model = load_trained(checkpoint)
    check_classes(checkpoint, model, bundle.graph)
    draw = stack.enter_context(torch_reference(model))
    return draw, sha256_file(checkpoint) == bundle.graph.checkpoint_sha256
