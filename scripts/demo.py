"""The main job from end to end: zoo checkpoint -> validated fp16 bundle -> overlay, clip and report in ``build/demo``.

Runs on procedural street scenes, and on CamVid frames too where ``NRD_TRT_CAMVID`` names their folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nrd_trt import build, open_bundle
from nrd_trt.data.classes import CAMVID_PALETTE
from nrd_trt.data.folders import list_pairs
from nrd_trt.data.images import read_image
from nrd_trt.data.overlay import write_mask, write_rgb
from nrd_trt.data.synthetic import Scene, street_clip, street_scene
from nrd_trt.runtime.engine import Engine
from nrd_trt.validation.validate import validate
from nrd_trt.video.overlay import OverlayStyle, Painter
from nrd_trt.video.segment_video import segment_video
from nrd_trt.zoo import checkpoint_path

FOLDER = Path("build/demo")
CHECKPOINT = "nrd_mobilenetv2_camvid"
SCENE_SEEDS = range(8)
SCENE_HW = (360, 480)
SHOWN = 3
CLIP_SEED = 4
CLIP_FRAMES = 30
CLIP_FPS = 15
CAMVID_STEP = 5


def main() -> int:
    """Run the demo; return 0 when every gate holds, else 1."""
    start = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    source = checkpoint_path(CHECKPOINT)
    scenes = write_scenes(FOLDER / "scenes", (street_scene(seed, SCENE_HW) for seed in SCENE_SEEDS))
    bundle = build(
        source,
        FOLDER / "demo.nrd",
        precision="fp16",
        size=(352, 480),
        data=scenes,
        on_stage=lambda text: print(text, file=sys.stderr),
    )
    record = bundle.to_dict()
    report = {
        "bundle": str(bundle.path),
        **{name: record[name] for name in ("builder", "files", "passed", "validation")},
        "camvid_validation": validate_on_camvid(bundle.path, source),
        "video": write_clip(bundle.path),
    }
    with open_bundle(bundle.path) as engine:
        pictures = [read_image(path) for path in sorted((scenes / "images").iterdir())[:SHOWN]]
        write_rgb(FOLDER / "overlay.png", contact_sheet(engine, pictures))
    (FOLDER / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print_summary(report, time.perf_counter() - start)
    camvid = report["camvid_validation"]
    return 0 if report["passed"] and (camvid is None or camvid["passed"]) else 1


def write_scenes(folder: Path, scenes: Iterable[Scene]) -> Path:
    """Write procedural scenes as ``images/*.png`` and ``labels/*.png``."""
    make_folders(folder)
    for index, scene in enumerate(scenes):
        write_rgb(folder / "images" / f"{index:06}.png", scene.image)
        write_mask(folder / "labels" / f"{index:06}.png", scene.label, CAMVID_PALETTE)
    return folder


def make_folders(folder: Path) -> None:
    """Make the two folders of a data set."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)


def validate_on_camvid(bundle: Path, checkpoint: Path) -> dict[str, Any] | None:
    """Validate on every fifth CamVid validation frame, or return None where there are none."""
    root = os.environ.get("NRD_TRT_CAMVID")
    if not root or not (Path(root) / "val").is_dir():
        print("no CamVid frames (NRD_TRT_CAMVID is not set): procedural scenes only", file=sys.stderr)
        return None
    frames = FOLDER / "camvid"
    make_folders(frames)
    for pair in list_pairs(Path(root) / "val")[::CAMVID_STEP]:
        for path, kind in zip(pair, ("images", "labels"), strict=True):
            shutil.copy(path, frames / kind / path.name)
    print("validating on CamVid frames", file=sys.stderr)
    return validate(bundle, checkpoint=checkpoint, data=frames).to_dict()


def write_clip(bundle: Path) -> dict[str, Any]:
    """Draw a drive along a procedural street, then the overlay of the engine's masks as ``overlay.mp4``."""
    print("drawing and segmenting a clip", file=sys.stderr)
    scenes = street_clip(CLIP_SEED, SCENE_HW, frames=CLIP_FRAMES, fps=CLIP_FPS)
    frames = write_scenes(FOLDER / "clip", scenes)
    style = OverlayStyle(legend=True)
    result = segment_video(
        frames, FOLDER / "overlay.mp4", bundle, rate=CLIP_FPS, labels=frames / "labels", style=style, progress=False
    )
    return result.to_dict()


def contact_sheet(engine: Engine, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Stack frames over their overlays with a legend; ``(H, W, 3) uint8``."""
    paint = Painter(engine.info, OverlayStyle(opacity=0.65, legend=True))
    return np.vstack([np.hstack(list(pictures)), np.hstack([paint(rgb, engine.predict(rgb)) for rgb in pictures])])


def print_summary(report: dict[str, Any], seconds: float) -> None:
    """Print what was made and how it did."""
    for name, where in (("validation", "procedural scenes"), ("camvid_validation", "CamVid frames")):
        if figures := report[name]:
            print(
                f"{where}: {figures['pixel_agreement']:.4f} of the pixels agree with PyTorch, mIoU "
                f"{figures['miou_engine']:.4f} (PyTorch {figures['miou_reference']:.4f}), "
                f"{'passed' if figures['passed'] else 'NOT PASSED'}"
            )
    video = report["video"]
    print(f"clip: {video['frames']} frames at {video['fps']:.1f} frames/s, mIoU {video['labels']['miou']:.4f}")
    builder = report["builder"]
    print(f"engine: {report['bundle']} ({builder['name']} {builder['version'] or ''})")
    print(f"look at {FOLDER}/overlay.png, overlay.mp4 and report.json ({seconds:.0f} s)")


if __name__ == "__main__":
    sys.exit(main())
