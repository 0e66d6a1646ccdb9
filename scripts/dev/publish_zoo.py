"""Store the last weights of a CamVid run in the zoo, in 16 bits, with a card of figures measured on what was stored.

The ranges that int8 takes where no images are given are measured, too, and written to ``calibration/zoo/``.

    python scripts/dev/publish_zoo.py nrd_r18_camvid --run RUN --data CAMVID --test TEST --command "nrd-trt train …"
    python scripts/dev/publish_zoo.py nrd_r18_camvid --hours 2.0 --data CAMVID --test TEST --command "nrd-trt train …"

The second form measures what the zoo has already and writes its card anew. TEST holds frames that no choice of a
recipe, a step or a precision has seen.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from safetensors import safe_open

from nrd_trt import build, calibrate
from nrd_trt.calibration.cache import load_ranges, save_ranges
from nrd_trt.calibration.shipped import FOLDER
from nrd_trt.data.folders import list_images, list_pairs
from nrd_trt.data.synthetic import street_clip
from nrd_trt.figures import ValidationRecord
from nrd_trt.files import sha256_file
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.network import Segmentor
from nrd_trt.specs import format_size
from nrd_trt.training.complexity import complexity
from nrd_trt.training.loop import predict_mask
from nrd_trt.training.recipes import adapted, find_recipe
from nrd_trt.training.record import LAST, LOG
from nrd_trt.validation.evaluate import Evaluation, evaluate
from nrd_trt.validation.metrics import confusion_matrix, mean_iou, pixel_agreement

ZOO = Path("nrd_trt/zoo")
CLIP_SEEDS = range(4)
CLIP_FRAMES = 15


def main() -> None:
    """Store one run, or take what is stored, and write its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name in the zoo")
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--run", type=Path, help="folder that nrd-trt train wrote, to be stored")
    origin.add_argument("--hours", type=float, help="time of the training of what is stored already")
    parser.add_argument("--data", type=Path, required=True, help="CamVid, with train/ and val/")
    parser.add_argument("--test", type=Path, required=True, help="CamVid's test frames, with images/ and labels/")
    parser.add_argument("--command", required=True, help="what trained it")
    parser.add_argument("--synthetic-share", type=float, help="what the run had in place of the recipe's")
    parser.add_argument("--origin", default="from scratch", help="what the encoder started from")
    parser.add_argument("--origin-licence", default="", help="a sentence about the licence of that")
    args = parser.parse_args()
    target = ZOO / f"{args.name}.safetensors"
    if args.run:
        save_checkpoint(load_model(args.run / LAST), target, half=True, extra=facts_of(args.run / LAST))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["size"] = format_size
    ship_ranges(target, args.data / "train")
    facts, test = facts_of(target), evaluate(target, args.test)
    clip_miou, clip_accuracy = evaluate_clip(load_model(target))
    card = environment.get_template("zoo_card.md.j2").render(
        target=target,
        recipe=adapted(find_recipe(facts["recipe"]), synthetic_share=args.synthetic_share),
        facts=facts,
        command=args.command,
        origin=args.origin,
        origin_licence=args.origin_licence,
        hours=hours_of(args.run) if args.run else args.hours,
        cost=complexity(target),
        test=test,
        drives=evaluate_drives(target, args.test),
        trained=Counter(map(drive_of, list_images(args.data / "train"))),
        validation=evaluate(target, args.data / "val"),
        int8=validate_int8(target, args.data / "train", args.test),
        clip_frames=len(CLIP_SEEDS) * CLIP_FRAMES,
        clips=len(CLIP_SEEDS),
        clip_miou=clip_miou,
        clip_accuracy=clip_accuracy,
    )
    target.with_suffix(".md").write_text(card)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, mIoU {test.miou:.4f} on the test frames")


def facts_of(checkpoint: Path) -> dict[str, str]:
    """Return what training wrote into a checkpoint: its recipe, step and seed."""
    with safe_open(checkpoint, "pt") as file:
        return {key: value for key, value in file.metadata().items() if not key.startswith("nrd_trt.")}


def hours_of(run: Path) -> float:
    """Return the time of a training by the last line of its log."""
    return float((run / LOG).read_text().split()[-1].split(",")[3]) / 3600


def ship_ranges(checkpoint: Path, data: Path) -> None:
    """Measure the ranges that ship for a checkpoint, by the default recipe, for files of any size and target."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ranges.json")
        calibrate(checkpoint, data, output=path, target="cpu")
        ranges = load_ranges(path)
    keys = replace(ranges.keys, checkpoint=sha256_file(checkpoint))
    save_ranges(replace(ranges, keys=keys), FOLDER / f"{checkpoint.stem}.json")


def drive_of(frame: Path) -> str:
    """Return the drive that a frame of CamVid belongs to."""
    return frame.name.split("_")[0]


def evaluate_drives(checkpoint: Path, data: Path) -> dict[str, Evaluation]:
    """Evaluate the frames of each drive by themselves."""
    with tempfile.TemporaryDirectory() as folder:
        for image, label in list_pairs(data):
            for kind, path in (("images", image), ("labels", label)):
                link = Path(folder, drive_of(image), kind, path.name)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        return {drive.name: evaluate(checkpoint, drive) for drive in sorted(Path(folder).iterdir())}


def validate_int8(checkpoint: Path, calibration: Path, data: Path) -> ValidationRecord:
    """Return the figures of an int8 bundle that is calibrated by the default recipe; ONNX Runtime draws its masks."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "int8.nrd")
        bundle = build(checkpoint, target, precision="int8", calibration=calibration, data=data, builder="onnxruntime")
        return bundle.record.validation


def evaluate_clip(model: Segmentor) -> tuple[float, float]:
    """Return mIoU and pixel accuracy on procedural clips that training did not see."""
    matrix = np.zeros((model.config.num_classes,) * 2, np.int64)
    for seed in CLIP_SEEDS:
        for frame in street_clip(seed, model.info.size_hw, frames=CLIP_FRAMES):
            matrix += confusion_matrix(frame.label, predict_mask(model, frame.image), model.config.num_classes)
    return mean_iou(matrix) or 0.0, pixel_agreement(matrix) or 0.0


if __name__ == "__main__":
    main()
