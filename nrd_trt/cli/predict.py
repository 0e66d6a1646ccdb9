"""The verb ``predict``: masks and overlays of images."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups

if TYPE_CHECKING:
    from nrd_trt.runtime.engine import Engine


def predict_command(
    *,
    bundle: Annotated[Path, typer.Argument(metavar="NAME.nrd", help="The bundle.")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|DIR", help="An image or a folder of images.")],
    output_path: Annotated[Path, typer.Option("-o", metavar="DIR", help="Where to write the masks.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write the image with the mask over it.")] = False,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of the mask in the overlay.")] = 0.6,
    run: groups.BundleOptions,
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Write a palette PNG mask of every image, at the image's size."""
    from nrd_trt.data.folders import list_images
    from nrd_trt.runtime.engine import open_bundle

    images = list_images(source) if source.is_dir() else [source]
    suffixes = ("", "_overlay")[: 1 + overlay]
    targets = [[output_path / f"{image.stem}{suffix}.png" for suffix in suffixes] for image in images]
    _check_targets(images, [path for paths in targets for path in paths], force=force)
    with open_bundle(bundle, **run.given()) as engine:
        files, latencies = [], []
        for image, target in zip(images, targets, strict=True):
            latencies.append(_predict_one(engine, image, target, opacity))
            files += target
        name, arithmetic, plan_ran = engine.runner_name, engine.arithmetic, engine.plan_ran
    latency = statistics.median(latencies)
    if out.as_json:
        common.print_json(
            {
                "files": [str(f) for f in files],
                "latency_ms": latency,
                "runner": name,
                "arithmetic": arithmetic,
                "plan_ran": plan_ran,
            }
        )
    else:
        common.say(
            f"{len(images)} masks in {output_path} (median {latency:.1f} ms per image, "
            f"run by {common.run_by(name, arithmetic, plan_ran)})"
        )


def _predict_one(engine: Engine, image: Path, targets: list[Path], opacity: float) -> float:
    """Segment one file and write its targets; return the latency in milliseconds, files excluded."""
    from nrd_trt.data.images import read_image
    from nrd_trt.data.overlay import blend, write_mask, write_rgb

    rgb = read_image(image)
    start = time.perf_counter()
    mask = engine.predict(rgb)
    latency_ms = (time.perf_counter() - start) * 1000
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    write_mask(targets[0], mask, engine.info.palette)
    for overlay in targets[1:]:
        write_rgb(overlay, blend(rgb, mask, engine.info.palette, opacity))
    return latency_ms


def _check_targets(images: list[Path], targets: list[Path], *, force: bool) -> None:
    from nrd_trt.errors import ConfigError
    from nrd_trt.files import INDEX_PNG, PNG, check_file, check_folder

    for folder in {path.parent for path in targets}:
        check_folder(folder)
    repeated = sorted(path.name for path, count in Counter(targets).items() if count > 1)
    if repeated:
        raise ConfigError(f"several images would write {repeated[0]}; give them different names.")
    sources = {image.resolve() for image in images}
    if taken := [path for path in targets if path.resolve() in sources]:
        raise ConfigError(f"{taken[0]}: would replace an image that is read; choose another folder.")
    for path in targets:
        if path.exists() or path.is_symlink():
            check_file(path, force=force, marks=[PNG] if path.stem.endswith("_overlay") else INDEX_PNG)
