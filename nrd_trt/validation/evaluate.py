"""Masks against labels: of a checkpoint, a bundle or an ONNX file, in the runner that this machine has for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nrd_trt.data.folders import list_pairs, read_label
from nrd_trt.data.images import read_image
from nrd_trt.data.views import ViewFields, Viewing
from nrd_trt.engine.bundle import RECORD_FILE
from nrd_trt.errors import ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.model import checkpoint_options
from nrd_trt.progress import bar
from nrd_trt.runtime.blending import Seams
from nrd_trt.runtime.engine import Engine, open_engine
from nrd_trt.runtime.select import RunOptions
from nrd_trt.runtime.viewing import Viewer
from nrd_trt.specs import Fit, ProtocolName, Provider, Resample, RunnerName, Size, optional_path
from nrd_trt.validation.image_log import ImageLog, ImageResult, Terms, open_log
from nrd_trt.validation.metrics import chance_miou, confusion_matrix, mean_iou, named_iou, pixel_agreement
from nrd_trt.validation.triviality import trivial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from nrd_trt.model import CheckpointFields


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures over a data set, fractions in 0-1; None where no pixel was counted.

    Attributes:
        miou: Mean over the classes that masks or labels show.
        per_class_iou: IoU by class name; None for classes that neither shows.
        pixel_accuracy: Share of the labelled pixels with the right class.
        images: Number of images.
        runner: Backend that drew the masks.
        arithmetic: ``"native"``, ``"simulated"`` or ``"tf32"``.
        plan_ran: Whether a bundle's plan itself ran; None where there is no plan.
        viewing: How images were looked at.
        averaged: Whether masks were drawn from averaged logits at the image's size, else the engine's were enlarged.
        seam_agreement: Share of pixels shown by several windows to which one alone gives the class of all; None where
            none overlap.
        warnings: Signs that the network draws nothing, or draws at random.
    """

    miou: float | None
    per_class_iou: dict[str, float | None]
    pixel_accuracy: float | None
    images: int
    runner: str
    arithmetic: str
    plan_ran: bool | None
    viewing: Viewing
    averaged: bool
    seam_agreement: float | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def evaluate(
    source: Path | str,
    data: Path | str,
    *,
    labels: Path | str | None = None,
    ignore_index: int | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    size: tuple[int, int] | None = None,
    protocol: ProtocolName | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: Size | None = None,
    stride: Size | None = None,
    runner: RunnerName = "auto",
    plugin: Path | str | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    verify_key: Path | str | None = None,
    record: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Unpack[CheckpointFields],
) -> Evaluation:
    """Compare masks with labels, at the size of each image; one confusion matrix over the data set.

    Args:
        source: A checkpoint (run by PyTorch in fp32), a bundle or an ONNX file.
        data: Folder of images, or one with ``images/`` and ``labels/``.
        labels: Folder of index PNGs, paired with the images by name; None takes ``data/labels``.
        ignore_index: Label value that is not counted, besides 255; None takes the model's.
        fit: How images are brought to the network's size; None takes the bundle's way, else ``"resize"``.
        resample: What scales them, see `nrd_trt.open_bundle`; None takes the bundle's way, else ``"pillow"``.
        size: ``(h, w)`` that a checkpoint runs at, multiples of 32; None takes its own.
        protocol: How images are looked at, see `nrd_trt.data.views.Viewing`; None takes ``"slide"`` where `tile` is
            given, else ``"whole"``.
        scales: Factors of the size, in rising order; logits are averaged over them.
        flip: Also run mirrored images.
        tile: ``(h, w)`` of the window of ``"slide"``, multiples of 32; None takes the network's size.
        stride: ``(h, w)`` by which the window moves; None takes two thirds of it.
        runner: For bundles; see `nrd_trt.open_bundle`.
        plugin: For bundles; see `nrd_trt.open_bundle`.
        threads: CPU threads; None leaves the choice to the backend.
        cuda: For bundles; see `nrd_trt.open_bundle`.
        cuda_graph: For bundles; see `nrd_trt.open_bundle`.
        device: For bundles; see `nrd_trt.open_bundle`.
        verify_key: For bundles; see `nrd_trt.open_bundle`.
        record: File that the figures of each image are added to as a line of JSON, see
            `nrd_trt.validation.image_log.ImageResult`; None writes none.
        resume: Go on with `record` where it exists: images that are in it are not run again.
        progress: Show a bar on stderr where it takes over two seconds.
        **options: What the file of a checkpoint does not tell, as for `nrd_trt.load_model`.

    Raises:
        ConfigError: There are no labels, a label has a value out of range, or an argument does not fit the source.
        ShapeError: A label has another size than its image, or the size is not a multiple of 32.
        CheckpointError: The checkpoint is unreadable or of another kind.
        BundleError: The bundle is damaged.
        RunnerError: The runner asked for cannot run the bundle here.
    """
    viewing = _viewing(protocol, scales, flip, tile, stride)
    _check_scaling(viewing, fit, resample)
    if resume and record is None:
        raise ConfigError("resume=True: expected record=FILE, the file to go on with.")
    pairs = list_pairs(Path(data), optional_path("labels", labels))
    plugin = optional_path("plugin", plugin)
    run = RunOptions(
        runner=runner, plugin=plugin, threads=threads, cuda=cuda, cuda_graph=cuda_graph, device=device, faithful=True
    )
    engine = open_engine(
        source,
        run,
        fit=fit,
        resample=resample,
        size=size,
        options=checkpoint_options(options),
        verify_key=optional_path("verify_key", verify_key),
    )
    terms = Terms(
        source_sha256=_hash_of(Path(source)),
        images=str(pairs[0][0].parent.resolve()),
        labels=str(pairs[0][1].parent.resolve()),
        ignore_index=engine.info.ignore_index if ignore_index is None else ignore_index,
        runner=engine.runner_name,
        size=f"{engine.graph.image_range} {engine.fit} {engine.resample}",
        viewing=viewing,
        options=str(checkpoint_options(options)),
    )
    viewer = Viewer(engine, viewing)
    with engine, open_log(optional_path("record", record), terms, len(engine.info.class_names), resume=resume) as log:
        _run(viewer, pairs, log, terms.ignore_index, progress=progress)
        return _summed(engine, viewer, [log.done[image.name] for image, _ in pairs])


