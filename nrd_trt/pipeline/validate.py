"""Engine against reference: the comparison, its gates and the record of both."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nrd_trt.engine.bundle import Bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.pipeline.references import Draw, stored_samples, torch_reference
from nrd_trt.pipeline.samples import SampleSource
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.mask_runner import MaskRunner
from nrd_trt.runtime.select import make_runner
from nrd_trt.specs import Fit
from nrd_trt.validate.compare import Comparison, Sample, compare
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
        lines = self.gates.failures(
            agreement=self.comparison.pixel_agreement, miou_drop=self.comparison.miou_drop
        )
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
            **asdict(self.comparison), **rest, "gates": asdict(self.gates),
            "failures": self.failures, "passed": self.passed,
        }  # fmt: skip


def compare_with_progress(
    samples: Iterable[Sample], count: int, draw: Draw, runner: BaseRunner, graph: GraphFacts, *, progress: bool
) -> Comparison:
    """Compare over samples with a bar on stderr where it takes longer than two seconds."""
    with runner:
        bar: Iterator[Sample] = tqdm(
            samples, total=count, desc="validating", unit="image", delay=2, file=sys.stderr, disable=not progress,
            leave=False,
        )  # fmt: skip
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
    threads: int | None = None
    progress: bool = True


def validate_bundle(request: ValidateRequest) -> Validation:
    """Compare a bundle's engine with its checkpoint, or with the masks that it stores.

    Raises:
        BundleError: The bundle is damaged.
        ConfigError: Options exclude each other.
        CheckpointError: The checkpoint is unreadable or of another kind.
    """
    bundle = read_bundle(request.bundle)
    gates = Gates.of(bundle.graph.precision, request.min_agreement, request.max_miou_drop)
    runner = make_runner(bundle, request.runner, threads=request.threads)
    with ExitStack() as stack:
        if request.checkpoint is None:
            if request.data is not None:
                raise ConfigError(
                    "--data needs --checkpoint: a bundle alone knows the masks of its stored inputs only."
                )
            references = bundle.references()
            stored, draw = stored_samples(references)
            samples: Iterable[Sample] = stored
            count, name, reference, matches = len(stored), "stored inputs", "stored", None
        else:
            source = _source(bundle, request)
            draw, matches = _checkpoint_reference(stack, bundle, request.checkpoint)
            samples, count, name, reference = source, len(source), source.name, "torch"
        comparison = compare_with_progress(samples, count, draw, runner, bundle.graph, progress=request.progress)
    return Validation(
        comparison=comparison, gates=gates, runner=runner.name, arithmetic=runner.arithmetic, reference=reference,
        samples=name, checkpoint_matches=matches,
    )  # fmt: skip


def _source(bundle: Bundle, request: ValidateRequest) -> SampleSource:
    return SampleSource(
        data=request.data, labels=request.labels, shape=bundle.graph.shape, info=bundle.graph.info,
        fit=request.fit or bundle.facts["fit"], ignore_index=request.ignore_index,
    )  # fmt: skip


def _checkpoint_reference(stack: ExitStack, bundle: Bundle, checkpoint: Path) -> tuple[Draw, bool]:
    """Return the checkpoint as a reference, and whether it is the one that the bundle was built from."""
    from nrd_trt.model.checkpoint import load_model  # the only part of validation that needs PyTorch

    model = load_model(checkpoint)
    if model.config.num_classes != bundle.graph.decode.num_classes:
        raise ConfigError(
            f"{checkpoint}: expected {bundle.graph.decode.num_classes} classes as in the bundle, "
            f"got {model.config.num_classes}; this is the checkpoint of another model."
        )
    draw = stack.enter_context(torch_reference(model))
    return draw, sha256_file(checkpoint) == bundle.graph.checkpoint_sha256
