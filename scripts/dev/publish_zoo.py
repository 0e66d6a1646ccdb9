"""Store the last weights of a CamVid run in the zoo, in 16 bits, with a card of figures measured on what was stored.

python scripts/dev/publish_zoo.py RUN nrd_r18_camvid --data CAMVID --command "nrd-trt train …"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from safetensors import safe_open

from nrd_trt.data.synthetic import street_clip
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.network import Segmentor
from nrd_trt.specs import format_size
from nrd_trt.training.complexity import complexity
from nrd_trt.training.loop import predict_mask
from nrd_trt.training.recipes import find_recipe
from nrd_trt.training.record import LAST, LOG
from nrd_trt.validation.evaluate import evaluate
from nrd_trt.validation.metrics import confusion_matrix, mean_iou, pixel_agreement

ZOO = Path("nrd_trt/zoo")
CLIP_SEEDS = range(4)
CLIP_FRAMES = 15


def main() -> None:
    """Store one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that nrd-trt train wrote")
    parser.add_argument("name", help="name in the zoo")
    parser.add_argument("--data", type=Path, required=True, help="CamVid, with train/ and val/")
    parser.add_argument("--command", required=True, help="what trained it")
    args = parser.parse_args()
    with safe_open(args.run / LAST, "pt") as file:
        facts = {key: value for key, value in file.metadata().items() if not key.startswith("nrd_trt.")}
    target = ZOO / f"{args.name}.safetensors"
    save_checkpoint(load_model(args.run / LAST), target, half=True, extra=facts)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["size"] = format_size
    camvid = evaluate(target, args.data / "val")
    clip_miou, clip_accuracy = evaluate_clip(load_model(target))
    card = environment.get_template("zoo_card.md.j2").render(
        target=target,
        recipe=find_recipe(facts["recipe"]),
        facts=facts,
        command=args.command,
        hours=float((args.run / LOG).read_text().split()[-1].split(",")[3]) / 3600,
        cost=complexity(target),
        camvid=camvid,
        clips=len(CLIP_SEEDS),
        clip_frames=CLIP_FRAMES,
        clip_miou=clip_miou,
        clip_accuracy=clip_accuracy,
    )
    target.with_suffix(".md").write_text(card)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, mIoU {camvid.miou:.4f}")


def evaluate_clip(model: Segmentor) -> tuple[float, float]:
    """Return mIoU and pixel accuracy on procedural clips that training did not see."""
    matrix = np.zeros((model.config.num_classes,) * 2, np.int64)
    for seed in CLIP_SEEDS:
        for frame in street_clip(seed, model.info.size_hw, frames=CLIP_FRAMES):
            matrix += confusion_matrix(frame.label, predict_mask(model, frame.image), model.config.num_classes)
    return mean_iou(matrix) or 0.0, pixel_agreement(matrix) or 0.0


if __name__ == "__main__":
    main()
