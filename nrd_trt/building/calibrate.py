"""Ranges of activations for int8 and fp8, measured on images: the verb that writes a file of ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from nrd_trt.calibration.cache import Ranges, save_ranges
from nrd_trt.calibration.ranges import measure_ranges, tensors_to_calibrate
from nrd_trt.calibration.recipes import find_recipe
from nrd_trt.calibration.stream import CalibrationStream
from nrd_trt.calibration.survey import warn_of
from nrd_trt.data.samples import SampleSource
from nrd_trt.errors import ConfigError, ExportError
from nrd_trt.exporting.export import export_checked
from nrd_trt.files import check_file
from nrd_trt.graph.metadata import load_checked, read_facts
from nrd_trt.model import load_model
from nrd_trt.progress import OnStage, silent
from nrd_trt.specs import (
    DEFAULT_IMAGES,
    DEFAULT_MEMORY_MB,
    DEFAULT_RECIPE,
    Estimator,
    Fit,
    InputShape,
    Resample,
    Size,
    Target,
    as_path,
    check_choice,
    check_number,
    optional_path,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model import CheckpointFields


@dataclass(frozen=True, kw_only=True)
class Calibration(Ranges):
    """Ranges that were measured, and where they were written.

    Attributes:
        path: The file of ranges; None where none was written.
    """

    path: Path | None


def calibrate(
    source: Path | str,
    data: Path | str,
    *,
    output: Path | str | None = None,
    recipe: Estimator = DEFAULT_RECIPE,
    images: int = DEFAULT_IMAGES,
    seed: int = 0,
    size: Size | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    labels: Path | str | None = None,
    ignore_index: int | None = None,
    memory_mb: float = DEFAULT_MEMORY_MB,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    target: Target = "gpu",
    force: bool = False,
    threads: int | None = None,
    progress: bool = True,
    on_stage: OnStage = silent,
    **options: Unpack[CheckpointFields],
) -> Calibration:
    """Measure the ranges of activations that int8 and fp8 need, on images like those of deployment.

    Args:
        source: A checkpoint, or an ONNX file of `nrd_trt.export` in fp32.
        data: A folder of images, or one with ``images/``, a video, or ``"synthetic"`` for drawn scenes.
        output: Where to write the file of ranges; None writes none.
        recipe: How ranges are estimated.
        images: At most this many, spread over the set.
        seed: Chooses among more images.
        size: ``(h, w)`` of a checkpoint's file, multiples of 32; None takes its own.
        fit: How images are brought to that size; None is ``"resize"``.
        resample: What scales them, see `nrd_trt.open_bundle`; None is ``"pillow"``.
        labels: Folder of index PNGs, paired with the images by name, whose classes are counted too; None takes
            ``data/labels`` where that exists.
        ignore_index: Label value that is not counted, besides 255; None takes the model's.
        memory_mb: What may be fetched at a time, beyond a plain session.
        include: Regular expressions; where there are any, only layers whose name matches one get ranges.
        exclude: Regular expressions; no layer whose name matches one gets ranges.
        target: What int8 files are made for with these ranges; those for ``"cpu"`` are those for ``"gpu"`` and more.
        force: Replace an existing file.
        threads: CPU threads of ONNX Runtime; None leaves the choice to it.
        progress: Show bars on stderr where something takes over two seconds.
        on_stage: Receives a line when a stage begins.
        **options: What a checkpoint does not tell, as for `nrd_trt.load_model`.

    Returns:
        The ranges, with the classes that the images show and what speaks against calibrating on them.

    Raises:
        ConfigError: An argument is not known or does not fit the source, or the file exists.
        ShapeError: The size is not a multiple of 32, or an image does not fit.
        CheckpointError: The checkpoint is unreadable or of another kind.
        ExportError: The ONNX file is damaged, or the checkpoint's differs from PyTorch.
        CalibrationError: There are not two different images, or an activation is not finite.

    Warns:
        UserWarning: What `Calibration.warnings` says: few or nearly equal images, or those of one drive; labels that
            cannot be counted; a class that was never predicted or labelled; a tensor that is zero everywhere.
    """
    source, data, path = as_path("source", source), as_path("data", data), optional_path("output", output)
    chosen = find_recipe(recipe, include=include, exclude=exclude)
    check_choice("fit", fit or "resize", Fit)
    check_choice("resample", resample or "pillow", Resample)
    check_choice("target", target, Target)
    check_number("images", images, low=1)
    check_number("seed", seed, low=0)
    check_number("memory_mb", memory_mb, low=1, whole=False)
    check_number("threads", threads, low=1)
    check_number("ignore_index", ignore_index, low=0)
    if path is not None:
        check_file(path, force=force, marks=[b'"format"', b'"tensors"'])
    model = _fp32_file(source, size, options, threads, on_stage)
    tensors = tensors_to_calibrate(model, chosen, target)
    on_stage(f"reading {data}")
    stream = CalibrationStream(
        data,
        read_facts(model),
        images=images,
        seed=seed,
        fit=fit or "resize",
        resample=resample or "pillow",
        labels=optional_path("labels", labels),
        ignore_index=ignore_index,
        progress=progress,
    )
    warn_of(stream.warnings)
    on_stage(f"calibrating {len(tensors)} tensors on {len(stream.names)} images, recipe {chosen.name}")
    ranges = measure_ranges(model, stream, tensors, chosen, memory_mb=memory_mb, threads=threads, progress=progress)
    if path is not None:
        save_ranges(ranges, path)
    return Calibration(**vars(ranges), path=path)


def _fp32_file(
    source: Path, size: Size | None, options: CheckpointFields, threads: int | None, on_stage: OnStage
) -> onnx.ModelProto:
    """Return the fp32 file to calibrate; a checkpoint is exported as `nrd_trt.export` does."""
    if not source.is_file():
        raise ConfigError(f"{source}: expected a checkpoint or an ONNX file, found none; check the path.")
    if source.suffix == ".onnx":
        if size is not None or options:
            raise ConfigError(
                f"{source}: size= and what describes a checkpoint are fixed in an ONNX file; leave them out, or give "
                "the checkpoint."
            )
        file = load_checked(source)
        if (precision := read_facts(file).precision) != "fp32":
            raise ConfigError(
                f"{source}: expected an fp32 file, got {precision}; ranges are measured in fp32, export one."
            )
        return file
    model = load_model(source, **options)
    shape = InputShape.of(size=size, default=model.info.size_hw)
    samples = SampleSource(data=None, labels=None, shape=shape, info=model.info)
    on_stage(f"exporting {model.config.encoder} to ONNX, fp32")
    exported = export_checked(model, source, samples, precision="fp32", threads=threads, progress=False)
    if not exported.parity.passed:
        raise ExportError(
            f"{source}: the exported file differs from PyTorch ({'; '.join(exported.parity.failures)}); its ranges "
            "would mean nothing. Report this model."
        )
    return exported.model
