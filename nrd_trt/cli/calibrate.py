"""The verb ``calibrate``: ranges of activations for int8, measured on images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nrd_trt.cli import common, groups, quantization
from nrd_trt.cli.parse import parse_size
from nrd_trt.errors import ConfigError, ExportError
from nrd_trt.specs import DEFAULT_MEMORY_MB

if TYPE_CHECKING:
    import onnx

    from nrd_trt.model.recognise import CheckpointOptions


def calibrate_command(
    *,
    source: Annotated[Path, typer.Argument(metavar="CKPT|m.onnx", help="A checkpoint, or a file exported in fp32.")],
    data: Annotated[
        str, typer.Option("--data", metavar="DIR", help="Images, a folder with images/, a video, or 'synthetic'.")
    ],
    output_path: Annotated[Path, typer.Option("-o", metavar="ranges.json", help="Where to write the ranges.")],
    options: quantization.RangeOptions,
    size: common.Size = None,
    fit: common.FitOption = None,
    facts: groups.CheckpointFacts,
    force: common.Force = False,
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Measure the ranges of activations that int8 needs, on images like those of deployment."""
    from nrd_trt.calibration.cache import save_ranges
    from nrd_trt.calibration.ranges import calibrate
    from nrd_trt.calibration.selection import tensors_to_calibrate
    from nrd_trt.files import check_absent
    from nrd_trt.graph.metadata import read_facts

    recipe = options.chosen_recipe()
    check_absent(output_path, force=force)
    stages = common.Stages(quiet=quiet)
    model = _model(source, size, facts.options(), threads, stages)
    tensors = tensors_to_calibrate(model, recipe)
    stages(f"reading {data}")
    stream = options.stream(data, read_facts(model), fit=fit, progress=not quiet)
    stages(f"calibrating {len(tensors)} tensors on {len(stream.names)} images, recipe {recipe.name}")
    memory_mb = options.memory_mb or DEFAULT_MEMORY_MB
    ranges = calibrate(model, stream, tensors, recipe, memory_mb=memory_mb, threads=threads, progress=not quiet)
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
    from nrd_trt.building.request import BuildRequest, FormRequest, samples_for
    from nrd_trt.building.sources import export_checkpoint
    from nrd_trt.model import load_trained

    model = load_trained(source, options)
    form = FormRequest(size=parse_size(size) if size else None)
    request = BuildRequest(source=source, output=source, form=form, threads=threads)
    samples = samples_for(request, form.shape(model.info.size_hw), model.info)
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
