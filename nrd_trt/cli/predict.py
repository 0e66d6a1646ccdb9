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
    from nrd_trt.runtime.viewing import Viewer


_KINDS = ("", "_overlay", "_confidence", "_confidence_overlay")
"""What the names of the files that are made of an image end with."""


def predict_command(
    *,
    bundle: Annotated[Path, typer.Argument(metavar="NAME.nrd", help="The bundle.")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|DIR", help="An image or a folder of images.")],
    output_path: Annotated[Path, typer.Option("-o", metavar="DIR", help="Where to write the masks.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write the image with the mask over it.")] = False,
    confidence: Annotated[
        bool,
        typer.Option("--confidence", help="Also write how sure the network is, in grey; with --overlay both ways."),
    ] = False,
    views: groups.ViewOptions,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of the mask in the overlay.")] = 0.6,
    run: groups.BundleOptions,
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Write a palette PNG mask of every image, at the image's size."""
    from nrd_trt.data.folders import list_images
    from nrd_trt.data.views import Viewing
    from nrd_trt.runtime.engine import open_bundle
    from nrd_trt.runtime.graph_io import check_confidence
    from nrd_trt.runtime.viewing import Viewer

    viewing = Viewing.of(views.given())
    images = list_images(source) if source.is_dir() else [source]
    kinds = [kind for kind in _KINDS if (overlay or "overlay" not in kind) and (confidence or "confidence" not in kind)]
    targets = [{kind: output_path / f"{image.stem}{kind}.png" for kind in kinds} for image in images]
    _check_targets(images, targets, force=force)
    with open_bundle(bundle, **run.given()) as engine:
        if confidence:
            check_confidence(engine.graph, "confidence=True")
        viewer = Viewer(engine, viewing)
        files, latencies = list[Path](), list[float]()
        for image, target in zip(images, targets, strict=True):
            latencies.append(_predict_one(viewer, image, target, opacity))
            files += target.values()
        name, arithmetic, plan_ran = engine.runner_name, engine.arithmetic, engine.plan_ran
    latency, seams = statistics.median(latencies), viewer.seams.agreement
    warnings = list(viewer.warnings)
    if out.as_json:
        common.print_json(
            {
                "files": [str(f) for f in files],
                "latency_ms": latency,
                "runner": name,
                "arithmetic": arithmetic,
                "plan_ran": plan_ran,
                "seam_agreement": seams,
                "warnings": warnings,
            }
        )
    else:
        common.say(
            *common.headline(warnings),
            f"{len(images)} masks in {output_path} (median {latency:.1f} ms per image, "
            f"run by {common.run_by(name, arithmetic, plan_ran)})",
            *([] if seams is None else [f"{common.fraction(seams)} of the pixels alike where windows overlap"]),
        )


def _predict_one(viewer: Viewer, image: Path, targets: dict[str, Path], opacity: float) -> float:
    """Segment one file and write its targets; return the latency in milliseconds, files excluded."""
    from nrd_trt.data.images import read_image
    from nrd_trt.data.overlay import CONFIDENCE_PALETTE, blend, write_mask, write_rgb

    rgb = read_image(image)
    start = time.perf_counter()
    drawn = viewer.segment(rgb)
    latency_ms = (time.perf_counter() - start) * 1000
    targets[""].parent.mkdir(parents=True, exist_ok=True)
    write_mask(targets[""], drawn.mask, viewer.info.palette)
    if (path := targets.get("_overlay")) is not None:
        write_rgb(path, blend(rgb, drawn.mask, viewer.info.palette, opacity))
    if drawn.confidence is not None and (path := targets.get("_confidence")) is not None:
        write_rgb(path, drawn.confidence)
    if drawn.confidence is not None and (path := targets.get("_confidence_overlay")) is not None:
        write_rgb(path, blend(rgb, drawn.confidence, CONFIDENCE_PALETTE, opacity))
    return latency_ms


def _check_targets(images: list[Path], targets: list[dict[str, Path]], *, force: bool) -> None:
    from nrd_trt.errors import ConfigError
    from nrd_trt.files import INDEX_PNG, PNG, check_file, check_folder

    written = [(kind, path) for paths in targets for kind, path in paths.items()]
    for folder in {path.parent for _, path in written}:
        check_folder(folder)
    repeated = sorted(path.name for path, count in Counter(path for _, path in written).items() if count > 1)
    if repeated:
        raise ConfigError(f"several images would write {repeated[0]}; give them different names.")
    sources = {image.resolve() for image in images}
    if taken := [path for _, path in written if path.resolve() in sources]:
        raise ConfigError(f"{taken[0]}: would replace an image that is read; choose another folder.")
    for kind, path in written:
        if path.exists() or path.is_symlink():
            check_file(path, force=force, marks=[PNG] if kind else INDEX_PNG)
