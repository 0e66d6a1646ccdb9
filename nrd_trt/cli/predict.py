"""The verb ``predict``: masks and overlays of images."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common

if TYPE_CHECKING:
    from nrd_trt.runtime.predictor import Predictor


def predict_command(
    bundle: Annotated[Path, typer.Argument(metavar="NAME.nrd", help="The bundle.")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|DIR", help="An image or a folder of images.")],
    output_path: Annotated[Path, typer.Option("-o", metavar="DIR", help="Where to write the masks.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write the image with the mask over it.")] = False,
    opacity: Annotated[float, typer.Option("--opacity", min=0, max=1, help="Of the mask in the overlay.")] = 0.6,
    runner: common.Runner = "auto",
    force: common.Force = False,
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Write a palette PNG mask of every image, at the image's size."""
    from nrd_trt.data.folders import list_images
    from nrd_trt.runtime.predictor import Predictor

    images = list_images(source) if source.is_dir() else [source]
    targets = [output_path / f"{image.stem}.png" for image in images]
    _check_targets(targets, force=force)
    with Predictor(bundle, runner=runner, threads=threads) as predictor:
        files, latencies = [], []
        for image, target in zip(images, targets, strict=True):
            written, latency_ms = _predict_one(predictor, image, target, opacity if overlay else None)
            files += written
            latencies.append(latency_ms)
        name, arithmetic = predictor.runner_name, predictor.arithmetic
    latency = statistics.median(latencies)
    if as_json:
        common.print_json(
            {"files": [str(f) for f in files], "latency_ms": latency, "runner": name, "arithmetic": arithmetic}
        )
    else:
        typer.echo(
            f"{len(images)} masks in {output_path} (median {latency:.1f} ms per image, run by {name}, "
            f"{arithmetic} arithmetic)"
        )


def _predict_one(
    predictor: Predictor, image: Path, target: Path, opacity: float | None
) -> tuple[list[Path], float]:
    """Segment one file; return what was written and the latency in milliseconds, files excluded."""
    from nrd_trt.data.folders import read_image
    from nrd_trt.data.overlay import blend, write_mask, write_rgb

    rgb = read_image(image)
    start = time.perf_counter()
    mask = predictor.predict(rgb)
    latency_ms = (time.perf_counter() - start) * 1000
    write_mask(target, mask, predictor.info.palette)
    if opacity is None:
        return [target], latency_ms
    overlay = target.with_name(f"{target.stem}_overlay.png")
    write_rgb(overlay, blend(rgb, mask, predictor.info.palette, opacity))
    return [target, overlay], latency_ms


def _check_targets(targets: list[Path], *, force: bool) -> None:
    from nrd_trt.errors import ConfigError

    repeated = {path.name for path in targets if targets.count(path) > 1}
    if repeated:
        raise ConfigError(f"several images would write {sorted(repeated)[0]}; give them different names.")
    existing = [path for path in targets if path.exists()]
    if existing and not force:
        raise ConfigError(f"{existing[0]}: already exists; give --force to replace it or choose another folder.")
    targets[0].parent.mkdir(parents=True, exist_ok=True)