def _run(
    viewer: Viewer, pairs: Sequence[tuple[Path, Path]], log: ImageLog, ignore_index: int | None, *, progress: bool
) -> None:
    """Add the images that the log does not have yet."""
    classes = len(viewer.info.class_names)
    left = [(image, label) for image, label in pairs if image.name not in log.done]
    done = len(pairs) - len(left)
    for image, label in bar(left, desc="evaluating", unit="image", show=progress, total=len(pairs), done=done):
        rgb = read_image(image)
        wanted = read_label(label, num_classes=classes, ignore_index=ignore_index, image_hw=rgb.shape[:2])
        viewer.seams = Seams()
        matrix = confusion_matrix(wanted, viewer.segment(rgb).mask, classes)
        log.add(ImageResult.of(image.name, matrix, (viewer.seams.pixels, viewer.seams.equal)))


def _summed(engine: Engine, viewer: Viewer, results: Sequence[ImageResult]) -> Evaluation:
    info, classes = engine.info, len(engine.info.class_names)
    matrix = np.zeros((classes, classes), np.int64)
    for result in results:
        matrix += result.matrix(classes)
    viewer.seams = Seams(
        pixels=sum(result.seams[0] for result in results), equal=sum(result.seams[1] for result in results)
    )
    drawn = dict(zip(info.class_names, matrix.sum(0).tolist(), strict=True))
    return Evaluation(
        miou=mean_iou(matrix),
        per_class_iou=named_iou(matrix, info.class_names),
        pixel_accuracy=pixel_agreement(matrix),
        images=len(results),
        runner=engine.runner_name,
        arithmetic=engine.arithmetic,
        plan_ran=engine.plan_ran,
        viewing=viewer.viewing,
        averaged=viewer.has_logits,
        seam_agreement=viewer.seams.agreement,
        warnings=(*trivial(drawn, miou=mean_iou(matrix), chance=chance_miou(matrix)), *viewer.warnings),
    )


def _hash_of(source: Path) -> str:
    return sha256_file(source / RECORD_FILE if source.is_dir() else source)


def _check_scaling(viewing: Viewing, fit: Fit | None, resample: Resample | None) -> None:
    """Refuse what a protocol would pass over."""
    if fit is not None and viewing.protocol != "whole":
        raise ConfigError(
            f"fit={fit!r}: only protocol='whole' fits images, {viewing.protocol!r} does not; leave it out."
        )
    if resample == "pillow" and viewing.is_preset:
        raise ConfigError(
            f"resample='pillow': protocol={viewing.protocol!r} is the released pipeline, which scales as OpenCV does; "
            "leave it out."
        )


def _viewing(
    protocol: ProtocolName | None, scales: Sequence[float], flip: bool, tile: Size | None, stride: Size | None
) -> Viewing:
    fields: ViewFields = {"scales": scales, "flip": flip, "tile": tile, "stride": stride}
    return Viewing.of(fields if protocol is None else {**fields, "protocol": protocol})
