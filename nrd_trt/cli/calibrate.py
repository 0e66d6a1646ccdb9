"""The verb ``calibrate``: ranges of activations for int8, measured on images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nrd_trt.cli import common
from nrd_trt.errors import ConfigError, ExportError
from nrd_trt.specs import DEFAULT_IMAGES, DEFAULT_MEMORY_MB, DEFAULT_RECIPE

if TYPE_CHECKING:
    import onnx

    from nrd_trt.model.recognise import CheckpointOptions


def calibrate_command(
    source: Annotated[Path, typer.Argument(metavar="CKPT|m.onnx", help="A checkpoint, or a file exported in fp32.")],
    data: Annotated[
        str, typer.Option("--data", metavar="DIR", help="Images, a folder with images/, a video, or 'synthetic'.")
    ],
    output_path: Annotated[Path, typer.Option("-o", metavar="ranges.json", help="Where to write the ranges.")],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="minmax, percentile, entropy or mse.")
    ] = DEFAULT_RECIPE,
    memory_mb: Annotated[
        float, typer.Option("--memory-mb", min=1, help="What may be fetched at a time, beyond a plain session.")
    ] = DEFAULT_MEMORY_MB,
    images: Annotated[
        int, typer.Option("--images", min=1, metavar="N", help="Use at most this many images.")
    ] = DEFAULT_IMAGES,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the choice of images.")] = 0,
    size: common.Size = None,
    fit: common.FitOption = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="REGEX", help="Only layers whose name matches; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="REGEX", help="No layer that matches; may be repeated.")
    ] = None,
    num_classes: common.NumClasses = None,
    hidden: common.Hidden = None,
    patch: common.Patch = None,
    dilations: common.Dilations = None,
    output_stride: common.OutputStride = None,
    classes: common.Classes = None,
    mean: common.Mean = None,
    std: common.Std = None,
    bgr: common.Bgr = False,
    force: common.Force = False,
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Measure the ranges of activations that int8 needs, on images like those of deployment."""
    from dataclasses import replace

    from nrd_trt.calibration.cache import save_ranges
    from nrd_trt.calibration.ranges import calibrate
    from nrd_trt.calibration.recipes import find_recipe
    from nrd_trt.calibration.selection import tensors_to_calibrate
    from nrd_trt.calibration.stream import CalibrationStream
    from nrd_trt.files import check_absent
    from nrd_trt.graph.metadata import read_facts

    chosen = replace(find_recipe(recipe), include=tuple(include or ()), exclude=tuple(exclude or ()))
    check_absent(output_path, force=force)
    options = common.CheckpointFacts(
        num_classes=num_classes,
        hidden=hidden,
        patch=patch,
        dilations=dilations,
        output_stride=output_stride,
        classes=classes,
        mean=mean,
        std=std,
        bgr=bgr,
    ).options()
    stages = common.Stages(quiet=quiet)
    model = _model(source, size, options, threads, stages)
    tensors = tensors_to_calibrate(model, chosen)
    stages(f"reading {data}")
    stream = CalibrationStream(
        data, read_facts(model), images=images, seed=seed, fit=common.fit_choice(fit) or "resize", progress=not quiet
    )
    stages(f"calibrating {len(tensors)} tensors on {len(stream.names)} images, recipe {chosen.name}")
    ranges = calibrate(model, stream, tensors, chosen, memory_mb=memory_mb, threads=threads, progress=not quiet)
    stages.end()
    save_ranges(ranges, output_path)
    if as_json:
        common.print_json({"path": str(output_path), **ranges.to_dict()})
    else:
        typer.echo("\n".join(_table(output_path, ranges.to_dict())))


def _model(
    source: Path, size: str | None, options: CheckpointOptions | None, threads: int | None, stages: common.Stages
) -> onnx.ModelProto:
    """Return the fp32 file to calibrate; a checkpoint is exported as `export` does."""
    if not source.is_file():
        raise ConfigError(f"{source}: expected a checkpoint or an ONNX file, found none; check the path.")
    if source.suffix != ".onnx":
        return _exported(source, size, options, threads, stages)
    if size is not None or options is not None:
        raise ConfigError(
            f"{source}: --size and the facts of a checkpoint are fixed in an ONNX file; leave them out, or give the "
            "checkpoint."
        )
    import onnx

    from nrd_trt.graph.metadata import read_facts

    try:
        model = onnx.load(source)
    except Exception as exc:  # protobuf's and onnx's errors have no common base
        raise ExportError(f"{source}: not a valid ONNX file ({exc}); export it again with `nrd-trt export`.") from exc
    precision = read_facts(model).precision
    if precision != "fp32":
        raise ConfigError(f"{source}: expected an fp32 file, got {precision}; ranges are measured in fp32, export one.")
    return model


def _exported(
    source: Path, size: str | None, options: CheckpointOptions | None, threads: int | None, stages: common.Stages
) -> onnx.ModelProto:
    from nrd_trt.model import load_trained
    from nrd_trt.pipeline.request import BuildRequest, FormRequest, samples_for
    from nrd_trt.pipeline.sources import export_checkpoint

    model = load_trained(source, options)
    request = BuildRequest(source=source, output=source, form=FormRequest(size=size), threads=threads)
    samples = samples_for(request, request.form.shape(model.info.size_hw), model.info)
    stages(f"exporting {model.config.encoder} to ONNX, fp32")
    exported = export_checkpoint(request, model, samples, "fp32")
    if not exported.parity.passed:
        raise ExportError(
            f"{source}: the exported file differs from PyTorch ({'; '.join(exported.parity.failures)}); its ranges "
            "would mean nothing. Report this model."
        )
    return exported.model


def _table(path: Path, result: dict[str, Any]) -> list[str]:
    lines = [f"{path}: ranges of {len(result['tensors'])} tensors from {result['images']} images"]
    coverage = result["coverage"]
    if coverage is None:
        return lines
    lines.append("classes by the model's own prediction: share of the pixels, images that show them")
    return lines + [
        f"  {name:<24} {common.fraction(share)}  {coverage['images'][name]}"
        for name, share in coverage["pixel_share"].items()
    ]
