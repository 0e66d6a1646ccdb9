"""A network's masks against labels: a checkpoint in PyTorch, a bundle in the runner that this machine has for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nrd_trt.data.folders import list_pairs
from nrd_trt.engine.bundle import is_bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.model import load_trained
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.mask_runner import MaskRunner
from nrd_trt.runtime.select import RUNNERS, make_runner
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import Fit, InputShape, ModelInfo, check_size
from nrd_trt.validation.masks import confusion_matrix, mean_iou, named_iou, pixel_agreement
from nrd_trt.validation.samples import SampleSource

if TYPE_CHECKING:
    from nrd_trt.model.recognise import CheckpointOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What `nrd-trt evaluate` is asked for.

    Attributes:
        target: A checkpoint (run by eager PyTorch, fp32) or a bundle (run by `runner`).
        data: Folder of images (see `nrd_trt.data.folders`).
        labels: Folder of labels; None takes ``data/labels``.
        ignore_index: Overrides the model's.
        fit: How images are brought to the network's size; default: the bundle's, for checkpoints ``"resize"``.
        size_hw: Size that a checkpoint runs at; its own when None.
        checkpoint_options: What the user says about a checkpoint.
        runner: For bundles; see `nrd_trt.runtime.select.make_runner`.
        plugin: For bundles; likewise.
        threads: CPU threads; None leaves the choice to the backend.
        progress: Show a bar on stderr where it takes over two seconds.
    """

    target: Path
    data: Path
    labels: Path | None = None
    ignore_index: int | None = None
    fit: Fit | None = None
    size_hw: tuple[int, int] | None = None
    checkpoint_options: CheckpointOptions | None = None
    runner: str = "auto"
    plugin: Path | None = None
    threads: int | None = None
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures over a data set, fractions in 0-1; None where no pixel was counted.

    Attributes:
        miou: Mean over the classes that masks or labels show.
        per_class_iou: By class name; None for classes that neither shows.
        pixel_accuracy: Share of the labelled pixels with the right class.
        images: Number of images.
        runner: Backend that drew the masks.
        arithmetic: ``"native"`` or ``"simulated"``.
        plan_run: Whether a bundle's plan itself ran; None where there is no plan.
    """

    miou: float | None
    per_class_iou: dict[str, float | None]
    pixel_accuracy: float | None
    images: int
    runner: str
    arithmetic: str
    plan_run: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is evaluated; `draw` needs the runner entered."""

    runner: BaseRunner
    draw: Callable[[np.ndarray], np.ndarray]
    shape: InputShape
    info: ModelInfo
    fit: Fit
    plan_run: bool | None = None


def evaluate(request: EvaluateRequest) -> Evaluation:
    """Hold a network's masks against labels, at the size of each image; one confusion matrix over the data set.

    Raises:
        ConfigError: There are no labels, a label has a value out of range, or options do not fit the target.
        ShapeError: A label has another size than its image, or the size is not a multiple of 32.
        CheckpointError: The checkpoint is unreadable or of another kind.
        BundleError: The bundle is damaged.
        RunnerError: The runner asked for cannot run the bundle here.
    """
    list_pairs(request.data, request.labels)  # labels are a must here, unlike in `SampleSource`
    subject = _subject(request)
    samples = SampleSource(
        data=request.data,
        labels=request.labels,
        shape=subject.shape,
        info=subject.info,
        fit=request.fit or subject.fit,
        ignore_index=request.ignore_index,
    )
    matrix = _count(samples, subject, progress=request.progress)
    return Evaluation(
        miou=mean_iou(matrix),
        per_class_iou=named_iou(matrix, subject.info.class_names),
        pixel_accuracy=pixel_agreement(matrix),
        images=len(samples),
        runner=subject.runner.name,
        arithmetic=subject.runner.arithmetic,
        plan_run=subject.plan_run,
    )


def _subject(request: EvaluateRequest) -> _Subject:
    if request.runner not in RUNNERS:
        raise ConfigError(f"--runner {request.runner!r}: expected one of {', '.join(RUNNERS)}.")
    if is_bundle(request.target) or request.target.suffix == ".nrd":
        return _bundle(request)
    return _checkpoint(request)


def _bundle(request: EvaluateRequest) -> _Subject:
    if request.size_hw is not None or request.checkpoint_options is not None:
        raise ConfigError(
            f"{request.target}: --size, --output-stride and --dilations are for checkpoints, in a bundle they are "
            "fixed; leave them out, or give the checkpoint."
        )
    bundle = read_bundle(request.target)
    runner = make_runner(bundle, request.runner, threads=request.threads, plugin=request.plugin)
    return _Subject(
        runner=runner,
        draw=MaskRunner(runner, bundle.graph),
        shape=bundle.graph.shape,
        info=bundle.graph.info,
        fit=bundle.facts["fit"],
        plan_run=isinstance(runner, TrtRunner) if bundle.plan_path is not None else None,
    )


def _checkpoint(request: EvaluateRequest) -> _Subject:
    """Eager PyTorch; evaluating a bundle needs none."""
    if request.plugin is not None:
        raise ConfigError(f"--plugin: {request.target} is a checkpoint, which needs none; leave the option out.")
    if request.runner not in ("auto", "torch"):
        raise ConfigError(
            f"--runner {request.runner}: a checkpoint runs in PyTorch; build a bundle first: "
            f"nrd-trt build {request.target} -o NAME.nrd"
        )
    model = load_trained(request.target, request.checkpoint_options)
    size_hw = request.size_hw or model.info.size_hw
    check_size(size_hw, what="size=")
    from nrd_trt.runtime.torch_runner import TorchRunner  # after `load_trained`, which tells of a missing PyTorch

    runner = TorchRunner(model, threads=request.threads)
    return _Subject(
        runner=runner,
        draw=lambda image: runner.infer({"image": image[None]})["mask"][0],
        shape=InputShape.static(size_hw),
        info=model.info,
        fit="resize",
    )


def _count(samples: SampleSource, subject: _Subject, *, progress: bool) -> np.ndarray:
    """Return the confusion matrix over all samples, with a bar on stderr where it takes longer than two seconds."""
    classes = len(subject.info.class_names)
    matrix = np.zeros((classes, classes), np.int64)
    bar = tqdm(samples, desc="evaluating", unit="image", delay=2, file=sys.stderr, disable=not progress, leave=False)
    with subject.runner:
        for sample in bar:
            if sample.label is not None:
                matrix += confusion_matrix(sample.label, sample.restore(subject.draw(sample.image)), classes)
    return matrix
